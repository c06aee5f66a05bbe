"""Surrogate losses for policies that learn from data of another policy. Elementwise over `[...]`, to be minimised."""

import jax
import jax.numpy as jnp

from podracer.types import Array


def truncated_policy_gradient_loss(log_prob: Array, behaviour_log_prob: Array, advantages: Array) -> Array:
    """`-stop(min(1, pi / mu) * adv) * log pi`: the policy gradient with truncated importance weights.

    Where the ratio is below 1 its gradient is that of `-ratio * adv`; where it is above, the weight is 1 and the gradient
    does not vanish, as it would if the ratio itself were clipped. "Muesli", Hessel et al. 2021, section 4.1.

    Args:
      log_prob: `[...]` float32, log pi of the action taken; gradients flow here alone.
      behaviour_log_prob: `[...]` float32, log mu of it. advantages: `[...]` float32.
    """
    weight = jnp.minimum(1.0, jnp.exp(log_prob - behaviour_log_prob))
    return -jax.lax.stop_gradient(weight * advantages) * log_prob


def ppo_clip_loss(log_prob: Array, behaviour_log_prob: Array, advantages: Array, epsilon: float) -> Array:
    """`-min(ratio adv, clip(ratio, 1 - eps, 1 + eps) adv)`. Schulman et al. 2017, eq. 7, https://arxiv.org/abs/1707.06347."""
    ratio = jnp.exp(log_prob - jax.lax.stop_gradient(behaviour_log_prob))
    advantages = jax.lax.stop_gradient(advantages)
    return -jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - epsilon, 1 + epsilon) * advantages)


def beta_loo_loss(
    log_policy: Array, action: Array, behaviour_log_prob: Array, returns: Array, q_values: Array, max_beta: float
) -> Array:
    """The beta leave-one-out policy gradient, which takes the values of the other actions from `q_values`.

    Its gradient is that of `-(beta (G - q(a)) pi(a) + sum_b q(b) pi(b))`, `beta = min(max_beta, 1 / mu(a))`.
    "The Reactor", Gruslys et al. 2018, section 3.1, https://arxiv.org/abs/1704.04651.

    Args:
      log_policy: `[..., A]` float32 log-probabilities; gradients flow here alone.
      action: `[...]` int32. behaviour_log_prob: `[...]` float32, log mu(a). returns: `[...]` float32.
      q_values: `[..., A]` float32, on the scale (and with the baseline) of `returns`.
    """
    policy = jnp.exp(log_policy)
    one_hot = jax.nn.one_hot(action, log_policy.shape[-1])
    beta = jnp.minimum(max_beta, jnp.exp(-behaviour_log_prob))
    correction = beta * (returns - jnp.sum(one_hot * q_values, axis=-1))
    weights = jax.lax.stop_gradient(one_hot * correction[..., None] + q_values)
    return -jnp.sum(weights * policy, axis=-1)
