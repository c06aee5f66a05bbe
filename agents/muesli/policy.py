"""What Muesli asks of a policy beyond `podracer.nets.policies`: the prior of CMPO, its actions, and targets from them.

The prior is a mixture of the target network's policy, the behaviour policy and the uniform one; its actions, and the CMPO
weights over them, are what the losses learn from.
"""

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer.agents.muesli.config import MuesliConfig
from podracer.nets import policies, torso
from podracer.ops import cmpo
from podracer.types import Array, EnvironmentSpec, Key


class PolicyTarget(NamedTuple):
    """What a policy should become: `sum_i weights_i log pi(actions_i)` is to grow.

    weights: `[..., N]` float32. actions: `[..., N, *action_shape]`; for discrete actions empty, and `N` = `A`: all of them.
    entropy: `[...]` float32, `-sum_i weights_i log weights_i` of an exact target, else 0: the loss less this is a KL.
    """

    weights: Any
    actions: Any
    entropy: Any


class Candidates(NamedTuple):
    """Actions whose values the target network estimates at each state.

    encoded: as the model takes them, `[..., N, E]`, or `[A, E]` where they are the same everywhere.
    actions: `[..., N, *action_shape]`, or empty where they are all the discrete ones.
    value_weights: `[..., N]` float32 with sum 1; expectations over the prior policy are sums with these.
    kl_weights: `[..., N]` float32 with sum 1, of the sample that the CMPO target takes; equals the prior where exact.
    """

    encoded: Any
    actions: Any
    value_weights: Any
    kl_weights: Any


class Policy(policies.Policy):
    """A policy with a CMPO prior. Immutable; everything is pure."""

    @abc.abstractmethod
    def prior_log_prob(self, target: Array, behaviour: Array, observation: Any, action: Array) -> Array:
        """Log-probability of `action` under the mixture prior, `[...]`."""

    @abc.abstractmethod
    def candidates(self, target: Array, behaviour: Array, observation: Any, key: Key) -> Candidates:
        """Actions to evaluate at states `[T, B]`, `key` `[B]`."""

    @abc.abstractmethod
    def cmpo_target(self, candidates: Candidates, advantages: Array) -> PolicyTarget:
        """The CMPO target from normalised advantages `[..., N]` of the candidates."""

    @abc.abstractmethod
    def cross_entropy(self, parameters: Array, target: PolicyTarget) -> Array:
        """`-sum_i weights_i log pi(actions_i)`, `[...]`. Leading dimensions of the two are equal."""


class Discrete(policies.Categorical, Policy):
    """Values of all actions come from the model at once; samples pick among them."""

    def __init__(self, num_actions: int, config: MuesliConfig):
        super().__init__(num_actions)
        self._config = config

    def prior(self, target: Array, behaviour: Array, observation: Any) -> Array:
        """The mixture as probabilities `[..., A]`; the uniform part is over legal actions."""
        legal = torso.legal_actions(observation)
        legal = jnp.ones(target.shape) if legal is None else legal.astype(jnp.float32)
        uniform = legal / jnp.maximum(jnp.sum(legal, axis=-1, keepdims=True), 1.0)
        config = self._config
        mixture = (
            config.target_share * jax.nn.softmax(target)
            + config.behaviour_share * jax.nn.softmax(behaviour)
            + config.uniform_share * uniform
        )
        return mixture / jnp.sum(mixture, axis=-1, keepdims=True)  # no action may be legal where an episode has ended

    def prior_log_prob(self, target: Array, behaviour: Array, observation: Any, action: Array) -> Array:
        taken = jnp.sum(self.prior(target, behaviour, observation) * self.encode(action), axis=-1)
        return jnp.log(jnp.maximum(taken, 1e-30))

    def candidates(self, target: Array, behaviour: Array, observation: Any, key: Key) -> Candidates:
        prior = self.prior(target, behaviour, observation)
        keys = jax.vmap(lambda k: jax.random.split(k, 2))(key)
        return Candidates(
            encoded=jnp.eye(self.size),
            actions=(),
            value_weights=self._frequencies(prior, self._config.num_q_samples, keys[:, 0]),
            kl_weights=self._frequencies(prior, self._config.num_kl_samples, keys[:, 1]),
        )

    def _frequencies(self, prior: Array, num_samples: int, key: Key) -> Array:
        """How often each action comes among `num_samples` draws from `prior` `[T, B, A]`; the prior itself for 0."""
        if not num_samples:
            return prior
        logits = jnp.log(jnp.maximum(prior, 1e-30))

        def draw(column: Array, column_key: Key) -> Array:
            samples = jax.random.categorical(column_key, column, shape=(num_samples, column.shape[0]))
            return jnp.mean(self.encode(samples), axis=0)

        return jax.vmap(draw, in_axes=(1, 0), out_axes=1)(logits, key)

    def cmpo_target(self, candidates: Candidates, advantages: Array) -> PolicyTarget:
        config, frequencies = self._config, candidates.kl_weights
        if not config.num_kl_samples:
            policy = cmpo.cmpo_policy(frequencies, advantages, config.cmpo_clip)
            return PolicyTarget(policy, (), -jnp.sum(policy * jnp.log(jnp.maximum(policy, 1e-30)), axis=-1))
        # Samples of one action share its advantage, so the sum over samples is one over actions with their counts.
        weights = frequencies * cmpo.sampled_cmpo_weights(
            advantages, config.cmpo_clip, config.z_init, counts=frequencies * config.num_kl_samples
        )
        return PolicyTarget(weights, (), jnp.zeros(weights.shape[:-1]))

    def cross_entropy(self, parameters: Array, target: PolicyTarget) -> Array:
        return -jnp.sum(target.weights * jax.nn.log_softmax(parameters), axis=-1)


class Continuous(policies.SquashedGaussian, Policy):
    """Candidates are samples of the prior."""

    def __init__(self, action: specs.Array, config: MuesliConfig):
        # Of the distribution that Muesli's results so far are of; whether it gains from a limit was not tried.
        super().__init__(action, mean_limit=np.inf, min_std=0.01)
        if not (config.num_q_samples and config.num_kl_samples):
            raise ValueError("continuous actions need samples: set agent.num_q_samples and agent.num_kl_samples above 0")
        if config.beta_loo or config.policy_loss == "mpo":
            raise ValueError("beta_loo and policy_loss=mpo sum over all actions, so they need discrete ones")
        self._config = config

    def prior_log_prob(self, target: Array, behaviour: Array, observation: Any, action: Array) -> Array:
        del observation
        config = self._config
        parts = [
            (config.target_share, self.log_prob(target, action)),
            (config.behaviour_share, self.log_prob(behaviour, action)),
            (config.uniform_share, jnp.full(target.shape[:-1], -self.encoded_size * np.log(2.0), jnp.float32)),
        ]
        return jax.nn.logsumexp(jnp.stack([np.log(share) + part for share, part in parts if share > 0]), axis=0)

    def candidates(self, target: Array, behaviour: Array, observation: Any, key: Key) -> Candidates:
        del observation
        num_values, num_kl = self._config.num_q_samples, self._config.num_kl_samples
        num_samples = max(num_values, num_kl)

        def draw(target_column: Array, behaviour_column: Array, column_key: Key) -> Array:
            length, which, one, two, three = target_column.shape[0], *jax.random.split(column_key, 4)
            config = self._config
            shares = jnp.array([config.target_share, config.behaviour_share, config.uniform_share])
            component = jax.random.categorical(which, jnp.log(shares), shape=(num_samples, length, 1))
            uniform = jax.random.uniform(three, (num_samples, length, self.encoded_size), minval=-1.0, maxval=1.0)
            from_target = self._squashed(target_column).sample(seed=one, sample_shape=num_samples)
            from_behaviour = self._squashed(behaviour_column).sample(seed=two, sample_shape=num_samples)
            drawn = jnp.where(component == 0, from_target, jnp.where(component == 1, from_behaviour, uniform))
            return jnp.moveaxis(drawn, 0, 1)

        encoded = jax.vmap(draw, in_axes=(1, 1, 0), out_axes=1)(target, behaviour, key)
        index = jnp.arange(num_samples)
        return Candidates(
            encoded=encoded,
            actions=self._decode(encoded),
            value_weights=jnp.broadcast_to((index < num_values) / num_values, encoded.shape[:-1]),
            kl_weights=jnp.broadcast_to((index < num_kl) / num_kl, encoded.shape[:-1]),
        )

    def cmpo_target(self, candidates: Candidates, advantages: Array) -> PolicyTarget:
        config = self._config
        weights = candidates.kl_weights * cmpo.sampled_cmpo_weights(
            advantages, config.cmpo_clip, config.z_init, counts=candidates.kl_weights * config.num_kl_samples
        )
        return PolicyTarget(weights, candidates.actions, jnp.zeros(weights.shape[:-1]))

    def cross_entropy(self, parameters: Array, target: PolicyTarget) -> Array:
        log_probs = self.log_prob(jnp.expand_dims(parameters, -2), target.actions)
        return -jnp.sum(target.weights * log_probs, axis=-1)


def make_policy(spec: EnvironmentSpec, config: MuesliConfig) -> Policy:
    """The policy for the actions of `spec`. Raises ValueError where Muesli cannot serve them."""
    return Discrete(spec.num_actions, config) if spec.discrete else Continuous(spec.action, config)
