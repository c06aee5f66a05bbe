"""Scalars as distributions over bins."""

import jax.numpy as jnp
import numpy as np
import pytest

from podracer.nets.heads import Bins, BinsConfig

pytestmark = pytest.mark.quick


@pytest.mark.parametrize(("num_bins", "limit", "largest"), [(601, 300.0, 50_000.0), (601, 30.0, 800.0), (41, 3.0, 14.0)])
def test_a_scalar_survives_the_bins(num_bins, limit, largest):
    """To one part in a thousand; nearer to 0, where float32 cannot invert `h` that well, to 3e-4."""
    bins = Bins(BinsConfig(num_bins, limit))
    positive = np.concatenate([[0.0], np.geomspace(1e-3, largest, 2000)]).astype(np.float32)
    scalars = jnp.asarray(np.concatenate([-positive, positive]))
    probabilities = bins.probabilities(scalars)
    np.testing.assert_allclose(jnp.sum(probabilities, axis=-1), 1, rtol=1e-5)
    assert int(jnp.max(jnp.sum(probabilities > 0, axis=-1))) == 2
    back = bins.scalar(jnp.log(probabilities))
    error = np.abs(back - scalars)
    assert np.all(error < np.maximum(1e-3 * np.abs(scalars), 3e-4))


def test_bins_are_even_in_the_transformed_scalar_and_clip():
    """`h(x) = sign(x) (sqrt(|x| + 1) - 1) + 0.001 x`: that of 15 is 3.015, and with bins at 0, 1, 2, 3 that is the last one."""
    bins = Bins(BinsConfig(num_bins=7, limit=3.0))
    transformed = lambda x: np.sign(x) * (np.sqrt(np.abs(x) + 1) - 1) + 0.001 * x  # noqa: E731
    scalars = np.array([-100.0, -2.0, 0.0, 0.7, 5.0, 15.0, 100.0])
    mean_bin = np.asarray(bins.probabilities(jnp.asarray(scalars))) @ np.arange(-3, 4)
    np.testing.assert_allclose(mean_bin, np.clip(transformed(scalars), -3, 3), atol=1e-5)
