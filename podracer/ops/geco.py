"""GECO: a constraint on a loss in place of a fixed weight. Rezende & Viola 2018, "Taming VAEs", https://arxiv.org/abs/1810.00597.

`minimise L0 subject to C <= bound` becomes `L0 + multiplier * violation`, with the relative violation `(C - bound) / bound`:
neither the penalty nor the rate of its multiplier depends on the scale of `C`. `penalty` belongs in a loss, `dual_step` after
its gradient step, once for all devices. A weight of `multiplier / bound` on `C` gives the same gradient as the penalty.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from podracer.types import Array


class GecoState(NamedTuple):
    """log_multiplier: `[]` float32. average: `[]` float32, of violations. started: `[]` bool, whether there were any."""

    log_multiplier: Array
    average: Array
    started: Array


def init_geco(multiplier: float = 1.0) -> GecoState:
    """Before any data, with a multiplier above 0."""
    return GecoState(jnp.float32(math.log(multiplier)), jnp.float32(0), jnp.bool_(False))


def relative_violation(value: Array, bound: float) -> Array:
    """`(value - bound) / bound`, `[]` float32: above 0 where `value <= bound` does not hold. The bound is above 0."""
    return (value - bound) / bound


def penalty(state: GecoState, violation: Array, decay: float = 0.99) -> Array:
    """`multiplier * violation`, `[]` float32, with the value of the moving average and the gradient of this batch.

    Args:
      state: carries no gradient.
      violation: `[]` float32, of this batch; gradients flow here alone.
      decay: of the average, as in `dual_step`.
    """
    state = jax.lax.stop_gradient(state)
    average = _average(state, violation, decay)
    return jnp.exp(state.log_multiplier) * (violation + jax.lax.stop_gradient(average - violation))


def dual_step(
    state: GecoState,
    violation: Array,
    rate: float = 0.01,
    decay: float = 0.99,
    limits: tuple[float, float] = (1e-6, 1e6),
    axis_name: str | None = None,
) -> GecoState:
    """The multiplier grows while the constraint is violated: `log_multiplier += rate * average`. No gradients flow.

    Args:
      state: before it.
      violation: `[]` float32, of this device's batch.
      rate: of the logarithm; slower than the loss responds, or the two oscillate.
      decay: of the moving average of violations, whose first value is that of the first batch.
      limits: of the multiplier.
      axis_name: devices whose violations are averaged, so that all keep the same multiplier.
    """
    violation = jax.lax.stop_gradient(violation)
    if axis_name is not None:
        violation = jax.lax.pmean(violation, axis_name)
    average = _average(state, violation, decay)
    log_multiplier = jnp.clip(state.log_multiplier + rate * average, math.log(limits[0]), math.log(limits[1]))
    return GecoState(log_multiplier, average, jnp.bool_(True))


def _average(state: GecoState, violation: Array, decay: float) -> Array:
    return jnp.where(state.started, decay * state.average + (1 - decay) * violation, violation)
