"""First-person pictures of mazes, as arithmetic on whole arrays: what a camera in a maze sees, and how far away it is.

A ray is cut with every grid line of the maze, and a line stops it if the square behind is a wall, which is a bit of one integer
per row and column: nothing is looked up, and no ray waits for another. Rays of one picture are measured along the axis of the
view, so that walls are straight. Lengths are squares, the x axis goes right and the y axis down, angles go from x to y. Walls
are 1 high and the camera is at 1/2. Textures have no mipmaps, on purpose, and nothing gets darker far away: brightness does not
tell depth.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from podracer.envs.nav.camera import spread
from podracer.envs.nav.textures import APPLE, CEILING, FLOOR, GOAL, STRAWBERRY, TABLE, TEXELS, WALL_COLOURS, WALL_PATTERNS
from podracer.types import Array

NEAREST = 0.05
"""Squares before the camera at which things begin to be seen."""
_NEVER = 1e6
"""Squares: farther than any wall."""


class Grid(NamedTuple):
    """Walls as bits. rows: `[R]` uint32, bit c of row r. columns: `[C]` uint32, bit r of column c."""

    rows: Array
    columns: Array


class Things(NamedTuple):
    """Spheres that stand in the maze. position: `[N, 2]` float32, x and y. seen: `[N]` bool. kind: `[N]` int32, of KINDS."""

    position: Array
    seen: Array
    kind: np.ndarray


class _Kind(NamedTuple):
    texture: int
    radius: float
    height: float


KINDS = (_Kind(GOAL, 0.35, 0.5), _Kind(APPLE, 0.15, 0.3), _Kind(STRAWBERRY, 0.15, 0.3))
"""Goal, apple, strawberry: radius and height of the centre, squares."""


def pack(walls: Array) -> Grid:
    """`[R, C]` bool, at most 32 by 32, walls all around, as bits."""
    bits = jnp.left_shift(jnp.uint32(1), jnp.arange(32, dtype=jnp.uint32))
    rows, columns = walls.shape
    return Grid(
        rows=jnp.sum(jnp.where(walls, bits[:columns], 0), axis=1, dtype=jnp.uint32),
        columns=jnp.sum(jnp.where(walls.T, bits[:rows], 0), axis=1, dtype=jnp.uint32),
    )


def free(grid: Grid) -> Array:
    """`[R, C]` bool, where no walls are: the opposite of what was packed."""
    return jnp.right_shift(grid.rows[:, None], jnp.arange(len(grid.columns), dtype=jnp.uint32)) & 1 == 0


def is_wall(grid: Grid, column: Array, row: Array) -> Array:
    """Whether squares `[...]` int32 inside the maze are walls: `[...]` bool."""
    return _bit(grid.rows[row], column)


def rays(heading: Array, samples: np.ndarray) -> Array:
    """Directions `[W, 2]` of columns of a picture, as long as it takes to get 1 farther along the axis of the view.

    Args:
      heading: `[]` float32.
      samples: `[W]`, tangents of the columns' angles from the axis, right is positive.
    """
    forward, right = axes(heading)
    return forward + jnp.asarray(samples, jnp.float32)[:, None] * right


def axes(heading: Array) -> tuple[Array, Array]:
    """Unit vectors forward and to the right, `[2]` each."""
    cosine, sine = jnp.cos(heading), jnp.sin(heading)
    return jnp.stack([cosine, sine]), jnp.stack([-sine, cosine])


def cast(grid: Grid, origin: Array, directions: Array) -> tuple[Array, Array]:
    """Where rays from a free square hit the first wall.

    Args:
      grid: the walls.
      origin: `[2]` float32. directions: `[W, 2]` float32.

    Returns:
      `[W]` float32, in units of the rays' directions, and `[W]` bool, whether the wall faces left or right and not up or down.
    """
    slope = jnp.where(jnp.abs(directions) < 1e-6, 1e-6, directions)
    across_columns = _first(grid.columns, origin[0], origin[1], slope[:, 0], slope[:, 1], len(grid.rows))
    across_rows = _first(grid.rows, origin[1], origin[0], slope[:, 1], slope[:, 0], len(grid.columns))
    return jnp.minimum(across_columns, across_rows), across_columns < across_rows


def _first(bits: Array, start: Array, other: Array, along: Array, aside: Array, size: int) -> Array:
    """The first line `start + t along = integer` whose square behind is a wall: `t` `[W]`."""
    inverse, ahead = 1.0 / along, along > 0

    def cut(line: Array, best: Array) -> Array:
        t = (line - start) * inverse
        # A ray that has left the maze sideways has met its outer wall before, at a smaller t.
        square = jnp.clip(other + t * aside, 0, size - 1).astype(jnp.int32)
        stops = _bit(jnp.where(ahead, bits[line], bits[line - 1]), square) & (t > 0)
        return jnp.where(stops, jnp.minimum(best, t), best)

    return jax.lax.fori_loop(1, len(bits), cut, jnp.full(along.shape, jnp.inf, jnp.float32))


def _bit(word: Array, number: Array) -> Array:
    return (jnp.right_shift(word, number.astype(jnp.uint32)) & 1) == 1


class _Thing(NamedTuple):
    """What is nearest in each column of a picture, `[W]` each. distance: squares along the axis of the view. aside: where it is
    cut, in radii from its middle. radius, height, texture: as in _Kind."""

    distance: Array
    aside: Array
    radius: Array
    height: Array
    texture: Array


class _Columns(NamedTuple):
    """What the pixels of each column have in common, `[W]` each. wall: squares to it, along the axis of the view. texture: its
    number. texel: of its width. thing: before it."""

    wall: Array
    texture: Array
    texel: Array
    thing: _Thing


def view(
    grid: Grid, things: Things, look: Array, origin: Array, heading: Array, height: int, width: int, extent: float
) -> tuple[Array, Array]:
    """What a camera sees.

    Args:
      grid, things: what there is.
      look: `[]` uint32, which textures the walls have.
      origin: `[2]` float32, in a free square. heading: `[]` float32.
      height, width: pixels. extent: tangent of half the angle of the view, which is the same upwards.

    Returns:
      `[H, W, 3]` uint8, and squares along the axis of the view to what each pixel shows, `[H, W]` float32.
    """
    samples = spread(width, extent)
    directions = rays(heading, samples)
    columns = _columns(grid, things, look, origin, heading, directions, samples)
    # A loop over stripes of rows, for XLA fuses what is no loop: it would cast a column's ray again for every pixel.
    stripes = next((n for n in range(2, height) if height % n == 0), height)
    slopes = jnp.asarray(spread(height, extent), jnp.float32).reshape(stripes, -1, 1)
    rgb, depth = jax.lax.map(lambda slope: _paint(columns, slope, origin, directions), slopes)
    return rgb.reshape(height, width, 3), depth.reshape(height, width)


def _paint(columns: _Columns, slope: Array, origin: Array, directions: Array) -> tuple[Array, Array]:
    """Colours `[h, W, 3]` uint8 and depths `[h, W]` of some rows. slope: `[h, 1]`, down is positive."""
    depth, is_thing = _depth(columns, slope)
    up = 0.5 - depth * slope
    flat = depth < columns.wall
    x, y = (origin[i] + depth * directions[:, i] for i in range(2))
    colour = (x.astype(jnp.int32) + 2 * y.astype(jnp.int32)) & (WALL_COLOURS - 1)
    texture = jnp.where(flat, jnp.where(slope > 0, FLOOR, CEILING) + colour, columns.texture)
    across, down = jnp.where(flat, _texel(x), columns.texel), jnp.where(flat, _texel(y), _texel(-up))
    thing = columns.thing
    above = (up - thing.height) / thing.radius
    texture = jnp.where(is_thing, thing.texture, texture)
    across = jnp.where(is_thing, _texel(0.5 + 0.499 * thing.aside), across)
    down = jnp.where(is_thing, _texel(0.5 - 0.499 * above), down)
    texel = jnp.asarray(TABLE.reshape(-1))[(texture * TEXELS + down) * TEXELS + across]
    return jax.lax.bitcast_convert_type(texel, jnp.uint8)[..., :3], depth


def depth_at(grid: Grid, things: Things, origin: Array, heading: Array, slopes: np.ndarray, samples: np.ndarray) -> Array:
    """As the second part of `view`, in the directions of tangents: `[H, W]` float32.

    Args:
      grid, things, origin, heading: as in `view`.
      slopes: `[H]`, down is positive. samples: `[W]`, right is positive.
    """
    columns = _columns(grid, things, jnp.uint32(0), origin, heading, rays(heading, samples), samples)
    return _depth(columns, jnp.asarray(slopes, jnp.float32)[:, None])[0]


def _columns(
    grid: Grid, things: Things, look: Array, origin: Array, heading: Array, directions: Array, samples: np.ndarray
) -> _Columns:
    wall, sideways = cast(grid, origin, directions)
    hit = origin + wall[:, None] * directions
    texture, texel = _wall_texture(hit, sideways, directions, look)
    forward, right = axes(heading)
    offset = things.position - origin
    ahead, beside = offset @ forward, offset @ right
    distance = jnp.where(things.seen & (ahead > NEAREST), ahead, _NEVER)
    kinds = [KINDS[kind] for kind in things.kind]
    radius, height = (jnp.asarray(x, jnp.float32) for x in ([k.radius for k in kinds], [k.height for k in kinds]))
    textures = jnp.asarray([kind.texture for kind in kinds], jnp.int32)

    def look_at(i: Array, nearest: _Thing) -> _Thing:
        cut = (jnp.asarray(samples, jnp.float32) * ahead[i] - beside[i]) / radius[i]
        # Of several things one behind the other, a column shows the nearest alone.
        nearer = (jnp.abs(cut) < 1) & (distance[i] < jnp.minimum(wall, nearest.distance))
        this = _Thing(distance=distance[i], aside=cut, radius=radius[i], height=height[i], texture=textures[i])
        return jax.tree.map(lambda new, old: jnp.where(nearer, new, old), this, nearest)

    none = _Thing(*(jnp.full(wall.shape, x) for x in (_NEVER, 0.0, 1.0, 0.0, jnp.int32(0))))
    thing = jax.lax.fori_loop(0, len(kinds), look_at, none)
    return _Columns(wall=wall, texture=texture, texel=texel, thing=thing)


def _wall_texture(hit: Array, sideways: Array, directions: Array, look: Array) -> tuple[Array, Array]:
    # Half a square past the line that was hit lies the wall's square.
    ahead = jnp.where(directions > 0, 0.5, -0.5)
    x = jnp.where(sideways, jnp.round(hit[:, 0]) + ahead[:, 0], hit[:, 0])
    y = jnp.where(sideways, hit[:, 1], jnp.round(hit[:, 1]) + ahead[:, 1])
    column, row = jnp.floor(x).astype(jnp.uint32), jnp.floor(y).astype(jnp.uint32)
    colour = _hash(row // 4, column // 4, look) % WALL_COLOURS
    pattern = _hash(row, column, look + 1) % WALL_PATTERNS
    texture = (colour * WALL_PATTERNS + pattern).astype(jnp.int32)
    return texture, _texel(jnp.where(sideways, hit[:, 1], hit[:, 0]))


def _depth(columns: _Columns, slope: Array) -> tuple[Array, Array]:
    """Squares along the axis to what pixels show, `[H, W]`, and whether it is a thing. slope: `[H, 1]`, down is positive."""
    level = jnp.minimum(columns.wall, 0.5 / jnp.maximum(jnp.abs(slope), 1e-6))
    thing = columns.thing
    above = (0.5 - thing.distance * slope - thing.height) / thing.radius
    is_thing = (above**2 + thing.aside**2 < 1) & (thing.distance < level)
    return jnp.where(is_thing, thing.distance, level), is_thing


def _texel(position: Array) -> Array:
    return jnp.floor(position * TEXELS).astype(jnp.int32) & (TEXELS - 1)


def _hash(first: Array, second: Array, third: Array) -> Array:
    """An integer that looks random, uint32 as they are. The finalizer of MurmurHash3."""
    word = first * jnp.uint32(0x9E3779B1) + second * jnp.uint32(0x85EBCA77) + third * jnp.uint32(0xC2B2AE3D)
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)
