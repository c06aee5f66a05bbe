"""Planner: from a policy, a value and a model to better actions, better policies and better values."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mctx

from podracer.nets.policies import Policy
from podracer.search import trees
from podracer.search.config import SearchConfig
from podracer.types import Array, Key, Params


class Root(NamedTuple):
    """Where planning starts: policy parameters `[B, P]`, illegal actions masked, value `[B]`, the model's state `[B, ...]`."""

    policy: Any
    value: Any
    state: Any


class ModelStep(NamedTuple):
    """What the model says of an action: reward and discount of the arrival, `[B]`; policy `[B, P]`, value `[B]`, state there.

    The value is that of the player to move there; a discount below 0 says that this is the opponent.
    """

    reward: Any
    discount: Any
    policy: Any
    value: Any
    state: Any


Model = Callable[[Params, Any, Array, Key], ModelStep]
"""`(params, state [B, ...], action [B, ...], key [B])`, actions as the environment takes them."""


class Searched(NamedTuple):
    """What planning found.

    action: `[B, ...]`, as the environment takes it. log_prob: `[B]` float32, of the choice among the candidates.
    weights: `[B, N]` float32 with sum 1, the policy to learn. actions: the candidates `[B, N, ...]`, or empty where they are
      all the discrete ones.
    value: `[B]` float32, of the root.
    """

    action: Array
    log_prob: Array
    weights: Array
    actions: Any
    value: Array


class Planner:
    """A search with one model. Immutable and pure; gradients are nobody's business here.

    Every root is searched as a batch of its own under `vmap`: mctx draws its randomness for a whole batch from one key, and a
    result must not depend on how a batch lies over devices.
    """

    def __init__(self, policy: Policy, model: Model, config: SearchConfig):
        """Raises ValueError for a search over all of infinitely many actions, and for settings that exclude each other."""
        if config.uct_depth >= 0 and config.kind != "puct":
            raise ValueError(f"uct_depth is for a search of kind puct, not {config.kind}: leave it at -1")
        self._policy, self._model, self._config = policy, model, config
        self._all = config.num_sampled_actions == 0
        discrete = policy.num_actions is not None
        if self._all and not discrete:
            raise ValueError("continuous actions need a search over sampled ones: set search.num_sampled_actions=20")
        if discrete and config.num_sampled_actions > (policy.num_actions or 0):
            raise ValueError(
                f"search.num_sampled_actions={config.num_sampled_actions} is more than the {policy.num_actions} actions"
            )

    def __call__(
        self, params: Params, root: Root, legal: Array | None, key: Key, *, explore: bool, temperature: Array | None = None
    ) -> Searched:
        """Plans from every root.

        Args:
          params: of the model. root: leaves `[B, ...]`.
          legal: `[B, A]` bool, or None where all actions are.
          key: `[B]` PRNG keys.
          explore: with noise at the root. temperature: `[B]`, of the choice by visits; 0, and what None means, takes the best.

        Returns:
          `Searched`, leaves `[B, ...]`.
        """
        if temperature is None:
            temperature = jnp.zeros(root.value.shape)

        def one(root: Root, legal: Array | None, key: Key, temperature: Array) -> Searched:
            root, legal, temperature = jax.tree.map(lambda x: x[None], (root, legal, temperature))
            found = self._search(params, root, legal, key, explore, temperature)
            return jax.tree.map(lambda x: x[0], found)

        return jax.lax.stop_gradient(jax.vmap(one)(root, legal, key, temperature))

    def _search(self, params: Params, root: Root, legal: Array | None, key: Key, explore: bool, temperature: Array) -> Searched:
        """A batch whose randomness comes from one `key`."""
        sample_key, search_key = (key, key) if self._all else jax.random.split(key)
        actions, logits = self._candidates(root.policy, sample_key)
        if legal is None:
            invalid = jnp.zeros(logits.shape, jnp.bool)
        else:
            invalid = ~legal if self._all else ~jnp.take_along_axis(legal, actions, axis=-1)

        def model(params: Params, key: Key, index: Array, embedding: Any) -> tuple[Any, Any]:
            state, actions = embedding
            model_key, sample_key = (key, key) if self._all else jax.random.split(key)
            keys = jax.random.split(model_key, index.shape[0])
            step = self._model(params, state, self._pick(actions, index), keys)
            actions, logits = self._candidates(step.policy, sample_key)
            output = mctx.RecurrentFnOutput(reward=step.reward, discount=step.discount, prior_logits=logits, value=step.value)
            return output, (step.state, actions)

        start = mctx.RootFnOutput(prior_logits=logits, value=root.value, embedding=(root.state, actions))
        search = trees.KINDS[self._config.kind]
        found = search(self._config, params, search_key, start, model, invalid, explore, temperature)
        return Searched(self._pick(actions, found.choice), found.log_prob, found.weights, actions, found.value)

    def _candidates(self, policy: Array, key: Key) -> tuple[Any, Array]:
        """Actions `[B, N, ...]`, or empty for all, and logits of the search's prior over them `[B, N]`."""
        if self._all:
            return (), policy
        num = self._config.num_sampled_actions
        if self._policy.num_actions is not None:
            # The Gumbel top-k trick: a draw without replacement. Within it the policy itself is the prior.
            _, actions = jax.lax.top_k(policy + jax.random.gumbel(key, policy.shape), num)
            return actions, jnp.take_along_axis(policy, actions, axis=-1)
        keys = jax.random.split(key, (policy.shape[0], num))
        actions = jax.vmap(lambda p, k: jax.vmap(self._policy.sample, (None, 0))(p, k))(policy, keys)
        # Drawn from the policy, each counts the same (Hubert et al. 2021, section 4: beta = pi makes the prior uniform).
        return actions, jnp.zeros(actions.shape[:2])

    def _pick(self, actions: Any, index: Array) -> Array:
        return index if self._all else jax.vmap(lambda row, i: row[i])(actions, index)
