"""AutoReset and TimeLimit against a hand-written simulation of one environment."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs
from hypothesis import given, settings
from hypothesis import strategies as st

from podracer import types
from podracer.environment import AutoReset, JaxEnvironment, TimeLimit, Unsupported
from podracer.types import FIRST, LAST, MID, Array, EnvironmentSpec, Key, TimeStep

pytestmark = pytest.mark.quick


class _State(NamedTuple):
    count: Any
    noise: Array
    key: Key  # a PRNG key as a leaf must survive


class _Die(JaxEnvironment):
    """Action 1 terminates. The observation is the number of steps and a number drawn at reset."""

    spec = EnvironmentSpec(
        name="die", observation=specs.Array((2,), np.float32), action=specs.DiscreteArray(2), frames_per_step=3
    )

    def reset(self, key: Key) -> tuple[_State, TimeStep]:
        state = _State(count=0, noise=jax.random.uniform(key), key=key)  # a Python number on purpose
        return state, types.restart(self._observe(state))

    def step(self, state: _State, action: Array, key: Key) -> tuple[_State, TimeStep]:
        state = state._replace(count=state.count + 1)
        return state, types.transition(10.0 + action, self._observe(state), terminated=action == 1)

    def _observe(self, state: _State) -> Array:
        return jnp.stack([jnp.asarray(state.count, jnp.float32), state.noise])

    def render(self, state: _State) -> Array:
        return jnp.broadcast_to(jnp.asarray(state.count, jnp.uint8), (2, 2, 3))


def _keys(num_envs: int, t: int) -> Key:
    return jax.vmap(jax.random.fold_in, (0, None))(jax.random.split(jax.random.key(7), num_envs), t)


def _expected(actions: np.ndarray, limit: int) -> list[tuple[int, float, float, int, int]]:
    """(step_type, reward, discount, count, step whose key drew the noise) of one environment, in plain Python."""
    out, count, born, ended = [(FIRST, 0.0, 1.0, 0, 0)], 0, 0, False
    for t, action in enumerate(actions, start=1):
        if ended:
            count, born, ended = 0, t, False
            out.append((FIRST, 0.0, 1.0, 0, born))
            continue
        count += 1
        ended = bool(action == 1 or count >= limit)
        out.append((LAST if ended else MID, 10.0 + action, 0.0 if action == 1 else 1.0, count, born))
    return out


_NUM_ENVS, _NUM_STEPS, _LIMIT = 40, 30, 5
_VECTOR = TimeLimit(_Die(), _LIMIT).vectorize(_NUM_ENVS, 0)
_reset, _step = jax.jit(_VECTOR.reset), jax.jit(_VECTOR.step)


@settings(max_examples=5, deadline=None, derandomize=True, database=None)
@given(rate=st.sampled_from([0.0, 0.01, 0.05, 0.5, 1.0]), seed=st.integers(0, 1000))
def test_autoreset_and_time_limit_against_plain_python(rate: float, seed: int) -> None:
    """Rates of death from none to all: no reset, a few and all of them on one step go different ways."""
    actions = np.random.default_rng(seed).binomial(1, rate, (_NUM_STEPS, _NUM_ENVS)).astype(np.int32)
    state, timestep = _reset(_keys(_NUM_ENVS, 0))
    stream = [timestep]
    for t in range(_NUM_STEPS):
        state, timestep = _step(state, actions[t], _keys(_NUM_ENVS, t + 1))
        stream.append(timestep)
    seen = jax.tree.map(lambda *x: np.stack(x), *stream)
    noise = np.stack([jax.vmap(jax.random.uniform)(_keys(_NUM_ENVS, t)) for t in range(_NUM_STEPS + 1)])
    for env in range(_NUM_ENVS):
        kind, reward, discount, count, born = map(np.array, zip(*_expected(actions[:, env], _LIMIT), strict=True))
        np.testing.assert_array_equal(seen.step_type[:, env], kind)
        np.testing.assert_array_equal(seen.reward[:, env], reward)
        np.testing.assert_array_equal(seen.discount[:, env], discount)
        np.testing.assert_array_equal(seen.observation[:, env, 0], count)
        np.testing.assert_array_equal(seen.observation[:, env, 1], noise[born, env])


@pytest.mark.parametrize("num_envs", [1, 3, 17])
def test_everyone_who_finished_is_reset(num_envs: int) -> None:
    """Batches below and above the sixteenth that is reset at once."""
    vector = AutoReset(_Die())
    step = jax.jit(vector.step)
    state, _ = jax.jit(vector.reset)(_keys(num_envs, 0))
    for dead in range(num_envs + 1):
        action = (jnp.arange(num_envs) < dead).astype(jnp.int32)
        after, timestep = step(state, action, _keys(num_envs, 1))
        _, timestep = step(after, action, _keys(num_envs, 2))
        np.testing.assert_array_equal(timestep.first(), action == 1)


def test_a_population_of_seeds_can_be_vmapped() -> None:
    vector = AutoReset(_Die())
    keys = jnp.stack([_keys(4, 0), _keys(4, 1)])
    step = jax.jit(jax.vmap(vector.step))
    state, _ = jax.jit(jax.vmap(vector.reset))(keys)
    action = jnp.array([[1, 0, 0, 1], [0, 0, 0, 0]])
    state, timestep = step(state, action, keys)
    state, timestep = step(state, action, keys)
    np.testing.assert_array_equal(timestep.first(), action == 1)


def test_time_limit_keeps_the_discount_and_termination_wins() -> None:
    environment = TimeLimit(_Die(), 1)
    state, _ = environment.reset(jax.random.key(0))
    _, truncated = environment.step(state, jnp.int32(0), jax.random.key(0))
    _, terminated = environment.step(state, jnp.int32(1), jax.random.key(0))
    assert int(truncated.step_type) == int(terminated.step_type) == LAST
    assert (float(truncated.discount), float(terminated.discount)) == (1.0, 0.0)
    assert environment.spec is _Die.spec


def test_a_time_limit_below_one_step_is_refused() -> None:
    with pytest.raises(Unsupported, match="at least 1"):
        TimeLimit(_Die(), 0)


def test_render_shows_the_first_environment() -> None:
    vector = TimeLimit(_Die(), 9).vectorize(2, 0)
    state, _ = vector.reset(_keys(2, 0))
    state, _ = vector.step(state, jnp.zeros(2, jnp.int32), _keys(2, 1))
    np.testing.assert_array_equal(vector.render(state), np.ones((2, 2, 3), np.uint8))
