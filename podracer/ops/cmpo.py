"""Clipped MPO (CMPO) policies, exact and from samples. Hessel et al. 2021 (Muesli), section 4, https://arxiv.org/abs/2104.06159."""

import math

import chex
import jax
import jax.numpy as jnp

from podracer.types import Array


def cmpo_policy(prior: Array, advantages: Array, clip: float | None = 1.0) -> Array:
    """The CMPO policy, `prior * exp(clip(advantages)) / z`.

    Its total variation from `prior` is at most `tanh(clip / 2)`, whatever the advantages (Theorem 4.1).
    "Muesli", Hessel et al. 2021, eq. 7.

    Args:
      prior: `[..., A]` float32 probabilities; actions of probability 0 keep it.
      advantages: `[..., A]` float32, already divided by their scale: clipping comes after normalising.
      clip: `c`, or None for an MPO policy without bounds.

    Returns:
      `[..., A]` float32 probabilities. No gradients flow.
    """
    chex.assert_equal_shape([prior, advantages])
    logits = jnp.where(prior > 0, jnp.log(jnp.maximum(prior, 1e-30)) + clip_advantages(advantages, clip), -jnp.inf)
    return jax.lax.stop_gradient(jax.nn.softmax(logits, axis=-1))


def sampled_cmpo_weights(
    advantages: Array,
    clip: float | None = 1.0,
    z_init: float = 1.0,
    counts: Array | None = None,
    normalizer: Array | None = None,
) -> Array:
    """Weights of actions drawn from the prior, whose mean `mean_i w_i log pi(a_i)` estimates `sum_a pi_CMPO log pi`.

    Each weight is normalised by a leave-one-out estimate of `z`, `(z_init + sum_{k != i} exp(clip(adv_k))) / N`, which keeps
    it independent of its own sample. "Muesli", Hessel et al. 2021, eq. 11-12.

    Args:
      advantages: `[..., N]` float32, normalised advantages of actions drawn from the prior with replacement.
      clip: `c`, or None.
      z_init: the first guess of `z`.
      counts: `[..., N]` float32, how often each action was drawn (the number of samples is their sum); ones if None.
      normalizer: `[...]` float32, the true `z` where it is known (then nothing is estimated).

    Returns:
      `[..., N]` float32, the weight of ONE draw of each action. No gradients flow.
    """
    clipped = clip_advantages(advantages, clip)
    if normalizer is not None:
        return jax.lax.stop_gradient(jnp.exp(clipped) / normalizer[..., None])
    counts = jnp.ones_like(advantages) if counts is None else counts
    # Numerator and normaliser are scaled alike, so that unclipped advantages do not overflow.
    shift = jnp.maximum(jnp.max(clipped, axis=-1, keepdims=True), math.log(z_init))
    weights = jnp.exp(clipped - shift)
    others = jnp.sum(counts * weights, axis=-1, keepdims=True) - jnp.where(counts > 0, weights, 0.0)
    num_samples = jnp.sum(counts, axis=-1, keepdims=True)
    leave_one_out = (z_init * jnp.exp(-shift) + others) / num_samples
    return jax.lax.stop_gradient(weights / jnp.maximum(leave_one_out, 1e-30))


def clip_advantages(advantages: Array, clip: float | None) -> Array:
    """`advantages` limited to [-clip, clip] on both sides; unchanged where `clip` is None."""
    return advantages if clip is None else jnp.clip(advantages, -clip, clip)
