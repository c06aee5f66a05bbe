"""The networks of HiMo: one set of parameters, pure functions of it, and which of them only the learner needs."""

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from podracer.agents.himo.config import Config
from podracer.nets import policies, previous, recurrent, torso
from podracer.nets.heads import Head
from podracer.types import ActorState, Array, EnvironmentSpec, Key, Params, TimeStep


class Networks:
    """Pure functions; gradients flow through all of them, and callers stop them.

    `V` is 1 for state values, and the number of actions for action values.
    """

    def __init__(self, spec: EnvironmentSpec, config: Config, policy: policies.Policy):
        self._spec, self._config, self._policy = spec, config, policy
        self._transformed = hk.multi_transform(self._build)
        # Acting takes the policy of the actor-critic form, and the action values of the other.
        self._learner_only = {"phi", "hindsight"} | ({"value"} if config.base == "vtrace" else set())

    def _build(self) -> tuple[Any, tuple[Any, ...]]:
        config = self._config
        num_values = 1 if config.base == "vtrace" else self._policy.size
        embed = torso.make_torso(self._spec, config.torso)
        core = recurrent.make_core(config.core)
        phi_hat = hk.nets.MLP((*config.phi_hat_hidden, config.phi_size), name="phi_hat")
        phi = hk.nets.MLP((*config.phi_hidden, config.phi_size), name="phi")
        value_head = Head(config.head_hidden, num_values, "value")
        hindsight_head = Head(config.head_hidden, num_values, "hindsight")
        policy_head = Head(config.head_hidden, self._policy.size, "policy")

        def unroll(timestep: TimeStep, action_tm1: Array, state: ActorState) -> tuple[Array, ActorState]:
            features = hk.BatchApply(embed)(timestep.observation)
            if config.remember:
                # The squashing keeps rewards of any scale from drowning the other inputs.
                reward = jnp.tanh(previous.reward_input(timestep))
                action = previous.action_input(self._policy, action_tm1, timestep)
                features = jnp.concatenate([features, action, reward], axis=-1)
            return recurrent.unroll(core, features, timestep.first(), state)

        def value(hidden: Array, features: Array) -> Array:
            return value_head(jnp.concatenate([hidden, features], axis=-1))

        def policy(hidden: Array, features: Array) -> Array:
            return policy_head(jnp.concatenate([hidden, features], axis=-1))

        def hindsight(hidden: Array, features: Array) -> Array:
            return hindsight_head(jnp.concatenate([hidden, features], axis=-1))

        def init(timestep: TimeStep, action_tm1: Array, state: ActorState) -> None:
            hidden, _ = unroll(timestep, action_tm1, state)
            known = phi_hat(hidden)
            value(hidden, known)
            if config.base == "vtrace":
                policy(hidden, known)
            hindsight(hidden, phi(self.future_input(hidden, timestep.observation)))

        return init, (unroll, phi_hat, value, policy, phi, hindsight)

    def init(self, key: Key, actions: Array, state: ActorState) -> Params:
        """Fresh parameters. actions: `[1, 1, ...]`. state: of the core, `[1, ...]`."""
        return self._transformed.init(key, self._spec.example((1, 1)), actions, state)

    def acting(self, params: Params) -> Params:
        """The parameters that acting needs: those of neither `phi` nor the hindsight value."""
        return {name: value for name, value in params.items() if name.split("/")[0] not in self._learner_only}

    def future_input(self, hidden: Array, observation: Any) -> Array:
        """What `phi` sees of time steps `[T, B, ...]`: the recurrent state `[T, B, H]`, or observations, flattened."""
        if self._config.phi_input == "state":
            return hidden
        leaves = jax.tree.leaves(torso.visible(observation))
        return jnp.concatenate([torso.as_float(x).reshape(*hidden.shape[:2], -1) for x in leaves], axis=-1)

    def _apply(self, index: int, params: Params, *arguments: Any) -> Any:
        return self._transformed.apply[index](params, None, *arguments)

    def unroll(self, params: Params, timestep: TimeStep, action_tm1: Any, state: ActorState) -> tuple[Array, ActorState]:
        """Time steps and previous actions `[T, B, ...]` (or empty, where the core does not see them), from the core state:
        `h` `[T, B, H]`, and the last state.
        """
        return self._apply(0, params, timestep, action_tm1, state)

    def phi_hat(self, params: Params, hidden: Array) -> Array:
        """`[..., H]` to the features that are expected of the future, `[..., d]`."""
        return self._apply(1, params, hidden)

    def value(self, params: Params, hidden: Array, features: Array) -> Array:
        """`vm`, `qm`: of `h` `[..., H]` and expected features `[..., d]`, `[..., V]`."""
        return self._apply(2, params, hidden, features)

    def policy(self, params: Params, hidden: Array, features: Array) -> Array:
        """Policy parameters `[..., P]`, illegal actions not masked."""
        return self._apply(3, params, hidden, features)

    def phi(self, params: Params, future: Array) -> Array:
        """Features of the future `[..., d]`, of what `future_input` gives."""
        return self._apply(4, params, future)

    def hindsight(self, params: Params, hidden: Array, features: Array) -> Array:
        """`v+`, `q+`: of `h` `[..., H]` and features of the true future `[..., d]`, `[..., V]`."""
        return self._apply(5, params, hidden, features)
