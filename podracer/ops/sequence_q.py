"""Q-learning on sequences that may hold several episodes: n-step targets, priorities and exploration of R2D2.

"Recurrent Experience Replay in Distributed Reinforcement Learning", Kapturowski et al. 2019,
https://openreview.net/forum?id=r1lyTjAqYX.
"""

import jax
import jax.numpy as jnp

from podracer.ops.episodes import Transitions
from podracer.types import Array, Key


def double_q_targets(steps: Transitions, selector_q_t: Array, target_q_t: Array, num_steps: int, rescale: bool = True) -> Array:
    """n-step targets of double Q-learning, of one column: callers vmap.

    `Y_t = h(sum_{m < n} gamma^m r_{t+m+1} + gamma^n h^-1(q'(s_{t+n}, argmax_a q(s_{t+n}, a))))`, with `q` of the online and
    `q'` of the target network and `h(x) = sign(x) (sqrt(|x| + 1) - 1) + 0.001 x` (Kapturowski et al. 2019, section 2.3). A
    return that meets the end of an episode bootstraps there, from the LAST observation after a truncation and from nothing
    after a termination; one that meets the end of the sequence bootstraps at the last of its `T+1` time steps.

    Args:
      steps: rewards, discounts, mask, `[T]`.
      selector_q_t: `[T, A]` float32, at the arrivals, time steps `1..T`: the greedy action is taken of these. Illegal actions
        are masked already (`torso.mask_logits`).
      target_q_t: `[T, A]` float32, at the same time steps: the value of that action.
      num_steps: `n`.
      rescale: whether the networks' values are `h` of returns; False takes them as they are.

    Returns:
      `[T]` float32, rescaled as the networks' values are, 0 at masked steps. No gradients flow.
    """
    import rlax  # costs more to import than jax itself

    pair = rlax.SIGNED_HYPERBOLIC_PAIR if rescale else rlax.IDENTITY_PAIR
    v_t = jnp.take_along_axis(target_q_t, jnp.argmax(selector_q_t, axis=-1)[:, None], axis=-1)[:, 0]
    # rlax.transformed_n_step_q_learning knows no mask: the discount of 0 between LAST and FIRST would keep returns within their
    # episode, but would also cut off the value at a truncation. A lambda of 0 where LAST arrives bootstraps right there.
    lambda_t = jnp.concatenate([steps.mask_tm1[1:], jnp.ones_like(steps.mask_tm1[:1])])
    targets = rlax.transformed_n_step_returns(pair, steps.r_t, steps.discount_t, v_t, num_steps, lambda_t)
    return jax.lax.stop_gradient(targets * steps.mask_tm1)


def td_errors(q_tm1: Array, action_tm1: Array, target_tm1: Array, mask_tm1: Array) -> Array:
    """`Y_t - q(s_t, a_t)`, exactly 0 at masked steps. Gradients flow into `q_tm1` alone.

    Args:
      q_tm1: `[..., A]` float32. action_tm1: `[...]` int32, taken there. target_tm1, mask_tm1: `[...]` float32.
    """
    taken = jnp.take_along_axis(q_tm1, action_tm1[..., None], axis=-1)[..., 0]
    return jax.lax.stop_gradient(mask_tm1) * (jax.lax.stop_gradient(target_tm1) - taken)


def sequence_priority(error: Array, mask: Array, mix: float = 0.9) -> Array:
    """`eta max_t |delta_t| + (1 - eta) mean_t |delta_t|` of each sequence (Kapturowski et al. 2019, section 2.3).

    Args:
      error: `[T, ...]` float32, TD errors. mask: `[T, ...]` float32, 1 where there is one.
      mix: `eta`, in [0, 1].

    Returns:
      `[...]` float32, 0 where everything is masked. No gradients flow.
    """
    size = jnp.abs(error) * mask
    mean = jnp.sum(size, axis=0) / jnp.maximum(jnp.sum(mask, axis=0), 1.0)
    return jax.lax.stop_gradient(mix * jnp.max(size, axis=0) + (1 - mix) * mean)


def episode_epsilon(epsilon_tm1: Array, first: Array, key: Key, base: float = 0.4, alpha: float = 7.0) -> Array:
    """The share of random actions, `base^(1 + alpha u)`, with `u` drawn uniformly from [0, 1] where an episode starts.

    Actor `i` of `N` in Ape-X has `u = i / (N - 1)` for good (Horgan et al. 2018, https://arxiv.org/abs/1803.00933). An
    environment here does not know its number, so every episode draws anew: the mixture over many episodes is the same.

    Args:
      epsilon_tm1: `[B]` float32, of the time step before. first: `[B]` bool, an episode starts.
      key: `[B]` PRNG keys.
      base, alpha: constants.

    Returns:
      `[B]` float32.
    """
    u = jax.vmap(jax.random.uniform)(key)
    return jnp.where(first, base ** (1.0 + alpha * u), epsilon_tm1)


def epsilon_greedy(q: Array, legal: Array | None, epsilon: Array) -> Array:
    """Log-probabilities `[..., A]` float32 of a random legal action with probability `epsilon`, else of the greedy one.

    Args:
      q: `[..., A]` float32; illegal actions are masked already.
      legal: `[..., A]` bool, or None where every action is legal.
      epsilon: `[...]` float32.
    """
    legal = jnp.ones(q.shape, jnp.bool) if legal is None else legal
    uniform = legal / jnp.maximum(jnp.sum(legal, axis=-1, keepdims=True), 1)
    greedy = jax.nn.one_hot(jnp.argmax(q, axis=-1), q.shape[-1])
    return jnp.log(epsilon[..., None] * uniform + (1 - epsilon[..., None]) * greedy)
