"""Previous actions and rewards: what acting step by step sees is what an unroll sees, and FIRST sees neither."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from podracer.nets import policies, previous
from podracer.types import FIRST, LAST, MID, EnvironmentSpec, TimeStep

pytestmark = pytest.mark.quick

T, B = 6, 2
DISCRETE = EnvironmentSpec(name="d", observation=specs.Array((1,), np.float32), action=specs.DiscreteArray(3))
CONTINUOUS = EnvironmentSpec(
    name="c", observation=specs.Array((1,), np.float32), action=specs.BoundedArray((2,), np.float32, -2.0, 2.0)
)


def unrolled(spec):
    rng = np.random.default_rng(0)
    discrete, continuous = rng.integers(0, 3, (T, B)).astype(np.int32), rng.uniform(-2, 2, (T, B, 2)).astype(np.float32)
    actions = discrete if spec.discrete else continuous
    step_type = np.array([[MID, FIRST], [MID, MID], [LAST, MID], [FIRST, LAST], [MID, FIRST], [MID, LAST], [LAST, FIRST]])
    timestep = TimeStep(
        step_type=step_type.astype(np.int32),
        reward=rng.normal(size=(T + 1, B)).astype(np.float32),  # even at FIRST, where no environment gives one
        discount=np.ones((T + 1, B), np.float32),
        observation=(),
    )
    return timestep, actions


@pytest.mark.parametrize("spec", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_inputs_are_those_of_acting_and_zero_at_first(spec):
    policy, (timestep, actions) = policies.make_policy(spec), unrolled(spec)
    action_tm1 = previous.initial_action(spec, B)
    assert action_tm1.shape == (B, *spec.action.shape)
    assert action_tm1.dtype == actions.dtype
    got = previous.action_input(policy, previous.unroll(action_tm1, actions), timestep)
    rewards = previous.reward_input(timestep)
    remembered = action_tm1
    for t in range(T + 1):
        now = jax.tree.map(lambda x, t=t: x[t], timestep)
        np.testing.assert_array_equal(got[t], previous.action_input(policy, remembered, now))
        for b in range(B):
            if now.step_type[b] == FIRST:
                assert not np.any(got[t, b])
                assert rewards[t, b] == 0
            else:
                np.testing.assert_allclose(got[t, b], policy.encode(jnp.asarray(remembered[b])), atol=1e-6)
                assert rewards[t, b] == timestep.reward[t, b]
        remembered = actions[t] if t < T else remembered


def test_a_discrete_action_is_one_hot():
    policy, (timestep, actions) = policies.make_policy(DISCRETE), unrolled(DISCRETE)
    got = previous.action_input(policy, previous.unroll(previous.initial_action(DISCRETE, B), actions), timestep)
    np.testing.assert_array_equal(got[1, 0], np.eye(3)[actions[0, 0]])
