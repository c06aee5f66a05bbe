"""Optimizers of several agents."""

from typing import Literal

import jax.numpy as jnp
import optax

from podracer.types import Array


def remaining(num_updates: Array, decay_updates: int) -> Array:
    """What is left after `num_updates` `[]`: from 1 linearly to 0 at `decay_updates`, or 1 for ever where that is 0."""
    if not decay_updates:
        return jnp.float32(1)
    return jnp.clip(1.0 - num_updates / decay_updates, 0.0, 1.0)


def falling(learning_rate: float, decay_updates: int) -> optax.ScalarOrSchedule:
    """A learning rate that falls as `remaining` says."""
    return optax.linear_schedule(learning_rate, 0.0, decay_updates) if decay_updates else learning_rate


def clipped(
    kind: Literal["adam", "rmsprop"], learning_rate: float, epsilon: float, max_gradient_norm: float, decay_updates: int = 0
) -> optax.GradientTransformation:
    """Adam, or RMSProp with the decay 0.99 of A3C and IMPALA, of gradients whose global norm is clipped before. The rate is
    `falling`.
    """
    scale = {"adam": optax.scale_by_adam(eps=epsilon), "rmsprop": optax.scale_by_rms(decay=0.99, eps=epsilon)}[kind]
    rate = optax.scale_by_learning_rate(falling(learning_rate, decay_updates))
    return optax.chain(optax.clip_by_global_norm(max_gradient_norm), scale, rate)
