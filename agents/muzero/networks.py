"""The networks of MuZero: representation h, dynamics g and prediction f, as pure functions of one set of parameters."""

from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from podracer.agents.muzero.config import Config
from podracer.nets import resnet, torso
from podracer.nets.dynamics import Dynamics
from podracer.nets.heads import Head
from podracer.types import Array, EnvironmentSpec, Key, Params


class Prediction(NamedTuple):
    """Policy parameters `[..., P]`, value logits `[..., bins]`."""

    policy: Array
    value: Array


class Networks:
    """Pure functions; gradients flow through all of them. Model states are pytrees with leaves `[..., *state_shape]`."""

    def __init__(self, spec: EnvironmentSpec, config: Config, policy_size: int, encoded_action_size: int):
        """spec: with observations as the networks see them, their history included."""
        self._spec, self._config = spec, config
        self._policy_size, self._action_size = policy_size, encoded_action_size
        self._transformed = hk.multi_transform(self._build)

    def _build(self) -> tuple[Any, tuple[Any, ...]]:
        config, num_bins = self._config, self._config.bins.num_bins
        if config.network == "resnet":
            represent: Any = _spatial(resnet.Representation(config.resnet))
            dynamics: Any = resnet.SpatialDynamics(config.resnet, self._action_size)
            features: Any = lambda state: state  # noqa: E731

            def head(size: int, name: str) -> Any:
                return resnet.SpatialHead(config.resnet, config.head_hidden, size, name)
        else:
            encode, latent = torso.make_torso(self._spec, config.torso), Dynamics(config.dynamics)
            represent, dynamics, features = lambda x: latent.root(encode(x)), latent, latent.features

            def head(size: int, name: str) -> Any:
                return Head(config.head_hidden, size, name)

        policy_head, value_head, reward_head = (
            head(self._policy_size, "policy"),
            head(num_bins, "value"),
            head(num_bins, "reward"),
        )

        def scale(state: Any) -> Any:
            axes = (-3, -2, -1) if config.network == "resnet" else (-1,)
            return jax.tree.map(lambda x: resnet.scale_hidden(x, axes), state) if config.scale_hidden else state

        def root(observation: Any) -> Any:
            return scale(represent(observation))

        def step(state: Any, action: Array) -> Any:
            return scale(dynamics(state, action))

        def predict(state: Any) -> Prediction:
            return Prediction(policy_head(features(state)), value_head(features(state)))

        def reward(state: Any) -> Array:
            result: Array = reward_head(features(state))
            return result

        def init(observation: Any, action: Array) -> None:
            state = step(root(observation), action)
            predict(state)
            reward(state)

        return init, (root, step, predict, reward)

    def init(self, key: Key) -> Params:
        """Fresh parameters."""
        observation = torso.visible(self._spec.example((1,)).observation)
        return self._transformed.init(key, observation, jnp.zeros((1, self._action_size)))

    def _apply(self, index: int, params: Params, *arguments: Any) -> Any:
        return self._transformed.apply[index](params, None, *arguments)

    def root(self, params: Params, observation: Any) -> Any:
        """h: observations `[B, ...]` to model states."""
        return self._apply(0, params, observation)

    def step(self, params: Params, state: Any, action: Array) -> Any:
        """g, but for its reward: model states and encoded actions `[..., E]` to the states after them."""
        return self._apply(1, params, state, action)

    def predict(self, params: Params, state: Any) -> Prediction:
        """f: policy and value of model states."""
        prediction: Prediction = self._apply(2, params, state)
        return prediction

    def reward(self, params: Params, state: Any) -> Array:
        """Reward logits `[..., bins]` of arriving at model states."""
        logits: Array = self._apply(3, params, state)
        return logits


def _spatial(representation: Any) -> Any:
    def represent(observation: Any) -> Any:
        leaves = jax.tree.leaves(torso.visible(observation))
        if len(leaves) != 1 or leaves[0].ndim != 4:
            raise ValueError("network=resnet needs one image or board [H, W, C]: set agent.network=mlp")
        return representation(leaves[0])

    return represent
