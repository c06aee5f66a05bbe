"""Sokoban's levels by a solver, and its moves by a reference, both in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import registry
from podracer.config import ConfigError
from podracer.envs.boards import MOVES
from podracer.envs.sokoban import SokobanConfig, SokobanState
from podracer.types import LAST

pytestmark = pytest.mark.quick

UP, RIGHT, DOWN, LEFT = range(4)


def _make(task="mini", **options):
    return registry.env(f"sokoban/{task}").make(SokobanConfig(**options))


@functools.cache
def _reset(task, num_levels, first_level):
    return jax.jit(jax.vmap(_make(task, num_levels=num_levels, first_level=first_level).reset))


def _levels(task, num_levels=0, first_level=0, seed=0):
    """256 episodes' first states."""
    state, _ = _reset(task, num_levels, first_level)(jax.random.split(jax.random.key(seed), 256))
    return jax.device_get(state[0])


def _state(text):
    """A level in the usual letters: # wall, . target, $ box, * box on target, @ player."""
    board = np.array([list(line) for line in text.split()])
    return SokobanState(
        walls=jnp.asarray(board == "#"),
        targets=jnp.asarray((board == ".") | (board == "*")),
        boxes=jnp.asarray((board == "$") | (board == "*")),
        player=jnp.asarray(np.argwhere(board == "@")[0], jnp.int32),
    )


def _move(floor, boxes, player, move):
    """The rules, on sets of cells (row, column): boxes and player after a move."""
    ahead = (player[0] + move[0], player[1] + move[1])
    if ahead not in floor:
        return boxes, player
    if ahead in boxes:
        beyond = (ahead[0] + move[0], ahead[1] + move[1])
        if beyond not in floor or beyond in boxes:
            return boxes, player
        boxes = boxes - {ahead} | {beyond}
    return boxes, ahead


def _cells(board):
    return frozenset(tuple(x) for x in np.argwhere(board).tolist())


def _solution_length(state):
    """Moves of a shortest solution, or None, by breadth-first search over all positions."""
    floor, targets, moves = _cells(~state.walls), _cells(state.targets), MOVES.tolist()
    start = (_cells(state.boxes), tuple(np.asarray(state.player).tolist()))
    seen, layer, length = {start}, [start], 0
    while layer:
        if any(boxes == targets for boxes, _ in layer):
            return length
        following = {_move(floor, *position, move) for position in layer for move in moves} - seen
        seen |= following
        layer, length = list(following), length + 1
    return None


def test_every_level_can_be_solved():
    levels = _levels("mini")
    lengths = [_solution_length(jax.tree.map(lambda x, i=i: x[i], levels)) for i in range(60)]
    assert None not in lengths
    assert min(lengths) > 0
    assert np.mean(lengths) > 8


def test_the_solver_knows_what_cannot_be_solved():
    level = "####### #@....# #.....# #.....# #..$..# #.....# #######".replace(".", "_")
    open_level = level.replace("#_____# #######", "#____.# #######")
    assert _solution_length(_state(open_level)) > 0
    corner = open_level.replace("#@____#", "#@___$#").replace("#__$__#", "#_____#")
    assert _solution_length(_state(corner)) is None


@pytest.mark.parametrize(("task", "num_boxes"), [("mini", 2), ("full", 4)])
def test_levels_are_rooms_with_boxes_off_targets(task, num_boxes):
    levels = _levels(task)
    size = levels.walls.shape[-1]
    floor = (~levels.walls).sum((1, 2))
    share = 1 - floor / (size - 2) ** 2
    assert (share <= 0.3).all()
    assert (share > 0.3 - 4 / (size - 2) ** 2).all()
    assert (levels.targets.sum((1, 2)) == num_boxes).all()
    assert (levels.boxes.sum((1, 2)) == num_boxes).all()
    assert not (levels.boxes & levels.walls).any()
    assert not (levels.targets & levels.walls).any()
    off = (levels.boxes & ~levels.targets).sum((1, 2))
    assert (off > 0).all()
    assert (off == num_boxes).mean() > 0.75
    for walls, boxes, player in zip(levels.walls, levels.boxes, levels.player, strict=True):
        assert walls[[0, -1]].all()
        assert walls[:, [0, -1]].all()
        assert not walls[tuple(player)]
        assert not boxes[tuple(player)]
        free, reached = _cells(~walls), {tuple(player.tolist())}
        while more := {(r + dr, c + dc) for r, c in reached for dr, dc in MOVES.tolist()} & free - reached:
            reached |= more
        assert reached == free
    assert len({level.tobytes() for level in levels.walls}) > 200


def test_fixed_levels_repeat_and_training_ones_are_not_among_the_test_ones():
    def keys(levels):
        boards = zip(levels.walls, levels.targets, levels.boxes, levels.player, strict=True)
        return {b"".join(part.tobytes() for part in level) for level in boards}

    train = keys(_levels("mini", 16, 0))
    assert len(train) == 16
    assert train == keys(_levels("mini", 16, 0, seed=1))
    test = keys(_levels("mini", 1000, 16))
    assert len(test) > 200
    assert not train & test


def test_random_walks_agree_with_the_reference():
    num_envs, num_steps = 64, 100
    environment = _make("full").environment
    first = jax.tree.map(lambda x: x[:num_envs], _levels("full", seed=2))

    @jax.jit
    def play(state, key):
        actions = jax.random.randint(jax.random.fold_in(key, 1), (num_steps, num_envs), 0, 4)
        keys = jax.random.split(key, num_envs)

        def step(carry, action):
            carry, timestep = jax.vmap(environment.step)(carry, action, keys)
            return carry, (carry, timestep)

        _, (states, timesteps) = jax.lax.scan(step, state, actions)
        return states, timesteps, actions

    states, timesteps, actions = jax.device_get(play(first, jax.random.key(2)))
    pushes = 0
    for env in range(num_envs):
        floor, targets, boxes = (_cells(x[env]) for x in (~first.walls, first.targets, first.boxes))
        player = tuple(first.player[env].tolist())
        for t in range(num_steps):
            old = boxes
            boxes, player = _move(floor, boxes, player, MOVES[actions[t, env]].tolist())
            pushes += boxes != old
            assert _cells(states.boxes[t, env]) == boxes
            assert tuple(states.player[t, env].tolist()) == player
            reward = -0.1 + len(boxes & targets) - len(old & targets) + 10 * (boxes == targets)
            assert timesteps.reward[t, env] == pytest.approx(reward, abs=1e-5)
            assert (timesteps.step_type[t, env] == LAST) == (boxes == targets)
            shown = timesteps.observation[t, env]
            assert _cells(shown[..., 0] == 0) == floor
            for plane, cells in enumerate((targets, boxes, {player}), 1):
                assert _cells(shown[..., plane] == 255) == cells
            if boxes == targets:
                break
    assert pushes > 100


@functools.cache
def _step(reward):
    return jax.jit(_make("mini", reward=reward).environment.step)


@pytest.mark.parametrize(
    ("row", "moved", "shaped", "sparse", "last"),
    [
        ("#@$_._#", True, -0.1, 0, False),  # onto nothing
        ("#@$.__#", True, 0.9, 0, False),  # onto a target
        ("#@*__.#", True, -1.1, 0, False),  # off a target
        ("#@*.__#", True, -0.1, 0, False),  # from one to the next
        ("#@$$_.#", False, -0.1, 0, False),  # two boxes
        ("#_.@$##", False, -0.1, 0, False),  # a box at a wall
        ("#.___@#", False, -0.1, 0, False),  # a wall
    ],
)
def test_pushes(row, moved, shaped, sparse, last):
    level = _state(f"####### #____.# #_____# {row} #_____# #____$# #######")
    for option, reward in (("shaped", shaped), ("sparse", sparse)):
        state, timestep = _step(option)(level, RIGHT, jax.random.key(0))
        assert (int(state.player[1]) == int(level.player[1]) + 1) == moved
        assert bool((state.boxes == level.boxes).all()) != moved
        assert float(timestep.reward) == pytest.approx(reward)
        assert bool(timestep.last()) == last
        _, timestep = _step(option)(level, LEFT, jax.random.key(0))
        assert float(timestep.reward) == pytest.approx(-0.1 if option == "shaped" else 0)  # no pulls


def test_the_last_box_ends_the_episode():
    level = _state("####### #____*# #_____# #@$.__# #_____# #____*# #######")
    for option, reward in (("shaped", 10.9), ("sparse", 1.0)):
        _, timestep = _step(option)(level, RIGHT, jax.random.key(0))
        assert bool(timestep.last())
        assert float(timestep.discount) == 0
        assert float(timestep.reward) == pytest.approx(reward)


def test_a_dead_end_goes_on_until_the_time_limit():
    environment = _make("mini", max_steps=4)
    state = (_state("####### #___@$# #_____# #_..__# #_____# #____$# #######"), jnp.int32(0))
    step = jax.jit(environment.step)
    for t in range(4):
        state, timestep = step(state, (LEFT, LEFT, RIGHT, RIGHT)[t], jax.random.key(t))
        assert bool(timestep.last()) == (t == 3)
        assert float(timestep.discount) == 1


def test_a_step_needs_no_chance_and_a_state_holds_no_key():
    environment = _make("mini").environment
    state, _ = jax.jit(environment.reset)(jax.random.key(5))
    assert not any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(state))
    again, _ = jax.jit(environment.reset)(jax.random.key(5))
    jax.tree.map(np.testing.assert_array_equal, state, again)
    one, other = (_step("shaped")(state, UP, jax.random.key(seed)) for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_picture():
    environment = _make("mini")
    state = (_state("####### #____*# #_____# #@$.__# #_____# #_____# #######"), jnp.int32(0))
    picture = np.asarray(jax.jit(environment.render)(state))
    assert picture.shape == (112, 112, 3)
    assert picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 6


@pytest.mark.parametrize(
    "options",
    [
        {"size": 4},
        {"num_boxes": -1},
        {"walls": 1.0},
        {"reward": "dense"},
        {"first_level": -1},
        {"num_levels": 2**31 - 1, "first_level": 1},
        {"size": 5, "num_boxes": 6},
        {"walls": 0.9},
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options):
    with pytest.raises(ConfigError) as error:
        _make(**options)
    assert "\n" not in str(error.value)
