"""What MuZero learns towards: search policies, search values and n-step returns. No gradient flows here."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from podracer.ops import episodes
from podracer.ops.returns import value_targets
from podracer.types import Array, Metrics, TimeStep


class Targets(NamedTuple):
    """For T+1 time steps.

    weights: `[T+1, B, N]` float32, search policies; actions: those they weigh, `[T+1, B, N, ...]`, or empty for all.
    value: `[T+1, B]` float32, n-step returns; search_value: `[T+1, B]`, what they bootstrap
    from, of searches or (`bootstrap=target`) of the target network.
    searched: `[T+1, B]` float32, 1 where there was a search; known: 1 where `value` is more than the network's own guess.
    metrics: of this computation.
    """

    weights: Array
    actions: Any
    value: Array
    search_value: Array
    searched: Array
    known: Array
    metrics: Metrics


def make_targets(
    timestep: TimeStep, weights: Array, actions: Any, search_value: Array, searched: Array, discount: float, num_steps: int
) -> Targets:
    """Targets from searches. Schrittwieser et al. 2020, eq. 7 and appendix G.

    `z_t = sum_{i < n} gamma^i u_{t+i+1} + gamma^n nu_{t+n}`; a window that would leave the unroll bootstraps at its end, one
    that meets the end of an episode bootstraps there: from the search value at a truncation, and from nothing at a termination.

    Args:
      timestep: `[T+1, B, ...]`.
      weights, actions, search_value, searched: as in `Targets`.
      discount: the agent's own. num_steps: `n`.
    """
    import rlax  # costs more to import than jax itself

    steps = episodes.transitions(timestep, discount)
    # The pair LAST -> FIRST has mask 0: the return that arrives at LAST bootstraps there and goes no further.
    lambda_t = jnp.concatenate([steps.mask_tm1[1:], jnp.ones_like(steps.mask_tm1[:1])])
    returns = jax.vmap(rlax.n_step_bootstrapped_returns, in_axes=(1, 1, 1, None, 1), out_axes=1)(
        steps.r_t, steps.discount_t, search_value[1:], num_steps, lambda_t
    )
    value = value_targets(timestep, search_value, returns)
    terminated = timestep.last() & (timestep.discount == 0)
    known = jnp.maximum(searched, terminated.astype(jnp.float32))
    known = known.at[:-1].set(1.0)
    error = jnp.abs(search_value - value)[:-1]
    metrics = {
        "search_value": jnp.mean(search_value[:-1]),
        "value_target": jnp.mean(value[:-1]),
        "search_error": episodes.masked_mean(error, steps.mask_tm1),
        "search_entropy": -jnp.mean(jnp.sum(weights * jnp.log(jnp.maximum(weights, 1e-9)), axis=-1)[:-1]),
    }
    return jax.lax.stop_gradient(Targets(weights, actions, value, search_value, searched, known, metrics))
