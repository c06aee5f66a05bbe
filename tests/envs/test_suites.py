"""What the contract cannot know of catch, gridworlds, gymnax and pgx."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import registry
from podracer.config import ConfigError
from podracer.envs import gridworld
from podracer.envs.catch import CatchConfig
from podracer.envs.gridworld import GridworldConfig
from podracer.types import LAST

pytestmark = pytest.mark.quick


def _episode(environment, actions, seed=0):
    """Time steps of one episode without autoreset; `actions` from the observations so far."""
    reset, step = jax.jit(environment.reset), jax.jit(environment.step)
    state, timestep = reset(jax.random.key(seed))
    stream = [timestep]
    while int(stream[-1].step_type) != LAST:
        state, timestep = step(state, jnp.int32(actions(stream, state)), jax.random.key(len(stream)))
        stream.append(timestep)
    return stream, state


@pytest.mark.parametrize("seed", range(4))
def test_catch_pays_for_the_column_of_the_ball(seed):
    environment = registry.env("catch").make(CatchConfig(rows=6, columns=5))

    def chase(stream, state):
        return 1 + np.sign(int(state.ball_column) - int(state.paddle))

    caught, _ = _episode(environment, chase, seed)
    assert [float(ts.reward) for ts in caught] == [0.0] * 5 + [1.0]
    missed, _ = _episode(environment, lambda stream, state: 0 if int(state.ball_column) > 1 else 2, seed)
    assert float(missed[-1].reward) == -1.0
    assert all(1 <= ts.observation.sum() <= 2 for ts in caught + missed)


def test_a_board_without_room_is_refused_in_one_line():
    for make in (lambda: CatchConfig(rows=1), lambda: GridworldConfig(size=3), lambda: GridworldConfig(view=4)):
        with pytest.raises(ConfigError):
            make()
    with pytest.raises(ConfigError, match="view"):
        registry.env("gridworld/tmaze").make(GridworldConfig(size=5, view=9))


def _reachable(cells, start):
    """Cells that can be walked to, by breadth-first search; the door counts as open once the key was reached."""
    while True:
        seen, queue = {start}, [start]
        for row, column in queue:
            for d_row, d_column in gridworld.MOVES:
                cell = (row + d_row, column + d_column)
                if cells[cell] not in (gridworld.WALL, gridworld.DOOR) and cell not in seen:
                    seen.add(cell)
                    queue.append(cell)
        if any(cells[cell] == gridworld.KEY for cell in seen) and (cells == gridworld.DOOR).any():
            cells = np.where(cells == gridworld.DOOR, gridworld.EMPTY, cells)
            continue
        return seen


@pytest.mark.parametrize("task", ["empty", "four_rooms", "key_door"])
@pytest.mark.parametrize("size", [5, 9])
def test_every_layout_can_be_solved(task, size):
    environment = registry.env(f"gridworld/{task}").make(GridworldConfig(size=size))
    state, _ = jax.jit(jax.vmap(environment.reset))(jax.random.split(jax.random.key(1), 64))
    boards = set()
    for cells, position in zip(np.asarray(state[0].cells), np.asarray(state[0].position), strict=True):
        start = tuple(position.tolist())
        goal = tuple(int(x[0]) for x in np.nonzero(cells == gridworld.GOAL))
        assert (cells == gridworld.GOAL).sum() == 1
        assert cells[start] == gridworld.EMPTY
        assert goal in _reachable(cells, start)
        boards.add(cells.tobytes())
    # Four rooms of size 5 have eight free cells, and so no more than eight boards.
    assert len(boards) >= (8 if size == 5 else 9)


@pytest.mark.parametrize("seed", range(4))
def test_the_cue_of_the_tmaze_is_gone_at_the_junction_and_right(seed):
    environment = registry.env("gridworld/tmaze").make()
    size = GridworldConfig().size
    up, down = gridworld.CHANNELS.index("cue_up"), gridworld.CHANNELS.index("cue_down")

    def follow(stream, state):
        if len(stream) < size:
            return 1
        return 0 if stream[0].observation[..., up].any() else 2

    stream, _ = _episode(environment, follow, seed)
    assert float(stream[-1].reward) == 1.0
    assert not stream[size - 1].observation[..., [up, down]].any()
    wrong, _ = _episode(environment, lambda s, state: 2 - follow(s, state) if len(s) >= size else 1, seed)
    assert float(wrong[-1].reward) == -1.0


def test_cartpole_truncates_at_500_and_terminates_on_a_fall():
    environment = registry.env("gymnax/CartPole-v1").make()

    def balance(stream, state):
        x, x_dot, theta, theta_dot = np.asarray(stream[-1].observation)
        return theta + 0.25 * theta_dot + 0.02 * x + 0.05 * x_dot > 0

    stream, _ = _episode(environment, balance)
    assert len(stream) == 501
    assert float(stream[-1].discount) == 1.0
    assert sum(float(ts.reward) for ts in stream) == 500
    fallen, _ = _episode(environment, lambda stream, state: 1)
    assert len(fallen) < 30
    assert float(fallen[-1].discount) == 0.0
    assert abs(fallen[-1].observation[2]) > 12 * np.pi / 180  # its own last observation


def test_two_sides_of_a_game_in_one_stream():
    pytest.importorskip("pgx", reason="pip install 'podracer-rl[pgx]'")
    environment = registry.env("pgx/tic_tac_toe").make()
    moves = [0, 3, 1, 4, 2]  # the first player fills the top row
    stream, _ = _episode(environment, lambda stream, state: moves[len(stream) - 1])
    assert [float(ts.discount) for ts in stream] == [1, -1, -1, -1, -1, 0]
    assert [float(ts.reward) for ts in stream] == [0, 0, 0, 0, 0, 1]
    values = [0.0]
    for timestep in reversed(stream[1:]):
        values.insert(0, float(timestep.reward + timestep.discount * values[0]))
    assert values[:-1] == [1, -1, 1, -1, 1]  # the first player wins, the second loses, seen by whoever moves
    legal = np.asarray([ts.observation["legal_actions"] for ts in stream[:-1]])
    assert not any(legal[t, moves[:t]].any() for t in range(5))


def test_games_begin_after_random_moves():
    pytest.importorskip("pgx", reason="pip install 'podracer-rl[pgx]'")
    suite = registry.suite("pgx")
    reset = jax.jit(jax.vmap(suite.make("tic_tac_toe", suite.config(random_plies=3)).reset))
    state, timestep = reset(jax.random.split(jax.random.key(0), 2000))
    stones = (np.asarray(timestep.observation["board"]) > 0).sum((1, 2, 3))
    assert np.bincount(stones) == pytest.approx(500 * np.ones(4), rel=0.2)
    firsts = np.asarray(timestep.observation["board"])[stones == 1, :, :, 1].reshape(-1, 9)
    assert (firsts > 0).sum(0).min() > 20  # any cell
    assert np.all(timestep.first())
    assert np.all(np.asarray(timestep.observation["legal_actions"]).sum(1) == 9 - stones)
    np.testing.assert_array_equal(state._step_count, stones)


def test_an_illegal_move_loses():
    pytest.importorskip("pgx", reason="pip install 'podracer-rl[pgx]'")
    stream, _ = _episode(registry.env("pgx/tic_tac_toe").make(), lambda stream, state: 0)
    assert [float(ts.reward) for ts in stream] == [0, 0, -1]
    assert float(stream[-1].discount) == 0
    assert registry.env("pgx/go_9x9").make().spec.num_players == 2


@pytest.mark.parametrize("name", ["catch", "gridworld/key_door", "gymnax/CartPole-v1", "gymnax/Breakout-MinAtar"])
def test_pictures(name):
    vector = registry.env(name).make().vectorize(2, 0)
    state, _ = jax.jit(vector.reset)(jax.random.split(jax.random.key(0), 2))
    picture = vector.render(state)
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[-1] == 3
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1
