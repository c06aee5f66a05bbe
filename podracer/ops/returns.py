"""Multi-step off-policy returns over unrolls that may hold several episodes. Those over `[T]` are unbatched: callers vmap."""

import chex
import jax
import jax.numpy as jnp

from podracer.ops.episodes import Transitions
from podracer.types import Array, TimeStep


def retrace_returns(steps: Transitions, q_t: Array, v_t: Array, rho_t: Array, lambda_: float = 1.0) -> Array:
    """Retrace returns `G_t = r + g (V(s') + c' (G' - q(s', a')))`, `c = lambda min(1, rho)`, cut where episodes end.

    "Safe and efficient off-policy reinforcement learning", Munos et al. 2016, https://arxiv.org/abs/1606.02647; with `q` from a
    model it is the estimator of Muesli (Hessel et al. 2021, section 4.4), with `v` in the place of `q` that of V-trace.

    Args:
      steps: rewards, discounts, mask, `[T]`.
      q_t: `[T+1]` float32, `q(s_t, a_t)` of the actions that were taken; entries 0 and T are not used.
      v_t: `[T+1]` float32, expected values `E_{A ~ pi} q(s_t, A)`; entry 0 is not used.
      rho_t: `[T+1]` float32, ratios `pi(a_t|s_t) / mu(a_t|s_t)`; entries 0 and T are not used.
      lambda_: in [0, 1]; 0 gives one-step returns.

    Returns:
      `[T]` float32, 0 at masked steps. No gradients flow.
    """
    import rlax  # costs more to import than jax itself

    chex.assert_equal_shape([q_t[:-1], v_t[:-1], rho_t[:-1], steps.r_t])
    # A step from LAST has mask 0: no trace passes it, and the return before it bootstraps from the LAST observation.
    c_t = lambda_ * jnp.minimum(1.0, rho_t[1:-1]) * steps.mask_tm1[1:]
    returns = rlax.general_off_policy_returns_from_q_and_v(q_t[1:-1], v_t[1:], steps.r_t, steps.discount_t, c_t)
    return jax.lax.stop_gradient(returns)


def corrected_state_value(v_tm1: Array, q_tm1: Array, returns: Array, rho_tm1: Array) -> Array:
    """A state's value from the return of an action that another policy took: `V(s) + min(1, rho) (G - q(s, a))`.

    `G(s, a)` estimates `q(s, a)`; as a target of `v(s)` it would be biased towards the behaviour policy. All `[...]` float32.
    No gradients flow.
    """
    return jax.lax.stop_gradient(v_tm1 + jnp.minimum(1.0, rho_tm1) * (returns - q_tm1))


def value_targets(timestep: TimeStep, own: Array, returns: Array) -> Array:
    """What the values of all time steps should be: returns where a transition follows, and where none does `own`.

    Args:
      timestep: step types and discounts `[T+1, B]`.
      own: `[T+1, B]` float32, for LAST time steps, and for the last one of the unroll.
      returns: `[T, B]` float32.

    Returns:
      `[T+1, B]` float32, 0 where an episode has terminated. No gradients flow.
    """
    ends = timestep.last()
    value = jnp.concatenate([jnp.where(ends[:-1], own[:-1], returns), own[-1:]])
    return jax.lax.stop_gradient(jnp.where(ends & (timestep.discount == 0), 0.0, value))
