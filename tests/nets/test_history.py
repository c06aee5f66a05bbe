"""Histories: against a numpy reference on random streams, step by step and unrolled, and nothing crosses an episode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from podracer.nets import history
from podracer.nets.history import HistoryConfig
from podracer.types import EnvironmentSpec

pytestmark = pytest.mark.quick

T, B, A = 12, 3, 7  # a * 255 / 7 needs rounding
FRAMES = {
    "bytes": specs.BoundedArray((4, 3, 2), np.uint8, 0, 255, "frame"),
    "board": specs.Array((4, 3, 2), np.float32, "board"),
    "bits": specs.Array((4, 3, 2), bool, "bits"),
    "vector": specs.BoundedArray((6,), np.float32, 1.0, 200.0, "vector"),
    "ram": specs.Array((6,), np.uint8, "ram"),
}
CONFIGS = [HistoryConfig(3, False), HistoryConfig(3, True), HistoryConfig(1, True)]


def _spec(observation, action=None):
    return EnvironmentSpec(name="test", observation=observation, action=action or specs.DiscreteArray(A))


def _stream(frame, seed=0):
    """Frames `[T+1, B, ...]`, first `[T+1, B]` with several episodes a column, some starting late, and actions `[T, B]`."""
    rng = np.random.default_rng(seed)
    low, high = (0, 2) if frame.dtype == bool else (1, 200)
    frames = rng.integers(low, high, (T + 1, B, *frame.shape)).astype(frame.dtype)
    first = rng.random((T + 1, B)) < 0.3
    first[0] = [True, False, True]
    first[5], first[6] = True, [True, False, False]  # an episode of one time step
    return frames, first, rng.integers(0, A, (T, B)).astype(np.int32)


def _reference(config, frames, first, actions):
    """Loops over every output, time and slot."""
    byte, image = frames.dtype == np.uint8, frames.ndim == 5
    full = 255 if byte else 1
    rows = []
    for t in range(frames.shape[0]):
        columns = []
        for b in range(frames.shape[1]):
            begin = max([s for s in range(t + 1) if first[s, b]], default=0)
            parts, planes = [], []
            for s in range(t - config.length + 1, t + 1):
                parts.append(frames[s, b] if s >= begin else np.zeros_like(frames[0, b]))
                action = actions[s - 1, b] if s > begin else None
                if image:
                    value = 0 if action is None else action / A * full
                    planes.append(np.full((*frames.shape[2:4], 1), np.round(value) if byte else value))
                else:
                    planes.append(np.zeros(A) if action is None else np.eye(A)[action] * full)
            columns.append(np.concatenate(parts + planes * config.actions, axis=-1))
        rows.append(np.stack(columns))
    return np.stack(rows)


def _step_by_step(config, spec, frames, first, actions):
    state, stacked = history.initial_state(spec, config, B), []
    push, remember = jax.jit(history.push, static_argnums=0), jax.jit(history.remember, static_argnums=0)
    for t in range(first.shape[0]):
        out, state = push(config, state, jax.tree.map(lambda x, t=t: x[t], frames), first[t])
        stacked.append(out)
        if t < actions.shape[0]:
            state = remember(config, state, actions[t])
    return jax.tree.map(lambda *x: jnp.stack(x), *stacked), state


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("kind", FRAMES)
def test_histories_are_those_of_the_reference(kind, config):
    spec = _spec(FRAMES[kind])
    frames, first, actions = _stream(FRAMES[kind])
    expected = _reference(config, frames, first, actions)
    stacked, _ = _step_by_step(config, spec, frames, first, actions)
    np.testing.assert_allclose(stacked.astype(np.float32), expected.astype(np.float32), rtol=1e-6)

    state = history.initial_state(spec, config, B)
    unrolled = jax.jit(history.unroll, static_argnums=0)(config, state, frames, first, actions)
    np.testing.assert_array_equal(unrolled, stacked)
    assert unrolled.dtype == stacked.dtype

    seen = history.stacked_spec(spec, config).observation
    assert (seen.shape, seen.dtype) == (stacked.shape[2:], stacked.dtype)
    assert seen.name == FRAMES[kind].name
    for observation in np.asarray(stacked).reshape(-1, *seen.shape):
        seen.validate(observation)
    if kind in ("bytes", "ram"):
        assert stacked.dtype == np.uint8


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_second_unroll_goes_on_where_the_first_ended(config):
    """The state of a trajectory is of the middle of an episode, and its last time step is the first of the next."""
    spec = _spec(FRAMES["bytes"])
    frames, first, actions = _stream(FRAMES["bytes"])
    first[6:9] = False
    whole, _ = _step_by_step(config, spec, frames, first, actions)
    _, state = _step_by_step(config, spec, frames[:7], first[:7], actions[:7])  # before frame 7, action 6 remembered
    np.testing.assert_array_equal(history.unroll(config, state, frames[7:], first[7:], actions[7:]), whole[7:])


@pytest.mark.parametrize("kind", ["bytes", "vector"])
def test_nothing_crosses_the_start_of_an_episode(kind):
    config, spec = HistoryConfig(4, True), _spec(FRAMES[kind])
    frames, first, actions = _stream(FRAMES[kind])
    first[6:], first[6] = False, True
    state = history.initial_state(spec, config, B)
    unroll = jax.jit(history.unroll, static_argnums=0)
    before = unroll(config, state, frames, first, actions)

    other_frames, other_actions = frames.copy(), actions.copy()
    other_frames[:6] += 1
    other_actions[:6] = (actions[:6] + 1) % A  # action 5 leads out of the last time step of the first episode
    dirty = state.replace(frames=state.frames + 1, actions=~state.actions)
    after = unroll(config, dirty, other_frames, first, other_actions)
    np.testing.assert_array_equal(after[6:], before[6:])
    assert (np.asarray(after[:6] != before[:6]).reshape(6, B, -1)).any(axis=-1).all()
    # The control: with no FIRST there, it does cross.
    first[6] = False
    crossing = unroll(config, dirty, other_frames, first, other_actions) != unroll(config, state, frames, first, actions)
    assert crossing[6:9].any()


def test_dictionaries_pass_on_what_no_network_reads():
    legal = specs.Array((A,), bool)
    config, spec = HistoryConfig(2, True), _spec({"board": FRAMES["board"], "legal_actions": legal})
    frames, first, actions = _stream(FRAMES["board"])
    mask = np.random.default_rng(1).random((T + 1, B, A)) < 0.5
    observation = {"board": frames, "legal_actions": mask}
    stacked, _ = _step_by_step(config, spec, observation, first, actions)
    assert set(stacked) == {"board", "legal_actions"}
    np.testing.assert_array_equal(stacked["legal_actions"], mask)
    np.testing.assert_allclose(stacked["board"], _reference(config, frames, first, actions), rtol=1e-6)
    unrolled = history.unroll(config, history.initial_state(spec, config, B), observation, first, actions)
    jax.tree.map(np.testing.assert_array_equal, unrolled, stacked)
    seen = history.stacked_spec(spec, config).observation
    assert seen["board"].shape == (4, 3, 2 * 2 + 2)
    assert seen["legal_actions"] is legal


def test_length_one_is_the_observation_and_has_no_state():
    config = HistoryConfig()
    continuous = _spec({"a": FRAMES["vector"], "b": FRAMES["board"]}, specs.BoundedArray((2,), np.float32, -1, 1))
    frames, first, _ = _stream(FRAMES["vector"])
    observation = {"a": frames, "b": frames}
    state = history.initial_state(continuous, config, B)
    assert state == ()
    assert history.push(config, state, observation, first) == (observation, ())
    assert history.remember(config, state, np.zeros((B, 2))) == ()
    assert history.unroll(config, state, observation, first, np.zeros((T, B, 2))) is observation
    assert history.stacked_spec(continuous, config) is continuous


def test_continuous_actions_may_go_with_a_history_of_frames_alone():
    config, spec = HistoryConfig(3), _spec(FRAMES["vector"], specs.BoundedArray((2,), np.float32, -1, 1))
    frames, first, actions = _stream(FRAMES["vector"])
    state, continuous = history.initial_state(spec, config, B), np.zeros((T, B, 2), np.float32)
    np.testing.assert_array_equal(
        history.unroll(config, state, frames, first, continuous), _reference(config, frames, first, actions)
    )


@pytest.mark.parametrize(
    ("observation", "action", "config", "message"),
    [
        (FRAMES["vector"], specs.BoundedArray((2,), np.float32, -1, 1), HistoryConfig(1, True), "needs discrete actions"),
        (FRAMES["vector"], None, HistoryConfig(0), r"history\.length must be >= 1, not 0"),
        (specs.Array((3, 3), np.float32), None, HistoryConfig(2), "one vector"),
        (specs.DiscreteArray(9), None, HistoryConfig(2), "one vector"),
        ({"a": FRAMES["vector"], "b": FRAMES["vector"]}, None, HistoryConfig(2), r"has \['a', 'b'\]"),
    ],
)
def test_what_cannot_be_stacked_is_refused(observation, action, config, message):
    for call in (lambda s: history.stacked_spec(s, config), lambda s: history.initial_state(s, config, B)):
        with pytest.raises(ValueError, match=message) as error:
            call(_spec(observation, action))
        assert "\n" not in str(error.value)
