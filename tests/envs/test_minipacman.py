"""Mazes, ghosts and rewards of Minipacman, against rules written anew in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import registry
from podracer.config import ConfigError
from podracer.envs.minipacman import CHANNELS, MOVES, MinipacmanConfig, PacmanState
from podracer.types import LAST

pytestmark = pytest.mark.quick

STAY, UP, RIGHT, DOWN, LEFT = range(5)


def _make(task="mini", **options):
    return registry.env(f"minipacman/{task}").make(MinipacmanConfig(**options))


def _reset(environment, num_envs, seed=0):
    keys = jax.random.split(jax.random.key(seed), num_envs)
    state, timestep = jax.jit(jax.vmap(environment.reset))(keys)
    return jax.device_get((state[0], timestep))


def _neighbours(free):
    """Number of free neighbours of every inner cell."""
    return free[:-2, 1:-1].astype(int) + free[2:, 1:-1] + free[1:-1, :-2] + free[1:-1, 2:]


def _connected(free):
    reached = np.zeros_like(free)
    reached[1, 1] = True
    while True:
        padded = np.pad(reached, 1)
        new = (padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:] | reached) & free
        if (new == reached).all():
            return bool((reached == free).all())
        reached = new


@pytest.mark.parametrize(("task", "num_envs", "num_mazes"), [("mini", 256, 200), ("full", 64, 64)])
def test_mazes_are_connected_without_dead_ends_and_differ(task, num_envs, num_mazes):
    state, _ = _reset(_make(task), num_envs)
    height, width = state.walls.shape[1:]
    for walls in state.walls:
        assert walls[[0, -1]].all()
        assert walls[:, [0, -1]].all()
        assert _connected(~walls)
        assert (_neighbours(~walls)[~walls[1:-1, 1:-1]] >= 2).all()
    assert len({walls.tobytes() for walls in state.walls}) >= num_mazes
    assert len({agent.tobytes() for agent in state.agent}) > 10

    env = np.arange(num_envs)
    at_agent = (env, *state.agent.T)
    at_ghosts = (env[:, None], state.ghosts[..., 0], state.ghosts[..., 1])
    assert not state.walls[at_agent].any()
    assert not state.walls[at_ghosts].any()
    assert (state.power.sum((1, 2)) == (1 if task == "mini" else 4)).all()
    start = np.zeros_like(state.walls)
    start[at_agent] = True
    np.testing.assert_array_equal(state.pills, ~state.walls & ~state.power & ~start)
    distance = np.abs(state.ghosts - state.agent[:, None]).sum(-1)
    assert (distance >= (height + width) // 4).mean() > 0.95
    assert (distance > 0).all()


def test_a_broken_maze_would_be_noticed():
    walls = np.ones((5, 7), bool)
    walls[1:-1, 1:-1] = False
    assert _connected(~walls)
    walls[:, 3] = True
    assert not _connected(~walls)


def test_fixed_mazes_repeat_and_training_ones_are_not_among_the_test_ones():
    def mazes(num_mazes, first_maze, seed):
        state, _ = _reset(_make(num_mazes=num_mazes, first_maze=first_maze), 512, seed)
        pairs = {(walls.tobytes(), power.tobytes()) for walls, power in zip(state.walls, state.power, strict=True)}
        assert len(pairs) == len({walls for walls, _ in pairs})  # power pills belong to a maze
        assert len({agent.tobytes() for agent in state.agent}) > 10  # starts do not
        return {walls for walls, _ in pairs}

    train, again = mazes(8, 0, seed=0), mazes(8, 0, seed=1)
    assert train == again
    assert len(train) == 8
    test = mazes(100, 8, seed=0)
    assert 95 <= len(test) <= 100
    assert not train & test
    assert len(train & mazes(2, 3, seed=0)) == 2


def _play(environment, num_envs, num_steps, seed=0):
    """States, time steps and actions of random play without autoreset, and which of the steps are within an episode."""

    def step(carry, key):
        act_key, step_key = jax.random.split(key)
        action = jax.random.randint(act_key, (num_envs,), 0, len(MOVES))
        state, timestep = jax.vmap(environment.step)(carry, action, jax.random.split(step_key, num_envs))
        return state, (state, timestep, action)

    @jax.jit
    def play(state, key):
        _, (states, timesteps, actions) = jax.lax.scan(step, state, jax.random.split(jax.random.fold_in(key, 1), num_steps))
        return jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), state, states), timesteps, actions

    key = jax.random.key(seed)
    first, _ = jax.jit(jax.vmap(environment.reset))(jax.random.split(key, num_envs))  # the same program for any greed
    states, timesteps, actions = jax.device_get(play(first, key))
    ended = np.cumsum(timesteps.step_type == LAST, axis=0)
    alive = ended - (timesteps.step_type == LAST) == 0
    return states, timesteps, actions, alive


@functools.cache
def _game(ghost_greed):
    environment = _make(num_ghosts=2, num_power_pills=3, ghost_greed=ghost_greed, power_steps=10, death_reward=-1.0)
    return _play(environment.environment, 64, 60)


def _pairs(ghost_greed):
    """Consecutive states, with action, reward and end, of every step of every episode."""
    states, timesteps, actions, alive = _game(ghost_greed)
    for t, env in np.argwhere(alive):
        before, after = (jax.tree.map(lambda x, s=s, e=env: x[s, e], states) for s in (t, t + 1))
        yield before, after, actions[t, env], timesteps.reward[t, env], timesteps.step_type[t, env] == LAST


def test_every_step_obeys_the_rules():
    deaths = meals = powers = 0
    for before, after, action, reward, last in _pairs(0.5):
        target = before.agent + MOVES[action]
        agent = before.agent if before.walls[tuple(target)] else target
        np.testing.assert_array_equal(after.agent, agent)
        np.testing.assert_array_equal(after.walls, before.walls)
        pill, power = before.pills[tuple(agent)], before.power[tuple(agent)]
        assert before.pills.sum() - after.pills.sum() == pill
        assert before.power.sum() - after.power.sum() == power
        edible = np.full(2, 10) if power else before.edible
        eaten, caught = 0, False
        for ghost in range(2):
            old, new = before.ghosts[ghost], after.ghosts[ghost]
            assert not before.walls[tuple(new)]
            jumped = (after.trail[ghost] == new).all()  # otherwise a ghost moves, always
            if jumped:
                assert edible[ghost] > 0
                assert (new == before.home[ghost]).all()
                assert np.abs(old - agent).sum() <= 1
                assert after.edible[ghost] == 0
                eaten += 1
                continue
            np.testing.assert_array_equal(after.trail[ghost], old)
            assert np.abs(new - old).sum() == 1
            assert (new != before.trail[ghost]).any()
            assert after.edible[ghost] == (10 if power else max(before.edible[ghost] - 1, 0))
            met = (new == agent).all() or ((new == before.agent).all() and (old == agent).all())
            assert not (met and edible[ghost] > 0)
            caught |= bool(met)
        assert reward == pill + 2 * power + 5 * eaten - caught
        assert last == (caught or not (after.pills | after.power).any())
        deaths, meals, powers = deaths + caught, meals + eaten, powers + int(power)
    assert deaths > 10
    assert meals > 2
    assert powers > 10


def _greedy_share(ghost_greed):
    """Share of the moves of ghosts that are best for them, of those where another one would not have been."""
    best = total = 0
    for before, after, *_ in _pairs(ghost_greed):
        for ghost, (old, new) in enumerate(zip(before.ghosts, after.ghosts, strict=True)):
            if (after.trail[ghost] == new).all():
                continue
            options = [old + move for move in MOVES[1:]]
            options = [x for x in options if not before.walls[tuple(x)] and (x != before.trail[ghost]).any()]
            sign = -1 if before.edible[ghost] > 0 else 1
            costs = [sign * np.abs(x - before.agent).sum() for x in options]
            if len(set(costs)) > 1:
                total += 1
                best += sign * np.abs(new - before.agent).sum() == min(costs)
    assert total > 50
    return best / total


def test_greedy_ghosts_chase_and_when_edible_flee():
    assert _greedy_share(1.0) == 1.0
    assert 0.6 < _greedy_share(0.5) < 0.95


def test_rewards_add_up_to_the_pills_eaten():
    states, timesteps, _, alive = _game(0.5)
    checked = 0
    for env in range(alive.shape[1]):
        length = alive[:, env].sum()
        start, end = (jax.tree.map(lambda x, t=t, e=env: x[t, e], states) for t in (0, length))
        if (start.power == end.power).all():
            died = timesteps.step_type[length - 1, env] == LAST
            assert timesteps.reward[:length, env].sum() == start.pills.sum() - end.pills.sum() - died
            checked += 1
    assert checked > 10


RING = np.ones((5, 5), bool)
RING[1:-1, 1:-1] = False
RING[2, 2] = True


@functools.cache
def _ring():
    environment = _make(height=5, width=5, num_ghosts=1, num_power_pills=1, power_steps=3, death_reward=-1.0).environment
    return environment, jax.jit(environment.step)


def _ring_state(agent, ghost, trail, edible=0, power=None, pills=True):
    """A corridor around one pillar, in which a ghost can only go on. A pill in the corner (3, 3), unless `pills` is false."""
    cell = lambda *x: jnp.array(x, jnp.int32)  # noqa: E731
    no_cells = jnp.zeros((5, 5), bool)
    return PacmanState(
        walls=jnp.asarray(RING),
        pills=no_cells.at[3, 3].set(pills),
        power=no_cells.at[power].set(True) if power else no_cells,
        agent=cell(*agent),
        ghosts=cell(*ghost)[None],
        trail=cell(*trail)[None],
        home=cell(3, 1)[None],
        edible=cell(edible),
    )


@pytest.mark.parametrize(
    ("agent", "ghost", "trail", "action", "caught"),
    [
        ((1, 1), (1, 2), (1, 3), RIGHT, True),  # they swap cells
        ((1, 1), (1, 2), (1, 3), STAY, True),  # it comes to the agent
        ((1, 1), (1, 3), (2, 3), RIGHT, True),  # they meet between
        ((1, 1), (1, 2), (1, 3), LEFT, True),  # a wall is no way out
        ((1, 1), (1, 2), (1, 3), DOWN, False),  # it follows
        ((1, 1), (1, 2), (1, 1), RIGHT, False),  # the agent follows
    ],
)
def test_collisions(agent, ghost, trail, action, caught):
    _, step = _ring()
    _, timestep = step(_ring_state(agent, ghost, trail), action, jax.random.key(0))
    assert bool(timestep.last()) == caught
    assert float(timestep.reward) == (-1 if caught else 0)
    assert float(timestep.discount) == (0 if caught else 1)
    state, timestep = step(_ring_state(agent, ghost, trail, edible=1), action, jax.random.key(0))
    assert not bool(timestep.last())
    assert float(timestep.reward) == (5 if caught else 0)
    assert (state.ghosts[0].tolist() == [3, 1]) == caught


def test_a_power_pill_works_at_once_and_for_its_time():
    _, step = _ring()
    state, timestep = step(_ring_state((1, 1), (1, 2), (1, 3), power=(1, 2)), RIGHT, jax.random.key(0))
    assert float(timestep.reward) == 2 + 5
    assert state.edible.tolist() == [0]  # who was eaten comes back dangerous

    state, timestep = step(_ring_state((1, 1), (3, 3), (3, 2), power=(1, 2)), RIGHT, jax.random.key(0))
    seen = []
    for t in range(4):
        seen.append(int(timestep.observation[..., CHANNELS.index("edible")].max()))
        dangerous = bool(timestep.observation[..., CHANNELS.index("ghost")].any())
        assert dangerous == (seen[-1] == 0)
        # Around the ring, away from the ghost that follows.
        state, timestep = step(state, (LEFT, DOWN, DOWN, RIGHT)[t], jax.random.key(t))
    assert seen == [255, 170, 85, 0]


def test_the_last_pill_ends_the_episode_and_the_time_limit_does_not():
    _, step = _ring()
    _, timestep = step(_ring_state((3, 2), (1, 2), (1, 3)), RIGHT, jax.random.key(0))
    assert bool(timestep.last())
    assert float(timestep.reward) == 1
    assert float(timestep.discount) == 0
    _, timestep = step(_ring_state((3, 2), (1, 2), (1, 3), power=(1, 1)), RIGHT, jax.random.key(0))
    assert not bool(timestep.last())  # a power pill is left

    environment = _make(num_ghosts=0, max_steps=3)
    state, timestep = jax.jit(environment.reset)(jax.random.key(0))
    step = jax.jit(environment.step)
    for t in range(3):
        assert not bool(timestep.last())
        state, timestep = step(state, STAY, jax.random.key(t))
    assert bool(timestep.last())
    assert float(timestep.discount) == 1


def test_planes_show_the_state():
    environment, step = _ring()
    state, timestep = step(_ring_state((3, 1), (1, 2), (1, 3), power=(1, 1)), STAY, jax.random.key(0))
    planes = {name: np.argwhere(timestep.observation[..., i]).tolist() for i, name in enumerate(CHANNELS)}
    assert planes.pop("wall") == np.argwhere(RING).tolist()
    assert planes == {
        "pill": [[3, 3]],
        "power": [[1, 1]],
        "agent": [[3, 1]],
        "ghost": [[1, 1]],
        "edible": [],
        "trail": [[1, 2]],
    }
    assert set(np.unique(timestep.observation)) == {0, 255}
    picture = np.asarray(jax.jit(environment.render)(state))
    assert picture.shape == (80, 80, 3)
    assert picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 5


def test_a_copy_of_a_state_can_be_stepped_with_other_keys():
    environment = _make(ghost_greed=0.0).environment
    state, _ = jax.jit(environment.reset)(jax.random.key(5))
    assert not any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(state))
    step = jax.jit(jax.vmap(environment.step, in_axes=(None, None, 0)))
    first, _ = step(state, jnp.int32(STAY), jax.random.split(jax.random.key(0), 64))
    again, _ = step(state, jnp.int32(STAY), jax.random.split(jax.random.key(0), 64))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert len({ghosts.tobytes() for ghosts in np.asarray(first.ghosts)}) > 1
    assert len({agent.tobytes() for agent in np.asarray(first.agent)}) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"height": 8},
        {"width": 3},
        {"num_ghosts": -2},
        {"ghost_greed": 1.5},
        {"power_steps": 0},
        {"num_mazes": -1},
        {"num_mazes": 9000, "first_maze": 2000},
        {"max_steps": -1},
        {"height": 5, "width": 5, "num_ghosts": 4},
        {"height": 5, "width": 5, "num_ghosts": 1, "num_mazes": 100},  # there are two
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options):
    with pytest.raises(ConfigError) as error:
        _make(**options)
    assert "\n" not in str(error.value)
