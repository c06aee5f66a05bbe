"""Replay by priority: what an unroll's priority is, and the weights that make up for drawing by it."""

import jax
import jax.numpy as jnp

from podracer.types import Array, Trajectory


def sequence_priority(error: Array, mask: Array, mix: float = 0.9) -> Array:
    """`eta max_t |delta_t| + (1 - eta) mean_t |delta_t|` of each sequence (Kapturowski et al. 2019, section 2.3).

    Args:
      error: `[T, ...]` float32, for example TD errors. mask: `[T, ...]` float32, 1 where there is one.
      mix: `eta`, in [0, 1].

    Returns:
      `[...]` float32, 0 where everything is masked. No gradients flow.
    """
    size = jnp.abs(error) * mask
    mean = jnp.sum(size, axis=0) / jnp.maximum(jnp.sum(mask, axis=0), 1.0)
    return jax.lax.stop_gradient(mix * jnp.max(size, axis=0) + (1 - mix) * mean)


def importance_weight(trajectory: Trajectory, exponent: float) -> Array:
    """`importance ** beta` of columns, `[B]` float32, or `[]` 1 where nothing was drawn by priority.

    Schaul et al. 2016, section 3.4, https://arxiv.org/abs/1511.05952, not normalised: nothing in a loss may depend on how a
    batch lies over devices, and at `beta` 1 the mean is unbiased.
    """
    if isinstance(trajectory.importance, tuple):
        return jnp.float32(1)
    weight: Array = trajectory.importance**exponent
    return weight
