"""Cutting a batch into columns and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import types
from podracer.ops import columns

pytestmark = pytest.mark.quick


def _trajectory(num, offset=0.0):
    def ramp(shape):
        return offset + jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape)

    timestep = types.TimeStep(
        step_type=jnp.ones((3, num), jnp.int32), reward=ramp((3, num)), discount=ramp((3, num)), observation=ramp((3, num, 2))
    )
    output = types.ActorOutput(action=ramp((2, num)), log_prob=ramp((2, num)))
    return types.Trajectory(
        timestep=timestep, actor_output=output, actor_state=ramp((num, 4)), targets=(ramp((2, num)), jnp.float32(7))
    )


def test_split_cuts_columns_and_hands_scalars_to_every_part():
    whole = _trajectory(6)
    parts = columns.split(whole, 3)
    for i in range(3):
        part = jax.tree.map(lambda x, i=i: x[i], parts)
        inside = slice(2 * i, 2 * i + 2)
        np.testing.assert_array_equal(part.timestep.observation, whole.timestep.observation[:, inside])
        np.testing.assert_array_equal(part.actor_output.action, whole.actor_output.action[:, inside])
        np.testing.assert_array_equal(part.actor_state, whole.actor_state[inside])
        np.testing.assert_array_equal(part.targets[0], whole.targets[0][:, inside])
        assert part.targets[1] == 7


def test_concatenate_and_batch_major():
    both = columns.concatenate(_trajectory(2), _trajectory(3, offset=100.0))
    assert both.timestep.observation.shape == (3, 5, 2)
    np.testing.assert_array_equal(both.actor_state[2:], _trajectory(3, offset=100.0).actor_state)
    turned = columns.batch_major(both)
    assert turned.timestep.observation.shape == (5, 3, 2)
    jax.tree.map(np.testing.assert_array_equal, columns.batch_major(turned), both)
