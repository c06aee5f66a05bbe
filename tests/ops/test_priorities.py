"""Priorities of sequences, and the weights of what was drawn by them."""

import jax.numpy as jnp
import numpy as np
import pytest

from podracer.ops import priorities
from podracer.types import Trajectory

pytestmark = pytest.mark.quick


def test_priorities_mix_the_largest_and_the_mean_error():
    error = jnp.array([[1.0, -9.0], [-3.0, 5.0], [100.0, 7.0]])
    mask = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(priorities.sequence_priority(error, mask, 0.9), [0.9 * 3 + 0.1 * 2, 0.0], rtol=1e-6)
    np.testing.assert_allclose(priorities.sequence_priority(error, mask, 0.0), [2.0, 0.0])


def test_without_importance_every_column_counts_the_same():
    online = Trajectory(timestep=(), actor_output=(), actor_state=())
    assert priorities.importance_weight(online, 0.5) == 1
    drawn = online.replace(importance=jnp.array([4.0, 1.0, 0.25]))
    np.testing.assert_allclose(priorities.importance_weight(drawn, 0.5), [2.0, 1.0, 0.5])
    np.testing.assert_array_equal(priorities.importance_weight(drawn, 0.0), [1, 1, 1])
