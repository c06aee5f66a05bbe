"""The raycaster against distances that are known, and against a ray that creeps."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer.envs.nav import camera, mazes, raycast, textures

pytestmark = pytest.mark.quick


def room(height, width):
    """Walls around an empty room of so many squares, which begins at (1, 1)."""
    return np.pad(np.zeros((height, width), bool), 1, constant_values=True)


def things(*placed):
    """placed: (x, y, kind)."""
    place = np.array([p[:2] for p in placed], np.float32).reshape(-1, 2)
    return raycast.Things(jnp.asarray(place), jnp.ones(len(placed), bool), np.array([p[2] for p in placed], np.int32))


NOTHING = things((0.0, 0.0, 1))._replace(seen=jnp.zeros(1, bool))


@functools.partial(jax.jit, static_argnames=("height", "width", "fov"))
def view(walls, objects, origin, heading, height=9, width=15, fov=90.0, look=0):
    extent = math.tan(math.radians(fov) / 2)
    seen = raycast.Things(objects.position, objects.seen, np.array([0, 1, 2, 1][: len(objects.seen)], np.int32))
    return raycast.view(raycast.pack(walls), seen, jnp.uint32(look), origin, heading, height, width, extent)


@jax.jit
def cast(walls, origin, angles):
    directions = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return raycast.cast(raycast.pack(walls), origin, directions)


def creep(walls, origin, angle, step=1e-3):
    """Distance to the first wall, within `step`."""
    along = np.arange(1, int(40 / step)) * step
    x, y = (np.floor(o + along * d).astype(int) for o, d in zip(origin, (math.cos(angle), math.sin(angle)), strict=True))
    inside = (y >= 0) & (y < walls.shape[0]) & (x >= 0) & (x < walls.shape[1])
    hit = np.zeros(len(along), bool)
    hit[inside] = walls[y[inside], x[inside]]
    return along[np.argmax(hit)]


def test_rays_along_the_axes():
    distance, sideways = cast(room(3, 5), jnp.float32([2.25, 1.75]), np.float32([0, np.pi / 2, np.pi, -np.pi / 2]))
    np.testing.assert_allclose(distance, [6 - 2.25, 4 - 1.75, 2.25 - 1, 1.75 - 1], rtol=1e-5)
    np.testing.assert_array_equal(sideways, [True, False, True, False])


def test_oblique_rays_in_a_room():
    angles = np.linspace(-np.pi, np.pi, 101, dtype=np.float32)[:-1]
    origin = np.float32([2.3, 1.4])
    distance, _ = cast(room(4, 7), origin, angles)
    cosine, sine = np.cos(angles.astype(float)), np.sin(angles.astype(float))
    to_x = np.where(cosine > 0, 8 - 2.3, 2.3 - 1) / np.maximum(np.abs(cosine), 1e-9)
    to_y = np.where(sine > 0, 5 - 1.4, 1.4 - 1) / np.maximum(np.abs(sine), 1e-9)
    np.testing.assert_allclose(distance, np.minimum(to_x, to_y), rtol=1e-4)


@pytest.mark.parametrize("maze", ["mini", "large", "i_maze"])
def test_rays_in_mazes_against_one_that_creeps(maze):
    layout = mazes.fixed(maze, 5, 0.2)
    rng = np.random.default_rng(0)
    free = np.argwhere(~layout.walls)[:, ::-1]
    angles = rng.uniform(-np.pi, np.pi, 8).astype(np.float32)
    for square in free[rng.choice(len(free), 12)]:
        origin = (square + rng.uniform(0.2, 0.8, 2)).astype(np.float32)
        distance, _ = cast(layout.walls, origin, angles)
        creeping = np.array([creep(layout.walls, origin, angle) for angle in angles])
        close = np.abs(np.asarray(distance) - creeping) < 0.01
        assert close.mean() > 0.85  # a ray that cuts a corner by less than a step is lost to the creeping one
        assert np.all(np.asarray(distance) < creeping + 0.01)


def test_walls_as_bits():
    walls = mazes.fixed("large", 0, 0.1).walls
    grid = raycast.pack(jnp.asarray(walls))
    np.testing.assert_array_equal(raycast.free(grid), ~walls)
    row, column = np.indices(walls.shape)
    np.testing.assert_array_equal(raycast.is_wall(grid, column, row), walls)
    np.testing.assert_array_equal(raycast.free(raycast.Grid(grid.columns, grid.rows)), ~walls.T)


def test_the_depth_of_an_empty_corridor():
    """Depth is measured along the axis of the view, of walls, floor and ceiling alike."""
    _, depth = view(room(1, 8), NOTHING, jnp.float32([1.5, 1.5]), 0.0, height=8, width=16)
    slope, aside = camera.spread(8, 1.0)[:, None], camera.spread(16, 1.0)[None]
    # Sides are half a square away, the end is 7.5.
    expected = np.minimum(np.minimum(7.5, 0.5 / np.abs(aside)), 0.5 / np.abs(slope))
    np.testing.assert_allclose(depth, expected, rtol=1e-5)
    _, turned = view(room(1, 8), NOTHING, jnp.float32([1.5, 1.5]), math.radians(30), height=1, width=16)
    angle = np.arctan(aside[0]) + math.radians(30)
    along = np.minimum(0.5 / np.abs(np.sin(angle)), 7.5 / np.cos(angle))
    np.testing.assert_allclose(turned[0], along * np.cos(np.arctan(aside[0])), rtol=1e-4)


def test_no_fisheye():
    _, depth = view(room(9, 9), NOTHING, jnp.float32([7.5, 5.5]), 0.0, height=1, width=15)
    np.testing.assert_allclose(depth, 2.5, rtol=1e-5)


def test_the_band_is_the_middle_of_the_view():
    grid, origin = raycast.pack(jnp.asarray(room(5, 6))), jnp.float32([2.2, 3.1])
    band = jax.jit(lambda: raycast.depth_at(grid, NOTHING, origin, jnp.float32(0.7), *camera.of_label(1.0)))()
    _, depth = view(room(5, 6), NOTHING, origin, 0.7, height=8, width=16)
    np.testing.assert_allclose(band, depth[2:6], rtol=1e-5)
    assert np.ptp(band, axis=0).max() > 0.1  # floor is in it too


def test_things_hide_what_is_behind_them_and_walls_hide_things():
    where, height = jnp.float32([1.5, 3.5]), 41
    walls = room(5, 9)
    empty, far = view(walls, NOTHING, where, 0.0, height=height, width=41)
    goal = things((4.5, 3.5, 0))
    seen, depth = view(walls, goal, where, 0.0, height=height, width=41)
    changed = np.abs(np.asarray(depth) - far) > 1e-4
    # A sphere of radius 0.35, three squares away, in a view that is six squares wide there.
    assert changed.sum() == pytest.approx(math.pi * (0.35 / 6 * 41) ** 2, rel=0.3)
    np.testing.assert_allclose(np.asarray(depth)[changed], 3.0, rtol=1e-5)
    assert np.all(np.abs(np.argwhere(changed) - 20).max(axis=0) <= 3)
    np.testing.assert_array_equal(seen[~changed], empty[~changed])
    walls[:, 3] = True
    walls[4, 3] = False
    np.testing.assert_array_equal(
        view(walls, goal, where, 0.0, height=height, width=41)[0], view(walls, NOTHING, where, 0.0, height=height, width=41)[0]
    )
    hidden = goal._replace(seen=jnp.zeros(1, bool))
    np.testing.assert_array_equal(view(room(5, 9), hidden, where, 0.0, height=height, width=41)[0], empty)


def test_the_nearest_of_two_things_is_seen():
    both = things((5.5, 3.5, 0), (3.5, 3.5, 1))
    rgb, depth = view(room(5, 9), both, jnp.float32([1.5, 3.5]), 0.0, height=41, width=41)
    apple = np.abs(np.asarray(depth) - 2.0) < 1e-4
    assert apple.any()
    red, green, blue = np.asarray(rgb)[apple].astype(int).T
    assert np.all(green > red + 80)
    assert np.all(green > blue + 80)


def test_nothing_is_seen_behind_the_camera():
    behind = things((1.6, 3.5, 0))
    empty, _ = view(room(5, 9), NOTHING, jnp.float32([4.5, 3.5]), 0.0)
    np.testing.assert_array_equal(view(room(5, 9), behind, jnp.float32([4.5, 3.5]), 0.0)[0], empty)


def test_textures_depend_on_the_square_and_on_the_look():
    assert textures.TABLE.shape == (textures.STRAWBERRY + 1, textures.TEXELS, textures.TEXELS)
    walls = room(12, 12)
    one, _ = view(walls, NOTHING, jnp.float32([2.5, 2.5]), 0.0, height=32, width=32)
    again, _ = view(walls, NOTHING, jnp.float32([2.5, 2.5]), 0.0, height=32, width=32)
    other, _ = view(walls, NOTHING, jnp.float32([2.5, 2.5]), 0.0, height=32, width=32, look=7)
    elsewhere, _ = view(walls, NOTHING, jnp.float32([2.5, 7.5]), 0.0, height=32, width=32)
    np.testing.assert_array_equal(one, again)
    assert np.any(one != other)
    assert np.any(one != elsewhere)
    np.testing.assert_array_equal(one[28:], other[28:])  # the floor is the same


def test_how_bright_it_is_does_not_tell_how_far_it_is():
    walls, near, far = room(12, 30), [], []
    for y in range(2, 12):
        for x, values in ((28.5, near), (12.5, far)):
            rgb, _ = view(walls, NOTHING, jnp.float32([x, y + 0.5]), 0.0, height=3, width=15, fov=30.0)
            values.append(np.asarray(rgb)[1].mean())
    assert abs(np.mean(near) - np.mean(far)) < np.std(near)
