"""A moving second moment, uncentred and debiased, for the scale of advantages."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from podracer.ops.episodes import global_masked_mean
from podracer.types import Array


class SecondMoment(NamedTuple):
    """average: `[]` float32, biased towards its start at 0. decay_product: `[]` float32, what is left of that start."""

    average: Array
    decay_product: Array


def init_second_moment() -> SecondMoment:
    """Before any data. A scale must not be taken of it."""
    return SecondMoment(average=jnp.float32(0), decay_product=jnp.float32(1))


def update_second_moment(
    state: SecondMoment, values: Array, mask: Array, decay: float, axis_name: str | None = None
) -> SecondMoment:
    """Moves towards the mean square of `values` `[...]` over the ones of `mask`, on all devices of `axis_name`.

    "Muesli", Hessel et al. 2021, section 4.5. No gradients flow.
    """
    mean = jax.lax.stop_gradient(global_masked_mean(jnp.square(values), mask, axis_name))
    return SecondMoment(average=decay * state.average + (1 - decay) * mean, decay_product=state.decay_product * decay)


def debiased(state: SecondMoment) -> Array:
    """The second moment with the influence of its start taken out: after one update, the mean square of that batch."""
    return state.average / (1 - state.decay_product)


def inverse_scale(state: SecondMoment, epsilon: float = 1e-12) -> Array:
    """`1 / sqrt(second moment + epsilon)`, `[]` float32."""
    return jax.lax.rsqrt(debiased(state) + epsilon)
