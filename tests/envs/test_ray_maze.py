"""`nav/ray_maze`: mazes, the label of loop closure, movement, rewards, labels and pictures. Its raycaster: test_raycast.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer.config import ConfigError
from podracer.envs.nav import SUITE, NavConfig, loop_closure, mazes, picture, raycast
from podracer.envs.nav.ray_maze import RADIUS

LEFT, RIGHT, FORWARD, BACK, STRAFE_LEFT, STRAFE_RIGHT, FORWARD_LEFT, FORWARD_RIGHT = range(8)


# Mazes


def reached(walls):
    """Whether all free squares can be reached from one of them."""
    seen, front = set(), [tuple(np.argwhere(~walls)[0])]
    while front:
        row, column = front.pop()
        if (row, column) not in seen and not walls[row, column]:
            seen.add((row, column))
            front += [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    return len(seen) == np.sum(~walls)


@pytest.mark.parametrize(("maze", "shape"), [("mini", (7, 11)), ("small", (11, 21)), ("large", (19, 31)), ("i_maze", (27, 23))])
def test_mazes_are_closed_and_connected(maze, shape):
    layouts = [mazes.fixed(maze, seed, 0.1) for seed in range(8)]
    for layout in layouts:
        assert layout.walls.shape == shape
        assert layout.walls[[0, -1]].all()
        assert layout.walls[:, [0, -1]].all()
        assert reached(layout.walls)
        assert not np.any(layout.walls & (layout.goals | layout.fruit | layout.starts))
    assert (maze == "i_maze") == all(np.array_equal(layout.walls, layouts[0].walls) for layout in layouts)


def test_loops_open_walls():
    tree, some, everything = (np.sum(~mazes.fixed("small", 3, loops).walls) for loops in (0.0, 0.3, 1.0))
    assert tree == 99  # 50 cells and 49 walls between them
    assert tree < some < everything == 50 + 5 * 9 + 4 * 10


def test_a_maze_is_the_same_in_numpy_and_in_jax():
    cells = (5, 10)
    in_jax = jax.jit(lambda noise: mazes.drawn(noise, *cells, 0.1, jnp).walls)
    for seed in range(5):
        noise = np.random.default_rng(seed).random(mazes.num_noise(*cells), np.float32)
        layout = mazes.drawn(noise, *cells, 0.1, np)
        np.testing.assert_array_equal(in_jax(noise), layout.walls)
        noise = noise[:14]
        for a, b in zip(mazes.place(layout, noise, 13, np), mazes.place(layout, jnp.asarray(noise), 13, jnp), strict=True):
            np.testing.assert_array_equal(a, b)


def test_things_are_on_different_free_squares():
    layout = mazes.fixed("mini", 0, 0.0)
    for seed in range(20):
        things = mazes.fixed_things(layout, seed, 27)
        squares = np.append(things.fruit, things.goal)
        assert len(set(squares.tolist())) == 28
        assert not layout.walls.reshape(-1)[squares].any()
        assert not mazes.without(layout.starts, things.goal, np).reshape(-1)[things.goal]


def test_every_square_is_chosen():
    mask = mazes.fixed("mini", 0, 0.0).starts
    chosen = {int(mazes.choose(mask, noise, np)) for noise in np.linspace(0, 1, 500, dtype=np.float32)}
    assert chosen == set(np.flatnonzero(mask).tolist())


def test_the_i_maze():
    layout = mazes.fixed("i_maze", 0, 0.1)
    assert np.sum(~layout.walls) == 77
    assert np.sum(layout.goals) == 4
    goals = {int(mazes.place(layout, np.random.default_rng(i).random(7, np.float32), 6, np).goal) for i in range(40)}
    assert goals == set(np.flatnonzero(layout.goals).tolist())


def test_squares_and_positions():
    centre = mazes.centre(np.arange(77), 11, np)
    np.testing.assert_array_equal(centre[[0, 12]], [[0.5, 0.5], [1.5, 1.5]])
    np.testing.assert_array_equal(mazes.square_at(centre, 11, np), np.arange(77))


# Loop closure


def by_definition(positions, spawned):
    """For every t: were there t' < t'' < t since the last spawn with p_t' near and p_t'' far?"""
    labels, start = [], 0
    for t, p in enumerate(positions):
        start = t if spawned[t] else start
        far = [np.sum((q - p) ** 2) >= 4 for q in positions[start:t]]
        near = [np.sum((q - p) ** 2) <= 1 for q in positions[start:t]]
        labels.append(any(near[i] and any(far[i + 1 :]) for i in range(len(near))))
    return np.array(labels)


@functools.partial(jax.jit, static_argnames="capacity")
def scanned(positions, spawned, capacity):
    step = lambda history, now: loop_closure.visit(history, *now, jnp)  # noqa: E731
    return jax.lax.scan(step, loop_closure.empty(capacity, jnp), (positions, spawned))[1]


def stepped(positions, spawned, capacity):
    history, labels = loop_closure.empty(capacity, np), []
    for position, respawned in zip(positions, spawned, strict=True):
        history, label = loop_closure.visit(history, position, respawned, np)
        labels.append(bool(label))
    return labels


@pytest.mark.parametrize("kind", ["lattice", "continuous", "respawns"])
def test_loop_labels_are_those_of_the_definition(kind):
    total = 0
    for seed in range(6):
        rng, num = np.random.default_rng(seed), 150
        steps = rng.choice([-1, 0, 1], (num, 2)) if kind == "lattice" else rng.normal(0, 0.5, (num, 2))
        positions, spawned = np.cumsum(steps, axis=0).astype(np.float32), np.zeros(num, bool)
        if kind == "respawns":
            spawned = rng.random(num) < 0.03
            positions += np.cumsum(spawned * rng.choice([-5.0, 0.0, 3.0], num))[:, None].astype(np.float32)
        expected = by_definition(positions, spawned)
        np.testing.assert_array_equal(scanned(positions, spawned, num), expected)
        np.testing.assert_array_equal(stepped(positions, spawned, num), expected)
        total += expected.sum()
    assert 50 < total < 800


def walk(*x):
    positions = np.zeros((len(x), 2), np.float32)
    positions[:, 0] = x
    return stepped(positions, np.zeros(len(x), bool), len(x))


def test_a_straight_line_closes_no_loop():
    assert not any(walk(*np.arange(0, 20, 0.25)))


def test_out_and_back():
    # From 0 to 3 and back to 0: at 1 the way out (0, 1, 2) is near, and 3 was far and later.
    assert walk(0, 1, 2, 3, 2, 1, 0) == [False] * 5 + [True, True]
    assert not any(walk(0, 1, 1.9, 1, 0))  # never far enough
    assert walk(0, 1, 2, 1, 0)[-1]


def test_a_respawn_forgets():
    there_and_back = np.float32([[0, 0], [3, 0], [0, 0], [0, 0], [3, 0], [0, 0]])
    labels = stepped(there_and_back, np.array([False, False, False, True, False, False]), 6)
    assert labels == [False, False, True, False, False, True]


def test_the_history_that_one_gave_stays_as_it_was():
    history, _ = loop_closure.visit(loop_closure.empty(3, np), np.float32([1, 2]), False, np)
    loop_closure.visit(history, np.float32([5, 5]), False, np)
    assert (history.x[1], int(history.count)) == (0, 1)


# The environment


@functools.cache
def game(**settings):
    config = NavConfig(**{"maze": "mini", "height": 4, "width": 16, **settings})
    environment = SUITE.make("ray_maze", config).environment  # without its time limit
    return environment, jax.jit(environment.reset), jax.jit(environment.step)


EXACT = {"action_repeat": 1, "inertia": 0.0, "speed": 0.25, "turn": 30.0}
NEW = {"goal": "random", "new_maze": True, "depth_input": True, "height": 8}
KEY = jax.random.key(0)


def at(state, x, y, heading=0.0):
    """The agent there, as if it had just spawned, with no fruit around."""
    return state._replace(
        pose=jnp.float32([x, y, heading]),
        ripe=jnp.zeros_like(state.ripe),
        history=loop_closure.empty(len(state.history.x), jnp),
    )


def in_a_hall(state, x, y):
    """The agent there, in an empty room, with the goal in a corner."""
    walls = np.pad(np.zeros((5, 9), bool), 1, constant_values=True)
    return at(state, x, y)._replace(grid=raycast.pack(jnp.asarray(walls)), goal=jnp.int32(12))


def centre_of(environment, square):
    return np.asarray(mazes.centre(square, environment._shape[1], np))


@functools.cache
def random_play(**settings):
    """States and time steps of 24 episodes of 100 steps, and the actions, `[24, 100, ...]`."""
    environment, _, _ = game(**settings)

    def one(key):
        def step(carry, t):
            held = jax.random.randint(jax.random.fold_in(key, t // 4), (), 0, 8)
            new = environment.step(carry[0], held, jax.random.fold_in(key, 1000 + t))
            return new, (*new, held)

        first = environment.reset(key)
        return first, jax.lax.scan(step, first, jnp.arange(100))[1]

    return environment, *jax.device_get(jax.jit(jax.vmap(one))(jax.random.split(KEY, 24)))


def free_box(walls, pose):
    """Whether the whole body is in free squares."""
    return not any(walls[int(pose[1] + dy), int(pose[0] + dx)] for dx in (-RADIUS, RADIUS) for dy in (-RADIUS, RADIUS))


@pytest.mark.parametrize("settings", [{}, NEW])
def test_random_play_keeps_out_of_walls_and_is_finite(settings):
    _, _, (states, timesteps, _) = random_play(**settings)
    for episode in range(24):
        walls = ~np.asarray(raycast.free(jax.tree.map(lambda x, e=episode: x[e, 0], states.grid)))
        assert reached(walls)
        assert all(free_box(walls, pose) for pose in states.pose[episode])
    leaves = jax.tree.leaves((timesteps.observation, timesteps.aux, timesteps.reward))
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert np.abs(states.pose[..., 2]).max() <= np.pi + 1e-5
    assert timesteps.aux["depth"].min() > 0
    assert timesteps.aux["depth"].max() <= 1


def test_labels_of_random_play():
    environment, (_, first), (states, timesteps, _) = random_play()
    aux, closed = timesteps.aux, 0
    for episode in range(24):
        positions = np.concatenate([first.aux["pose"][episode, None], aux["pose"][episode]])[:, :2]
        goals = np.append(0, aux["goals"][episode])
        spawned = np.append(True, np.diff(goals) > 0)
        labels = by_definition(positions, spawned)
        np.testing.assert_array_equal(aux["loop_closure"][episode], labels[1:])
        closed += labels.sum()
    assert not first.aux["loop_closure"].any()
    assert closed > 100
    columns = environment._shape[1]
    np.testing.assert_array_equal(
        aux["position"], np.floor(aux["pose"][..., 1]).astype(int) * columns + np.floor(aux["pose"][..., 0]).astype(int)
    )
    reached_now = np.diff(aux["goals"], axis=1) > 0
    np.testing.assert_array_equal(timesteps.reward[:, 1:] >= 10, reached_now)
    assert reached_now.sum() > 3
    assert np.all(states.velocity[:, 1:][reached_now] == 0)


def test_the_velocity_is_that_of_the_agents_own_frame():
    _, (_, first), (_, timesteps, _) = random_play(**EXACT)
    before = np.concatenate([first.aux["pose"][:, None], timesteps.aux["pose"]], axis=1)
    goals = np.concatenate([first.aux["goals"][:, None], timesteps.aux["goals"]], axis=1)
    same = np.diff(goals, axis=1) == 0
    moved, heading = np.diff(before[..., :2], axis=1), before[:, 1:, 2]
    velocity = timesteps.observation["velocity"]
    ahead = moved[..., 0] * np.cos(heading) + moved[..., 1] * np.sin(heading)
    aside = moved[..., 1] * np.cos(heading) - moved[..., 0] * np.sin(heading)
    np.testing.assert_allclose(velocity[same][:, :2], np.stack([aside, ahead], axis=-1)[same], atol=1e-5)
    turned = np.angle(np.exp(1j * (heading - before[:, :-1, 2])))
    np.testing.assert_allclose(velocity[same][:, 5], turned[same], atol=1e-5)
    assert np.all(velocity[~same] == 0)
    assert np.all(velocity[..., 2:5] == 0)


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        (LEFT, (0, 0, -30)),
        (RIGHT, (0, 0, 30)),
        (FORWARD, (0.25, 0, 0)),
        (BACK, (-0.25, 0, 0)),
        (STRAFE_LEFT, (0, -0.25, 0)),
        (STRAFE_RIGHT, (0, 0.25, 0)),
        (FORWARD_LEFT, (0.25 * np.cos(np.pi / 6), -0.125, -30)),
        (FORWARD_RIGHT, (0.25 * np.cos(np.pi / 6), 0.125, 30)),
    ],
)
def test_actions(action, expected):
    """Heading 0 looks along x, and the right hand is along y."""
    _, reset, step = game(**EXACT)
    state, _ = reset(KEY)
    state = in_a_hall(state, 4.5, 3.5)
    after, _ = step(state, action, KEY)
    x, y, degrees = expected
    np.testing.assert_allclose(after.pose, [4.5 + x, 3.5 + y, np.radians(degrees)], atol=1e-5)


def test_walls_stop_and_one_slides_along_them():
    _, reset, step = game(**EXACT)
    state, _ = reset(KEY)
    state = in_a_hall(state, 9.2, 3.5)
    for _ in range(5):
        state, timestep = step(state, FORWARD, KEY)
    assert float(state.pose[0]) == pytest.approx(10 - RADIUS, abs=2e-3)
    np.testing.assert_allclose(timestep.observation["velocity"], 0, atol=1e-6)
    assert timestep.aux["depth"].min() > 0
    slanted = state._replace(pose=jnp.float32([state.pose[0], 3.5, np.pi / 4]))
    after, _ = step(slanted, FORWARD, KEY)
    np.testing.assert_allclose(after.pose[:2], [state.pose[0], 3.5 + 0.25 * np.sin(np.pi / 4)], atol=1e-5)


def test_inertia_and_frames():
    environment, reset, step = game()
    state, _ = reset(KEY)
    state = in_a_hall(state, 2.5, 3.5)
    first, timestep = step(state, FORWARD, KEY)
    # Four frames at 1/2, 3/4, 7/8, 15/16 of the speed of 1/8 square a frame.
    assert float(first.pose[0]) - 2.5 == pytest.approx(0.125 * (4 - 15 / 16))
    assert float(timestep.observation["velocity"][1]) == pytest.approx(0.125 * (4 - 15 / 16))
    second, _ = step(first, LEFT, KEY)
    assert second.pose[0] > first.pose[0]
    assert environment.spec.frames_per_step == 4


def test_fruit_is_eaten_once():
    environment, reset, step = game()
    state, _ = reset(KEY)
    for number, worth in ((0, 1.0), (4, 2.0)):
        x, y = centre_of(environment, environment._things.fruit[number])
        there = at(state, x, y)._replace(ripe=jnp.arange(5) == number)
        after, timestep = step(there, LEFT, KEY)
        assert float(timestep.reward) == worth
        assert not after.ripe.any()
        assert float(step(after, LEFT, KEY)[1].reward) == 0


def test_the_goal_moves_the_agent_and_brings_fruit_back():
    environment, reset, step = game()
    state, _ = reset(KEY)
    x, y = centre_of(environment, state.goal)
    there = at(state, x, y)._replace(velocity=jnp.full(3, 0.1))
    places = set()
    for seed in range(8):
        after, timestep = step(there, LEFT, jax.random.key(seed))
        assert float(timestep.reward) == 10
        assert int(timestep.aux["goals"]) == 1
        assert after.ripe.all()
        assert int(after.history.count) == 1
        np.testing.assert_array_equal(timestep.observation["velocity"], 0)
        assert int(timestep.aux["position"]) != int(state.goal)
        assert int(after.goal) == int(state.goal)
        places.add(int(timestep.aux["position"]))
    assert len(places) > 2


def test_what_is_static_and_what_is_random():
    def drawn(**settings):
        _, reset, _ = game(**settings)
        states, _ = jax.device_get(jax.vmap(reset)(jax.random.split(KEY, 24)))
        return (len(np.unique(x.reshape(24, -1), axis=0)) for x in (states.pose, states.goal, states.fruit, states.grid.rows))

    starts, goals, fruit, walls = drawn()
    assert starts == 24
    assert (goals, fruit, walls) == (1, 1, 1)
    starts, goals, fruit, walls = drawn(goal="random")
    assert goals > 8
    assert fruit == 24
    assert walls == 1
    _, goals, _, walls = drawn(**NEW)
    assert min(goals, walls) > 8
    one, other = (SUITE.make("ray_maze", NavConfig(maze_seed=seed)).environment for seed in (0, 1))
    assert np.any(one._layout.walls != other._layout.walls)
    # In the course of an episode goal and fruit stay where they are.
    _, (first, _), (states, _, _) = random_play(**NEW)
    assert np.all(states.goal == first.goal[:, None])
    assert np.all(states.fruit == first.fruit[:, None])


def test_depth_as_an_input_is_that_of_the_picture():
    environment, _, (_, timesteps, _) = random_play(**NEW)
    assert environment.spec.observation["depth"].shape == (8, 16, 1)
    # The label is of the middle half of the view.
    np.testing.assert_allclose(timesteps.observation["depth"][:, :, 2:6, :, 0], timesteps.aux["depth"], atol=1e-6)
    assert "depth" not in game()[0].spec.observation
    assert "depth" not in random_play()[1][1].observation


def test_keys_alone_decide():
    _, reset, step = game(**NEW)
    runs = []
    for _ in range(2):
        state, timestep = reset(jax.random.key(5))
        for t in range(3):
            state, timestep = step(state, FORWARD_LEFT, jax.random.key(t))
        runs.append(jax.device_get((state, timestep)))
    jax.tree.map(np.testing.assert_array_equal, *runs)


def test_the_picture():
    environment, reset, step = game()
    state, _ = reset(KEY)
    draw = jax.jit(environment.render)
    frame = np.asarray(draw(state))
    assert frame.dtype == np.uint8
    assert frame.shape[0] == picture.HEIGHT
    assert frame.shape[1] % 2 == 0
    closed = np.asarray(draw(state._replace(closed=jnp.bool_(True))))
    assert (frame != closed).any(axis=-1).sum() > 1000  # the frame of the map
    for _ in range(4):
        state, _ = step(state, FORWARD_LEFT, KEY)
    assert (np.asarray(draw(state)) != frame).any()


def test_the_map_is_the_same_in_numpy():
    environment, reset, step = game()
    state, _ = reset(KEY)
    for _ in range(3):
        state, _ = step(state, FORWARD_RIGHT, KEY)
    chart = picture.Map(
        walls=environment._layout.walls,
        goal=centre_of(environment, environment._things.goal),
        fruit=centre_of(environment, environment._things.fruit),
        ripe=np.asarray(state.ripe),
        worth=environment._worth,
        pose=np.asarray(state.pose),
        history=jax.device_get(state.history),
    )
    one, two = (np.asarray(picture.draw_map(jax.tree.map(xp.asarray, chart), 100, xp)).astype(int) for xp in (np, jnp))
    assert np.mean(np.abs(one - two) > 1) < 1e-3
    row, column = (int(chart.pose[i] * 100 / 7) for i in (1, 0))
    assert one[row, column].tolist() == [255, 255, 255]  # the agent


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"new_maze": True}, "goal=random"),
        ({"maze": "i_maze", "goal": "random", "new_maze": True}, "maze=mini, small or large"),
        ({"maze": "huge"}, "mini, small, large, i_maze"),
        ({"speed": 0.5}, "at most 0.4"),
        ({"inertia": 1.0}, "below 1"),
        ({"fov": 180.0}, "at most 150, not 180"),
        ({"maze": "mini", "num_apples": 27}, "room for 27 apples and strawberries, not 28"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        NavConfig(**settings).resolved()
