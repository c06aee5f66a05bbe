"""The networks of HiMo: one set of parameters, pure functions of it, and which of them only the learner needs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from podracer.agents.himo.config import HiMoConfig
from podracer.nets import previous, recurrent, torso
from podracer.nets.heads import Head
from podracer.nets.policies import Policy
from podracer.types import ActorState, Array, EnvironmentSpec, Key, Params, TimeStep


class Networks(NamedTuple):
    """Pure functions; gradients flow through all of them, and callers stop them.

    `V` is 1 for state values, and the number of actions for action values. `h` is the state of the core, or what a feed-forward
    agent has in its place.

    init: `key`, actions `[1, 1, ...]`, state of the core `[1, ...]`; to fresh parameters.
    acting: parameters to those that acting needs: of neither `phi` nor the hindsight value.
    future_input: `h` `[T, B, H]`, observations `[T, B, ...]`; to what `phi` sees of them: `h`, or the observation, flattened.

    These take parameters first:
    unroll: time steps and previous actions `[T, B, ...]` (empty where the core does not see them), state of the core; to `h`
      `[T, B, H]` and the last state.
    phi_hat: `h` `[..., H]` to the features that are expected of the future, `[..., d]`.
    value: `h`, expected features; to `vm` or `qm` `[..., V]`. policy: to parameters `[..., P]`, illegal actions not masked.
    phi: what `future_input` gives, to features of the future `[..., d]`.
    hindsight: `h`, features of the true future; to `v+` or `q+` `[..., V]`.
    """

    init: Callable[[Key, Array, ActorState], Params]
    acting: Callable[[Params], Params]
    future_input: Callable[[Array, Any], Array]
    unroll: Callable[..., tuple[Array, ActorState]]
    phi_hat: Callable[..., Array]
    value: Callable[..., Array]
    policy: Callable[..., Array]
    phi: Callable[..., Array]
    hindsight: Callable[..., Array]


def make_networks(spec: EnvironmentSpec, config: HiMoConfig, policy: Policy) -> Networks:
    """The networks for one environment."""
    # Acting takes the policy of the actor-critic form, and the action values of the other.
    learner_only = {"phi", "hindsight"} | ({"value"} if config.base == "vtrace" else set())

    def acting(params: Params) -> Params:
        return {name: value for name, value in params.items() if name.split("/")[0] not in learner_only}

    def future_input(hidden: Array, observation: Any) -> Array:
        if config.phi_input == "state":
            return hidden
        leaves = jax.tree.leaves(torso.visible(observation))
        return jnp.concatenate([torso.as_float(x).reshape(*hidden.shape[:2], -1) for x in leaves], axis=-1)

    def build() -> tuple[Any, tuple[Any, ...]]:
        num_values = 1 if config.base == "vtrace" else policy.size
        embed = torso.make_torso(spec, config.torso)
        core = recurrent.make_core(config.core)
        phi_hat = hk.nets.MLP((*config.phi_hat_hidden, config.phi_size), name="phi_hat")
        phi = hk.nets.MLP((*config.phi_hidden, config.phi_size), name="phi")

        def head(size: int, name: str) -> Callable[..., Array]:
            module = Head(config.head_hidden, size, name)
            return lambda hidden, features: module(jnp.concatenate([hidden, features], axis=-1))

        value, hindsight = head(num_values, "value"), head(num_values, "hindsight")
        parameters = head(policy.size, "policy")

        def unroll(timestep: TimeStep, action_tm1: Array, state: ActorState) -> tuple[Array, ActorState]:
            features = hk.BatchApply(embed)(timestep.observation)
            if config.remember:
                before = previous.action_and_reward_input(policy, action_tm1, timestep)
                features = jnp.concatenate([features, before], axis=-1)
            return recurrent.unroll(core, features, timestep.first(), state)

        def init(timestep: TimeStep, action_tm1: Array, state: ActorState) -> None:
            hidden, _ = unroll(timestep, action_tm1, state)
            known = phi_hat(hidden)
            value(hidden, known)
            if config.base == "vtrace":
                parameters(hidden, known)
            hindsight(hidden, phi(future_input(hidden, timestep.observation)))

        return init, (unroll, phi_hat, value, parameters, phi, hindsight)

    net = hk.without_apply_rng(hk.multi_transform(build))

    def init(key: Key, actions: Array, state: ActorState) -> Params:
        return net.init(key, spec.example((1, 1)), actions, state)

    return Networks(init, acting, future_input, *net.apply)
