"""The moving second moment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer.ops import moments

pytestmark = pytest.mark.quick


def test_after_one_batch_it_is_that_batchs_mean_square_over_all_devices():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=(4, 5)).astype(np.float32)
    mask = np.ones((4, 5), np.float32)
    mask[0] = 0
    start = moments.init_second_moment()
    whole = moments.update_second_moment(start, jnp.array(values), jnp.array(mask), 0.99)
    np.testing.assert_allclose(moments.debiased(whole), np.mean(values[1:] ** 2), rtol=1e-5)  # uncentred
    sharded = jax.vmap(lambda v, m: moments.update_second_moment(start, v, m, 0.99, "i"), axis_name="i")(values, mask)
    np.testing.assert_allclose(sharded.average, np.full(4, whole.average), rtol=1e-5)


def test_later_batches_are_averaged_with_exact_debiasing():
    state, squares = moments.init_second_moment(), []
    for scale in (1.0, 2.0, 5.0):
        state = moments.update_second_moment(state, jnp.full((3,), scale), jnp.ones(3), 0.9)
        squares.append(scale**2)
    weights = np.array([0.9**2, 0.9, 1.0])
    np.testing.assert_allclose(moments.debiased(state), np.sum(weights * squares) / weights.sum(), rtol=1e-5)
    np.testing.assert_allclose(moments.inverse_scale(state), 1 / np.sqrt(np.sum(weights * squares) / weights.sum()), rtol=1e-5)
