"""Mazes of squares, and where goals, fruit and agents are in them. For NumPy and for jax.numpy alike; imports no jax.

Square `(row, column)` covers x from `column` to `column + 1` and y from `row` to `row + 1`; its number is `row * columns +
column`. A maze of R x C cells has cells at odd rows and columns of its `2 R + 1` by `2 C + 1` squares, and walls between them.
"""

from typing import Any, NamedTuple

import numpy as np

from podracer.envs import spanning
from podracer.envs.nav.config import PROTOCOLS


class Layout(NamedTuple):
    """`[rows, columns]` bool each. walls: where they are, all around too. goals, fruit, starts: free squares, where a goal,
    fruit and the agent may be put."""

    walls: Any
    goals: Any
    fruit: Any
    starts: Any


class Things(NamedTuple):
    """goal: number of its square, `[]` int32. fruit: numbers of theirs, `[N]` int32."""

    goal: Any
    fruit: Any


def fixed(maze: str, seed: int, loops: float) -> Layout:
    """The maze with that number, as NumPy arrays. maze, loops: as in NavConfig."""
    if maze == "i_maze":
        return _i_maze()
    rows, columns = PROTOCOLS[maze].cells
    noise = np.random.default_rng([seed, 0]).random(num_noise(rows, columns), np.float32)
    return drawn(noise, rows, columns, loops, np)


def fixed_things(layout: Layout, seed: int, num_fruit: int) -> Things:
    """Where goal and fruit are in the fixed maze `layout` with that number."""
    noise = np.random.default_rng([seed, 1]).random(1 + num_fruit, np.float32)
    return place(layout, noise, num_fruit, np)


def num_noise(rows: int, columns: int) -> int:
    """How many uniform numbers a maze of so many cells needs."""
    return 2 * len(spanning.plan(rows, columns)[0])


def drawn(noise: Any, rows: int, columns: int, loops: float, xp: Any) -> Layout:
    """A maze in which all free squares are connected: a spanning tree of the cells, and loops.

    Args:
      noise: `[num_noise]` float32 in [0, 1): the same numbers give the same maze whatever `xp` is.
      rows, columns: of cells.
      loops: share of the walls left by the tree that are opened.
      xp: `numpy` or `jax.numpy`.
    """
    edges, edge_of = spanning.plan(rows, columns)
    weight, coin = noise[: len(edges)], noise[len(edges) :]
    opened = spanning.tree(weight, rows, columns, xp) | (coin < loops)
    cells = np.zeros(edge_of.shape, bool)
    cells[1::2, 1::2] = True
    free = xp.asarray(cells) | xp.concatenate([opened, xp.zeros(1, bool)])[edge_of]
    return Layout(walls=~free, goals=free, fruit=free, starts=free)


def place(layout: Layout, noise: Any, num_fruit: int, xp: Any) -> Things:
    """Puts a goal and fruit on different squares. noise: `[1 + num_fruit]` float32 in [0, 1)."""
    goal, fruit = choose(layout.goals, noise[0], xp), []
    mask = without(layout.fruit, goal, xp)
    for i in range(num_fruit):
        fruit.append(choose(mask, noise[1 + i], xp))
        mask = without(mask, fruit[-1], xp)
    return Things(goal=goal, fruit=xp.stack(fruit) if fruit else xp.zeros(0, xp.int32))


def choose(mask: Any, noise: Any, xp: Any) -> Any:
    """The number of one of the squares of `mask` `[rows, columns]` bool, all as likely: `[]` int32. noise: `[]` in [0, 1)."""
    upto = xp.cumsum(mask.reshape(-1).astype(xp.int32))
    rank = xp.minimum(xp.floor(noise * upto[-1].astype(xp.float32)).astype(xp.int32), upto[-1] - 1)
    return xp.argmax(upto > rank).astype(xp.int32)


def without(mask: Any, square: Any, xp: Any) -> Any:
    """`mask` `[rows, columns]` bool less the square of that number."""
    return mask & (xp.arange(mask.size).reshape(mask.shape) != square)


def centre(square: Any, num_columns: int, xp: Any) -> Any:
    """x and y of the middle of squares `[...]`: `[..., 2]` float32. num_columns: of squares in the maze."""
    return xp.stack([square % num_columns, square // num_columns], -1).astype(xp.float32) + xp.float32(0.5)


def square_at(position: Any, num_columns: int, xp: Any) -> Any:
    """The number of the square around x and y `[..., 2]`: `[...]` int32."""
    index = xp.floor(position).astype(xp.int32)
    return index[..., 1] * num_columns + index[..., 0]


def _i_maze() -> Layout:
    """The paper's I-maze: a corridor between two bars, whose four ends bend into alcoves. 77 free squares: 23, 2 x 21, 4 x 3.

    The agent starts in the corridor, where the apples are too; the goal is at the end of an alcove.
    """
    corridor, alcoves, ends = (np.zeros((27, 23), bool) for _ in range(3))
    corridor[2:-2, 11] = True
    bars = np.zeros_like(corridor)
    bars[[1, -2], 1:-1] = True
    for row, end in ((slice(2, 5), 4), (slice(-5, -2), -5)):
        alcoves[row, [1, -2]] = True
        ends[end, [1, -2]] = True
    return Layout(walls=~(corridor | bars | alcoves), goals=ends, fruit=corridor, starts=corridor)
