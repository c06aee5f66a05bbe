"""The networks of Muesli: one set of parameters, five pure functions of it."""

from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from podracer.agents.muesli.config import Config
from podracer.nets import recurrent, torso
from podracer.nets.dynamics import Dynamics
from podracer.nets.heads import Head
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


class Networks:
    """Pure functions; gradients flow through all of them."""

    def __init__(self, spec: EnvironmentSpec, config: Config, policy_size: int, encoded_action_size: int):
        self._spec, self._config = spec, config
        self._policy_size, self._action_size = policy_size, encoded_action_size
        self._transformed = hk.multi_transform(self._build)

    def _build(self) -> tuple[Any, tuple[Any, ...]]:
        config, num_bins = self._config, self._config.bins.num_bins
        encode = torso.make_torso(self._spec, config.torso)
        core = recurrent.make_core(config.core)
        dynamics = Dynamics(config.dynamics)
        policy_head = Head(config.head_hidden, self._policy_size, "policy")
        value_head = Head(config.head_hidden, num_bins, "value")
        model_policy_head = Head(config.head_hidden, self._policy_size, "model_policy")
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

        def model_step(state: Any, action: Array) -> Any:
            return dynamics(state, action)

        def model_predict(state: Any) -> ModelPrediction:
            features = dynamics.features(state)
            return ModelPrediction(model_policy_head(features), model_value_head(features), reward_head(features))

        def model_q(state: Any) -> tuple[Array, Array]:
            features = dynamics.features(state)
            return reward_head(features), model_value_head(features)

        def init(observation: Any, first: Array, state: ActorState, action: Array) -> None:
            hidden, _ = step(observation, first, state)
            predict(hidden)
            model_predict(model_step(dynamics.root(hidden), action))

        return init, (step, unroll, predict, dynamics.root, model_step, model_predict, model_q)

    def init(self, key: Key) -> Params:
        """Fresh parameters."""
        observation = jax.tree.map(lambda s: jnp.zeros((1, *s.shape), s.dtype), self._spec.observation)
        state = recurrent.initial_state(self._config.core, 1)
        return self._transformed.init(key, observation, jnp.ones(1, jnp.bool), state, jnp.zeros((1, self._action_size)))

    def _apply(self, index: int, params: Params, *arguments: Any) -> Any:
        return self._transformed.apply[index](params, None, *arguments)

    def step(self, params: Params, observation: Any, first: Array, state: ActorState) -> tuple[Array, ActorState]:
        """Observation `[B, ...]`, `first` `[B]` bool: the hidden state `h` `[B, H]` and the next recurrent state."""
        return self._apply(0, params, observation, first, state)

    def unroll(self, params: Params, observation: Any, first: Array, state: ActorState) -> Array:
        """Observations `[T, B, ...]` from recurrent state `[B, ...]`: `h` `[T, B, H]`. The torso sees all steps at once."""
        return self._apply(1, params, observation, first, state)

    def predict(self, params: Params, hidden: Array) -> Prediction:
        """Policy and value of real states from `h` `[..., H]`."""
        return self._apply(2, params, hidden)

    def root(self, params: Params, hidden: Array) -> Any:
        """The model's state at real states `h` `[..., H]`."""
        return self._apply(3, params, hidden)

    def model_step(self, params: Params, state: Any, action: Array) -> Any:
        """The model's next state, from encoded actions `[..., E]`; leading dimensions broadcast."""
        return self._apply(4, params, state, action)

    def model_predict(self, params: Params, state: Any) -> ModelPrediction:
        """Reward of arriving at model states, and value and policy there."""
        return self._apply(5, params, state)

    def model_q(self, params: Params, state: Any) -> tuple[Array, Array]:
        """Reward and value logits alone."""
        return self._apply(6, params, state)
