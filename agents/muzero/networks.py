"""The networks of MuZero: representation h, dynamics g and prediction f, as pure functions of one set of parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from podracer.agents.muzero.config import MuZeroConfig
from podracer.nets import resnet, torso
from podracer.nets.dynamics import Dynamics
from podracer.nets.heads import Head
from podracer.nets.policies import Policy
from podracer.types import Array, EnvironmentSpec, Key, Params


class Prediction(NamedTuple):
    """Policy parameters `[..., P]`, value logits `[..., bins]`."""

    policy: Array
    value: Array


class Networks(NamedTuple):
    """Pure functions of one set of parameters; gradients flow through all. Model states are pytrees of `[..., *state_shape]`.

    init: `key` to fresh parameters.
    root: h: observations `[B, ...]` to model states.
    step: g, but for its reward: model states and encoded actions `[..., E]` to the states after them.
    predict: f: model states to `Prediction`. reward: to reward logits `[..., bins]` of arriving there.
    """

    init: Callable[[Key], Params]
    root: Callable[..., Any]
    step: Callable[..., Any]
    predict: Callable[..., Prediction]
    reward: Callable[..., Array]


def make_networks(spec: EnvironmentSpec, config: MuZeroConfig, policy: Policy) -> Networks:
    """The networks of `spec`, with observations as they see them, history included. All but `init` take parameters first."""

    def build() -> tuple[Any, tuple[Any, ...]]:
        num_bins = config.bins.num_bins
        if config.network == "resnet":
            represent: Any = _spatial(resnet.Representation(config.resnet))
            dynamics: Any = resnet.SpatialDynamics(config.resnet, policy.encoded_size)
            features: Any = lambda state: state  # noqa: E731

            def head(size: int, name: str) -> Any:
                return resnet.SpatialHead(config.resnet, config.head_hidden, size, name)
        else:
            encode, latent = torso.make_torso(spec, config.torso), Dynamics(config.dynamics)
            represent, dynamics, features = lambda x: latent.root(encode(x)), latent, latent.features

            def head(size: int, name: str) -> Any:
                return Head(config.head_hidden, size, name)

        policy_head, value_head, reward_head = (
            head(policy.size, "policy"),
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

    net = hk.without_apply_rng(hk.multi_transform(build))

    def init(key: Key) -> Params:
        observation = torso.visible(spec.example((1,)).observation)
        return net.init(key, observation, jnp.zeros((1, policy.encoded_size)))

    return Networks(init, *net.apply)


def _spatial(representation: Any) -> Any:
    def represent(observation: Any) -> Any:
        leaves = jax.tree.leaves(torso.visible(observation))
        if len(leaves) != 1 or leaves[0].ndim != 4:
            raise ValueError("network=resnet needs one image or board [H, W, C]: set agent.network=mlp")
        return representation(leaves[0])

    return represent
