"""Policies: what the outputs of a policy head mean, for discrete and for bounded continuous actions behind one interface.

A head gives `parameters [..., size]`, and everything else is a pure function of them. distrax is imported only where it is
needed: it is slow to import, and discrete actions do without.
"""

import abc
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer.nets import torso
from podracer.types import Array, EnvironmentSpec, Key


class Policy(abc.ABC):
    """How one kind of actions is parametrised. Immutable; everything is pure, and gradients flow into `parameters`."""

    size: int
    """`P`, outputs of a policy head."""
    encoded_size: int
    """`E`, width of an action as networks take it."""
    num_actions: int | None = None
    """`A` of discrete actions, None for continuous ones."""

    @abc.abstractmethod
    def mask(self, parameters: Array, observation: Any) -> Array:
        """Parameters `[..., P]` that leave no probability to actions that are illegal at `observation`."""

    @abc.abstractmethod
    def sample(self, parameters: Array, key: Key) -> Array:
        """One action from unbatched `parameters` `[P]` float32, as the environment takes it: int32, or float32 in bounds."""

    @abc.abstractmethod
    def mode(self, parameters: Array) -> Array:
        """The greedy action of `parameters` `[..., P]`, like those of `sample`."""

    def choose(self, parameters: Array, key: Key, greedy: bool = False) -> tuple[Array, Array]:
        """Actions for parameters `[B, P]` with keys `[B]`, samples or the greedy ones, and their `log_prob` `[B]`."""
        action = self.mode(parameters) if greedy else jax.vmap(self.sample)(parameters, key)
        return action, self.log_prob(parameters, action)

    @abc.abstractmethod
    def log_prob(self, parameters: Array, action: Array) -> Array:
        """`[..., P]` and actions as the environment takes them `[..., *action_shape]` to `[...]` float32.

        A function of these two alone, so the ratio of two policies is exact wherever the action has been since it was drawn.
        """

    @abc.abstractmethod
    def entropy(self, parameters: Array) -> Array:
        """`[..., P]` to `[...]` float32, of the distribution whose density `log_prob` gives. No sampling."""

    @abc.abstractmethod
    def kl(self, parameters: Array, other: Array) -> Array:
        """`KL(pi(parameters) || pi(other))`, `[...]` float32."""

    @abc.abstractmethod
    def encode(self, action: Array) -> Array:
        """Actions as networks take them, `[..., E]` float32: one-hot, or scaled to [-1, 1]."""


class Categorical(Policy):
    """Logits over `A` actions."""

    def __init__(self, num_actions: int):
        self.size = self.encoded_size = self.num_actions = num_actions

    def mask(self, parameters: Array, observation: Any) -> Array:
        return torso.mask_logits(parameters, observation)

    def sample(self, parameters: Array, key: Key) -> Array:
        return jax.random.categorical(key, parameters).astype(jnp.int32)

    def mode(self, parameters: Array) -> Array:
        return jnp.argmax(parameters, axis=-1).astype(jnp.int32)

    def log_prob(self, parameters: Array, action: Array) -> Array:
        return jnp.sum(jax.nn.log_softmax(parameters) * self.encode(action), axis=-1)

    def entropy(self, parameters: Array) -> Array:
        log_pi = jax.nn.log_softmax(parameters)
        return -jnp.sum(jnp.exp(log_pi) * log_pi, axis=-1)

    def kl(self, parameters: Array, other: Array) -> Array:
        log_p, log_q = jax.nn.log_softmax(parameters), jax.nn.log_softmax(other)
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)

    def encode(self, action: Array) -> Array:
        return jax.nn.one_hot(action, self.size)


class SquashedGaussian(Policy):
    """A diagonal Gaussian squashed by tanh into the bounds of the action. Haarnoja et al. 2018, appendix C (SAC),
    https://arxiv.org/abs/1801.01290.

    Parameters are the mean, before `mean_limit * tanh(x / mean_limit)`, and the standard deviation, before a softplus.
    Densities are those of actions scaled to [-1, 1]: ratios are what counts, and they do not depend on the scale.
    """

    def __init__(self, action: specs.Array, mean_limit: float = 3.0, min_std: float = 0.1):
        """Raises ValueError for actions that are not bounded floats.

        Args:
          mean_limit: of the Gaussian's mean. A policy gradient drives a mean without one (`inf`) to where tanh is 1 in float32:
            all actions are then the bound itself, whose density says nothing, and learning ends there.
          min_std: least standard deviation of the Gaussian.
        """
        bounded = isinstance(action, specs.BoundedArray) and np.issubdtype(action.dtype, np.floating)
        if not (bounded and np.all(np.isfinite(action.minimum)) and np.all(np.isfinite(action.maximum))):
            raise ValueError(f"actions must be discrete, or continuous with finite bounds, not {action}")
        self._mean_limit, self._min_std = mean_limit, min_std
        self._shape = tuple(action.shape)
        self._low = np.broadcast_to(action.minimum, self._shape).astype(np.float32)
        self._high = np.broadcast_to(action.maximum, self._shape).astype(np.float32)
        self.encoded_size = int(np.prod(self._shape, dtype=int))
        self.size = 2 * self.encoded_size

    def _gaussian(self, parameters: Array) -> Any:
        import distrax

        mean, raw = jnp.split(parameters, 2, axis=-1)
        if self._mean_limit < math.inf:
            mean = self._mean_limit * jnp.tanh(mean / self._mean_limit)
        return distrax.MultivariateNormalDiag(mean, jax.nn.softplus(raw) + self._min_std)

    def _squashed(self, parameters: Array) -> Any:
        import distrax

        return distrax.Transformed(self._gaussian(parameters), distrax.Block(distrax.Tanh(), 1))

    def _decode(self, encoded: Array) -> Array:
        shaped = encoded.reshape(*encoded.shape[:-1], *self._shape)
        return jnp.asarray(self._low) + (shaped + 1) / 2 * (self._high - self._low)

    def mask(self, parameters: Array, observation: Any) -> Array:
        del observation
        return parameters

    def sample(self, parameters: Array, key: Key) -> Array:
        return self._decode(self._squashed(parameters).sample(seed=key))

    def mode(self, parameters: Array) -> Array:
        """The action at the mean of the Gaussian; the density may be greater elsewhere."""
        return self._decode(jnp.tanh(self._gaussian(parameters).mean()))

    def log_prob(self, parameters: Array, action: Array) -> Array:
        return self._squashed(parameters).log_prob(self.encode(action))

    def entropy(self, parameters: Array, num_nodes: int = 32) -> Array:
        """That of the Gaussian plus the mean of `log tanh'(u)`, by Gauss-Hermite quadrature: there is no closed form."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
        gaussian = self._gaussian(parameters)
        u = gaussian.mean()[..., None] + gaussian.stddev()[..., None] * nodes.astype(np.float32)
        log_slope = 2 * (math.log(2) - u - jax.nn.softplus(-2 * u))
        squashing = jnp.sum(log_slope * (weights / weights.sum()).astype(np.float32), axis=(-2, -1))
        return gaussian.entropy() + squashing

    def kl(self, parameters: Array, other: Array) -> Array:
        # tanh is one-to-one, so squashing leaves the KL as it is.
        return self._gaussian(parameters).kl_divergence(self._gaussian(other))

    def encode(self, action: Array) -> Array:
        scaled = 2 * (action - self._low) / np.maximum(self._high - self._low, 1e-12) - 1
        # tanh reaches 1 in float32; its inverse must stay finite.
        leading = scaled.shape[: scaled.ndim - len(self._shape)]
        return jnp.clip(scaled, -1 + 1e-6, 1 - 1e-6).reshape(*leading, self.encoded_size)


def make_policy(spec: EnvironmentSpec) -> Policy:
    """The policy for the actions of `spec`. Raises ValueError for actions that are neither discrete nor bounded floats."""
    return Categorical(spec.num_actions) if spec.discrete else SquashedGaussian(spec.action)
