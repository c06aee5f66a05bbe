"""Pictures of mazes for people: what the agent sees, true depth, and a map with the agent's path.

For NumPy and for jax.numpy alike; imports no jax.
"""

from typing import Any, NamedTuple

import numpy as np

from podracer.envs.nav.loop_closure import History

HEIGHT = 336
"""Of a picture, pixels."""
_VIEW, _GUTTER = 256, 8
_BETWEEN = 8
"""Dots of the path from one position to the next."""
_BACK, _STONE, _FLOOR = (24, 24, 28), (92, 96, 108), (38, 40, 46)
_GOAL, _APPLE, _STRAWBERRY, _AGENT, _PATH = (240, 90, 240), (60, 230, 60), (240, 50, 60), (255, 255, 255), (255, 190, 60)
_CLOSED = (80, 220, 255)
_NEAR, _DEEP = (255.0, 240.0, 150.0), (20.0, 10.0, 60.0)


class Map(NamedTuple):
    """What a map shows. Positions are x and y in squares.

    walls: `[R, C]` bool. goal: `[2]`. fruit: `[N, 2]`; ripe: `[N]` bool, which are there; worth: `[N]`, more than 1 of a
    strawberry. pose: `[3]`, x, y, heading. history: the agent's path.
    """

    walls: Any
    goal: Any
    fruit: Any
    ripe: Any
    worth: Any
    pose: Any
    history: History


def compose(view: Any, depth: Any, chart: Map, closed: Any, xp: Any) -> Any:
    """One picture: on the left the view and, below it, the label of depth, bright is near; on the right the map.

    Args:
      view: `[H, W, 3]` uint8. depth: `[h, w]` float32 in [0, 1]. closed: `[]` bool, the label of loop closure: the map gets a
        bright frame. xp: `numpy` or `jax.numpy`.

    Returns:
      `[HEIGHT, width, 3]` uint8; width depends on the maze alone.
    """
    tinted = xp.asarray(_NEAR) + (xp.asarray(_DEEP) - xp.asarray(_NEAR)) * xp.sqrt(depth)[..., None]
    below = HEIGHT - 3 * _GUTTER - _VIEW
    left = [_resized(view, _VIEW, _VIEW), _bar(_GUTTER, _VIEW, xp), _resized(tinted.astype(xp.uint8), below, _VIEW)]
    chart_picture = draw_map(chart, HEIGHT - 4 * _GUTTER, xp)
    lamp = xp.where(closed, xp.asarray(_CLOSED, xp.uint8), xp.asarray(_BACK, xp.uint8))
    right = _framed(chart_picture, lamp, _GUTTER, xp)
    both = [xp.concatenate(left), _bar(HEIGHT - 2 * _GUTTER, _GUTTER, xp), right]
    return _framed(xp.concatenate(both, axis=1), xp.asarray(_BACK, xp.uint8), _GUTTER, xp)


def draw_map(chart: Map, height: int, xp: Any) -> Any:
    """The maze from above, x to the right and y down: `[height, width, 3]` uint8. The older its path, the darker."""
    rows, columns = chart.walls.shape
    scale = height / rows
    width = 2 * round(columns * scale / 2)  # films want even numbers
    x = (xp.arange(width, dtype=xp.float32) + xp.float32(0.5)) / xp.float32(scale)
    y = ((xp.arange(height, dtype=xp.float32) + xp.float32(0.5)) / xp.float32(scale))[:, None]
    stone = _resized(chart.walls, height, width)
    canvas = xp.where(stone[..., None], xp.asarray(_STONE), xp.asarray(_FLOOR)).astype(xp.float32)

    def paint(mask: Any, colour: tuple[int, int, int], share: Any = 1.0) -> Any:
        weight = (xp.asarray(mask) * xp.asarray(share, xp.float32))[..., None]
        return canvas * (1 - weight) + weight * xp.asarray(colour, xp.float32)

    age = _trodden(chart.history, scale, height, width, xp)
    canvas = paint(age > 0, _PATH, age)
    for i, worth in enumerate(chart.worth):
        disc = _within(x, y, chart.fruit[i], 0.3) & chart.ripe[i]
        canvas = paint(disc, _STRAWBERRY if worth > 1 else _APPLE)
    canvas = paint(_within(x, y, chart.goal, 0.45) & ~_within(x, y, chart.goal, 0.2), _GOAL)
    ahead = xp.stack([xp.cos(chart.pose[2]), xp.sin(chart.pose[2])])
    for step, radius in ((0.0, 0.25), (0.2, 0.17), (0.36, 0.1), (0.5, 0.06)):
        canvas = paint(_within(x, y, chart.pose[:2] + step * ahead, radius), _AGENT)
    return canvas.astype(xp.uint8)


def _within(x: Any, y: Any, centre: Any, radius: float) -> Any:
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2


def _trodden(history: History, scale: float, height: int, width: int, xp: Any) -> Any:
    """How bright the path is at each pixel, 0 where it is not: `[height, width]` float32."""
    last, between = history.x.shape[0] - 1, np.arange(_BETWEEN) / _BETWEEN
    lines = [(c[:-1, None] + (c[1:] - c[:-1])[:, None] * xp.asarray(between)).reshape(-1) for c in (history.x, history.y)]
    time = np.repeat(np.arange(last), _BETWEEN)
    there = time < history.count - 1
    column, row = (xp.where(there, xp.floor(line * scale), 0).astype(xp.int32) for line in lines)
    bright = xp.where(there, 0.35 + 0.65 * time / xp.maximum(history.count - 1, 1), 0.0).astype(xp.float32)
    if xp is np:
        canvas = np.zeros((height + 1, width + 1), np.float32)
        np.maximum.at(canvas, (row, column), bright)
    else:
        canvas = xp.zeros((height + 1, width + 1), xp.float32).at[row, column].max(bright)
    # Two by two pixels a dot.
    return xp.maximum(xp.maximum(canvas[:-1, :-1], canvas[1:, :-1]), xp.maximum(canvas[:-1, 1:], canvas[1:, 1:]))


def _resized(picture: Any, height: int, width: int) -> Any:
    """To another size, by the nearest pixel."""
    rows = np.arange(height) * picture.shape[0] // height
    return picture[rows][:, np.arange(width) * picture.shape[1] // width]


def _bar(height: int, width: int, xp: Any) -> Any:
    return xp.broadcast_to(xp.asarray(_BACK, xp.uint8), (height, width, 3))


def _framed(picture: Any, colour: Any, thickness: int, xp: Any) -> Any:
    height, width = picture.shape[0], picture.shape[1]
    beside = xp.broadcast_to(colour, (height, thickness, 3))
    above = xp.broadcast_to(colour, (thickness, width + 2 * thickness, 3))
    return xp.concatenate([above, xp.concatenate([beside, picture, beside], axis=1), above])
