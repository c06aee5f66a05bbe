"""The networks of the agents of figure 2: encoder, none to two LSTMs, and heads on the encoder and on the memory."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer.agents.nav.config import NavConfig
from podracer.agents.nav.losses import NUM_CLASSES
from podracer.nets import policies, previous, recurrent, torso
from podracer.nets.heads import Head
from podracer.nets.recurrent import CoreConfig
from podracer.types import ActorState, Array, EnvironmentSpec, TimeStep

PROBE = "position"
"""Name of the module of the probe, whose parameters no other loss reads."""


class Outputs(NamedTuple):
    """Of time steps `[T, B]`, float32; empty where there is no such head.

    policy: `[T, B, P]`, illegal actions masked. value: `[T, B]`.
    d1, d2: depth from the encoder's features and from the memory, `[T, B, H, W, 8]` logits or, in regression, `[T, B, H, W]`.
    loop_closure: `[T, B]`, logit. position: `[T, B, N]`, logits; no gradient flows from them into the memory.
    """

    policy: Array
    value: Array
    d1: Any
    d2: Any
    loop_closure: Any
    position: Any


def initial_core(config: NavConfig, batch_size: int) -> ActorState:
    """State of the memory before an episode: zeros, leaves `[B, size]`. One entry for each LSTM."""
    return tuple(recurrent.initial_state(core, batch_size) for core in _cores(config))


def make_network(spec: EnvironmentSpec, config: NavConfig, policy: policies.Policy) -> hk.Transformed:
    """The network of an unroll.

    Returns:
      `init` and `apply`, whose arguments are time steps and the actions before them `[T, B, ...]`, and the state of the memory
      before the first, leaves `[B, size]`. `apply` returns `Outputs` and the last state.

    Raises:
      ValueError: a head has no labels in `spec.aux`, or the encoder does not fit the observation.
    """
    labels = spec.aux if isinstance(spec.aux, Mapping) else {}
    for setting, label in (("beta_d1", "depth"), ("beta_d2", "depth"), ("beta_l", "loop_closure")):
        if getattr(config, setting) and label not in labels:
            raise ValueError(
                f"{setting} needs the label {label!r}, which {spec.name} does not give: set agent.{setting}=0, or take a maze"
            )
    encoder_spec = _encoder_spec(spec)
    num_positions = _num_positions(labels) if config.probe else 0

    def depth_head(features: Array, name: str) -> Array:
        shape = (*labels["depth"].shape, NUM_CLASSES) if config.depth == "classification" else labels["depth"].shape
        out = Head(config.depth_hidden, int(np.prod(shape)), name)(features)
        return out.reshape(*features.shape[:-1], *shape)

    def forward(timestep: TimeStep, action_tm1: Array, state: ActorState) -> tuple[Outputs, ActorState]:
        seen = timestep.observation
        features = hk.BatchApply(torso.make_torso(encoder_spec, config.torso))(encoder_input(seen))
        first, cores = timestep.first(), [recurrent.make_core(core) for core in _cores(config)]
        if config.memory == "stacked":
            reward = previous.reward_input(timestep)
            early, early_state = recurrent.unroll(cores[0], jnp.concatenate([features, reward], axis=-1), first, state[0])
            others = [seen["velocity"]] if _has_velocity(seen) else []
            inputs = [features, early, *others, previous.action_input(policy, action_tm1, timestep)]
            hidden, late_state = recurrent.unroll(cores[1], jnp.concatenate(inputs, axis=-1), first, state[1])
            state = (early_state, late_state)
        elif config.memory == "lstm":
            hidden, core_state = recurrent.unroll(cores[0], features, first, state[0])
            state = (core_state,)
        else:
            hidden = features
        outputs = Outputs(
            policy=policy.mask(hk.Linear(policy.size, name="policy")(hidden), seen),
            value=hk.Linear(1, name="value")(hidden)[..., 0],
            d1=depth_head(features, "d1") if config.beta_d1 else (),
            d2=depth_head(hidden, "d2") if config.beta_d2 else (),
            loop_closure=Head((), 1, "loop_closure")(hidden)[..., 0] if config.beta_l else (),
            position=Head((), num_positions, PROBE)(jax.lax.stop_gradient(hidden)) if num_positions else (),
        )
        return outputs, state

    return hk.without_apply_rng(hk.transform(forward))


def encoder_input(observation: Any) -> Any:
    """What the encoder sees of an observation: all but the velocity. `rgb` and `depth`, where both are observed, are one image
    `[..., H, W, 4]` float32.
    """
    seen = torso.visible(observation)
    if not isinstance(seen, Mapping):
        return seen
    parts = {name: value for name, value in seen.items() if name != "velocity"}
    if parts.keys() == {"rgb", "depth"}:
        return jnp.concatenate([torso.as_float(parts["rgb"]), torso.as_float(parts["depth"])], axis=-1)
    return parts


def _encoder_spec(spec: EnvironmentSpec) -> EnvironmentSpec:
    shapes = jax.eval_shape(lambda: encoder_input(spec.example((1,)).observation))
    return spec.replace(observation=jax.tree.map(lambda x: specs.Array(x.shape[1:], x.dtype), shapes))


def _has_velocity(observation: Any) -> bool:
    return isinstance(observation, Mapping) and "velocity" in observation


def _cores(config: NavConfig) -> tuple[CoreConfig, ...]:
    sizes = {"none": (), "lstm": (config.lstm,), "stacked": (config.reward_lstm, config.lstm)}[config.memory]
    return tuple(CoreConfig(kind="lstm", size=size) for size in sizes)


def _num_positions(labels: Mapping[str, Any]) -> int:
    """How many squares the label `position` tells apart; 0 where there is none, or no bound."""
    position = labels.get("position")
    if isinstance(position, specs.DiscreteArray):
        return int(position.num_values)
    return int(position.maximum) + 1 if isinstance(position, specs.BoundedArray) else 0
