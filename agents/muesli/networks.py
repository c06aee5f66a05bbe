"""The networks of Muesli: one set of parameters, and pure functions of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from podracer.agents.muesli.config import MuesliConfig
from podracer.nets import recurrent, torso
from podracer.nets.dynamics import Dynamics
from podracer.nets.heads import Head
from podracer.nets.policies import Policy
from podracer.types import ActorState, Array, EnvironmentSpec, Key, Params


class Prediction(NamedTuple):
    """What heads say of real states: policy parameters `[..., P]` and value logits `[..., bins]`."""

    policy: Array
    value: Array


class ModelPrediction(NamedTuple):
    """What the model says of the arrival after an action: policy `[..., P]`, value and reward logits `[..., bins]`."""

    policy: Array
    value: Array
    reward: Array


class Networks(NamedTuple):
    """Pure functions of one set of parameters; gradients flow through all of them. Leading dimensions broadcast.

    init: `key` to fresh parameters.
    step: observation `[B, ...]`, `first` `[B]` bool, recurrent state; to the agent's state `h` `[B, H]`, and the next.
    unroll: observations `[T, B, ...]`, `first`, recurrent state; to `h` `[T, B, H]`. The torso sees all steps at once.
    predict: `h` `[..., H]` to `Prediction`, of real states.
    root: `h` to the model's state there, a pytree with leaves `[..., size]`.
    model_step: model state, encoded action `[..., E]`; to the model's next state.
    model_predict: model state to `ModelPrediction`. model_q: to reward and value logits alone.
    """

    init: Callable[[Key], Params]
    step: Callable[..., tuple[Array, ActorState]]
    unroll: Callable[..., Array]
    predict: Callable[..., Prediction]
    root: Callable[..., Any]
    model_step: Callable[..., Any]
    model_predict: Callable[..., ModelPrediction]
    model_q: Callable[..., tuple[Array, Array]]


def make_networks(spec: EnvironmentSpec, config: MuesliConfig, policy: Policy) -> Networks:
    """The networks for one environment. All but `init` take parameters first."""

    def build() -> tuple[Any, tuple[Any, ...]]:
        num_bins = config.bins.num_bins
        encode = torso.make_torso(spec, config.torso)
        core = recurrent.make_core(config.core)
        dynamics = Dynamics(config.dynamics)
        policy_head = Head(config.head_hidden, policy.size, "policy")
        value_head = Head(config.head_hidden, num_bins, "value")
        model_policy_head = Head(config.head_hidden, policy.size, "model_policy")
        model_value_head = Head(config.head_hidden, num_bins, "model_value")
        reward_head = Head(config.head_hidden, num_bins, "model_reward")

        def step(observation: Any, first: Array, state: ActorState) -> tuple[Array, ActorState]:
            return recurrent.step(core, encode(observation), first, state)

        def unroll(observation: Any, first: Array, state: ActorState) -> Array:
            flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), observation)
            features = encode(flat).reshape(*first.shape, -1)
            return recurrent.unroll(core, features, first, state)[0]

        def predict(hidden: Array) -> Prediction:
            return Prediction(policy_head(hidden), value_head(hidden))

        def model_predict(state: Any) -> ModelPrediction:
            features = dynamics.features(state)
            return ModelPrediction(model_policy_head(features), model_value_head(features), reward_head(features))

        def model_q(state: Any) -> tuple[Array, Array]:
            features = dynamics.features(state)
            return reward_head(features), model_value_head(features)

        def init(observation: Any, first: Array, state: ActorState, action: Array) -> None:
            hidden, _ = step(observation, first, state)
            predict(hidden)
            model_predict(dynamics(dynamics.root(hidden), action))

        return init, (step, unroll, predict, dynamics.root, dynamics, model_predict, model_q)

    net = hk.without_apply_rng(hk.multi_transform(build))

    def init(key: Key) -> Params:
        timestep = spec.example((1,))
        state = recurrent.initial_state(config.core, 1)
        return net.init(key, timestep.observation, timestep.first(), state, jnp.zeros((1, policy.encoded_size)))

    return Networks(init, *net.apply)
