"""Where episodes end inside an unroll: which transitions are real, and what their rewards and discounts are.

An unroll may hold `... LAST, FIRST ...`. The pair is no transition: nothing may be learned from it, and no return may flow
through it. The return of the transition before it bootstraps from the LAST observation's own value: fully after a
truncation (discount > 0), not at all after a termination (discount 0).

Two facts make every estimator obey this without special cases, once `mask_tm1` is at hand:
* Retrace and other returns `G_t = r + g (V(s') + c (G' - q'))`: multiply the trace coefficients by the mask.
* V-trace: multiply the importance ratios `rho_tm1` by the mask. A ratio of 0 makes the TD error, the trace and the policy
  gradient advantage of the pair exactly 0, so what precedes it sees `v(s')` and no more.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from podracer.types import Array, TimeStep


class Transitions(NamedTuple):
    """The `T` pairs of neighbours among `T+1` time steps, `[T, ...]` float32 each.

    r_t: reward of the arrival, 0 where the pair is no transition.
    discount_t: agent discount times the environment's, 0 where the pair is no transition and after termination.
    mask_tm1: 1 where the pair is a transition, 0 for LAST -> FIRST, and LAST -> LAST in the filler of `ops.overlap`.
    """

    r_t: Array
    discount_t: Array
    mask_tm1: Array


def transitions(timestep: TimeStep, discount: float) -> Transitions:
    """Rewards, discounts and mask of an unroll.

    Args:
      timestep: leaves `[T+1, ...]`; `timestep[t+1]` is what `action[t]` led to.
      discount: the agent's own discount, in [0, 1].

    Returns:
      `Transitions`, `[T, ...]`. No gradients flow.
    """
    chex.assert_equal_shape([timestep.step_type, timestep.reward, timestep.discount])
    mask_tm1 = jnp.logical_not(timestep.first()[1:] | timestep.last()[:-1]).astype(jnp.float32)
    result = Transitions(
        r_t=timestep.reward[1:] * mask_tm1, discount_t=discount * timestep.discount[1:] * mask_tm1, mask_tm1=mask_tm1
    )
    return jax.lax.stop_gradient(result)


def masked_mean(values: Array, mask: Array) -> Array:
    """`sum(values * mask) / values.size`: the mean of a loss in which masked entries count as 0.

    Divides by a constant, not by the number of ones: the mean over devices of their means is then the mean of the whole
    batch, however episodes' ends are spread over devices. Masked entries may be anything finite.

    Args:
      values: `[...]` float32. mask: of a shape that broadcasts to it.
    """
    return jnp.mean(values * mask)


def global_masked_mean(values: Array, mask: Array, axis_name: str | None) -> Array:
    """The mean of `values` over the ones of `mask`, over all devices of `axis_name`; 0 where there are none.

    For statistics (moving averages), not for losses: it needs the counts of all devices.
    """
    total, count = jnp.sum(values * mask), jnp.sum(jnp.broadcast_to(mask, values.shape))
    if axis_name is not None:
        total, count = jax.lax.psum((total, count), axis_name)
    return total / jnp.maximum(count, 1.0)
