"""impala: what its loss may not look at, and how it evaluates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from podracer import config, registry, types
from podracer.agents.impala.agent import Impala
from podracer.types import FIRST, LAST, MID, Mode

pytestmark = pytest.mark.quick


@functools.cache
def make(**overrides):
    spec = registry.env("catch").make().spec
    small = {"unroll_length": 5, "torso.hidden": (8,), "core.size": 8}
    return Impala(spec, config.override(Impala.Config(), {**small, **overrides}))


def unroll(step_types, discounts, seed=0):
    """A trajectory `[T+1, 2]` with made-up observations and the given ends of episodes."""
    keys = jax.random.split(jax.random.key(seed), 4)
    num = len(step_types)
    column = lambda values, dtype: jnp.tile(jnp.array(values, dtype)[:, None], (1, 2))  # noqa: E731
    timestep = types.TimeStep(
        step_type=column(step_types, jnp.int32),
        reward=jnp.where(column(step_types, jnp.int32) == FIRST, 0.0, jax.random.normal(keys[0], (num, 2))),
        discount=column(discounts, jnp.float32),
        observation=jax.random.normal(keys[1], (num, 2, 10, 5)),
    )
    output = types.ActorOutput(
        action=jax.random.randint(keys[2], (num - 1, 2), 0, 3), log_prob=-jnp.ones((num - 1, 2)), value=jnp.zeros((num - 1, 2))
    )
    return types.Trajectory(timestep=timestep, actor_output=output, actor_state=())


def gradient(agent, trajectory, state):
    trajectory = trajectory.replace(actor_state=agent.initial_actor_state(2))
    keys = jax.random.split(jax.random.key(0), 2)
    return compiled_gradient(agent)(state.params, state, trajectory, keys)[0]


@functools.cache
def compiled_gradient(agent):
    return jax.jit(jax.grad(agent.loss, has_aux=True))


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a, b)


def test_an_unroll_of_two_episodes_is_its_two_halves():
    agent = make()
    state = jax.jit(agent.init)(jax.random.key(0))
    whole = unroll([MID, MID, LAST, FIRST, MID, MID], [1, 1, 1, 1, 1, 1])
    part = lambda a, b: jax.tree.map(lambda x: x[a:b], whole.timestep)  # noqa: E731
    outputs = lambda a, b: jax.tree.map(lambda x: x[a:b], whole.actor_output)  # noqa: E731
    first = gradient(agent, whole.replace(timestep=part(0, 3), actor_output=outputs(0, 2)), state)
    second = gradient(agent, whole.replace(timestep=part(3, 6), actor_output=outputs(3, 5)), state)
    halves = jax.tree.map(lambda a, b: (2 * a + 2 * b) / 5, first, second)
    assert_same(gradient(agent, whole, state), halves)


def test_truncation_bootstraps_and_termination_does_not():
    agent = make()
    state = jax.jit(agent.init)(jax.random.key(0))
    steps = [FIRST, MID, MID, MID, LAST, FIRST]
    truncated = unroll(steps, [1, 1, 1, 1, 1, 1])
    terminated = unroll(steps, [1, 1, 1, 1, 0, 1])

    # Another observation at LAST changes its value, which only a truncated episode's returns contain.
    def moved(trajectory):
        timestep = trajectory.timestep
        return trajectory.replace(timestep=timestep.replace(observation=timestep.observation.at[4].add(1.0)))

    assert_same(gradient(agent, terminated, state), gradient(agent, moved(terminated), state))
    a, b = gradient(agent, truncated, state), gradient(agent, moved(truncated), state)
    assert max(float(jnp.max(jnp.abs(x - y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)) > 1e-4


def test_evaluation_is_greedy_on_request():
    agent = make(greedy_evaluation=True)
    params = jax.jit(agent.init)(jax.random.key(0)).params
    timestep = unroll([MID] * 6, [1] * 6).timestep
    timestep = jax.tree.map(lambda x: x[0], timestep)
    actions, act = set(), jax.jit(agent.act, static_argnums=4)
    for seed in range(5):
        keys = jax.random.split(jax.random.key(seed), 2)
        actions.add(tuple(np.asarray(act(params, (), timestep, keys, Mode.EVALUATE)[0].action)))
    assert len(actions) == 1


def test_a_value_network_of_its_own_is_for_feed_forward_agents():
    with pytest.raises(ValueError, match=r"set agent\.core\.kind=none"):
        make(**{"separate_value": True, "core.kind": "gru"})


def continuous_agent(**overrides):
    action = specs.BoundedArray((2,), np.float32, [-2.0, 0.0], [2.0, 1.0])
    spec = types.EnvironmentSpec(name="line", observation=specs.Array((10, 5), np.float32), action=action)
    return Impala(spec, config.override(Impala.Config(), {"torso.kind": "mlp", "torso.hidden": (8,), **overrides}))


def acted(agent, params, trajectory):
    """`trajectory` with what `agent` does at its time steps."""
    keys = jax.random.split(jax.random.key(1), trajectory.actor_output.log_prob.shape)
    timestep = jax.tree.map(lambda x: x[:-1], trajectory.timestep)
    act = jax.vmap(lambda t, k: agent.act(params, (), t, k, Mode.TRAIN)[0])
    return trajectory.replace(actor_output=act(timestep, keys))


def test_continuous_actions_lie_in_bounds_and_ratios_are_one_on_policy():
    agent = continuous_agent()
    state = jax.jit(agent.init)(jax.random.key(0))
    trajectory = acted(agent, state.params, unroll([FIRST, MID, LAST, FIRST, MID, MID], [1, 1, 0, 1, 1, 1]))
    action, log_prob = trajectory.actor_output.action, trajectory.actor_output.log_prob
    assert action.shape == (5, 2, 2)
    assert np.all((action >= np.array([-2.0, 0.0])) & (action <= np.array([2.0, 1.0])))
    parameters = agent._net.apply(state.params, trajectory.timestep, ())[0][0]
    np.testing.assert_allclose(agent._policy.log_prob(parameters[:-1], action), log_prob, atol=1e-4)
    assert all(np.any(x != 0) for x in jax.tree.leaves(gradient(agent, trajectory, state)["policy"]))


def test_greedy_evaluation_takes_the_middle_of_a_continuous_policy():
    agent = continuous_agent(greedy_evaluation=True)
    params = jax.jit(agent.init)(jax.random.key(0)).params
    timestep = jax.tree.map(lambda x: x[0], unroll([MID] * 6, [1] * 6).timestep)
    actions = [agent.act(params, (), timestep, jax.random.split(jax.random.key(i), 2), Mode.EVALUATE)[0].action for i in (0, 1)]
    np.testing.assert_array_equal(*actions)


@pytest.mark.parametrize("behaviour", [-1e3, 1e3])
def test_ratios_of_any_size_leave_gradients_finite(behaviour):
    agent = continuous_agent()
    state = jax.jit(agent.init)(jax.random.key(0))
    trajectory = acted(agent, state.params, unroll([FIRST, MID, LAST, FIRST, MID, MID], [1, 1, 0, 1, 1, 1]))
    output = trajectory.actor_output
    trajectory = trajectory.replace(actor_output=output.replace(log_prob=jnp.full_like(output.log_prob, behaviour)))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient(agent, trajectory, state)))
