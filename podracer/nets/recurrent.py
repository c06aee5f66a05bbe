"""Recurrent cores that forget at the start of an episode, stepped while acting and unrolled while learning."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import haiku as hk
import jax
import jax.numpy as jnp

from podracer.types import ActorState, Array


@dataclasses.dataclass(frozen=True)
class CoreConfig:
    """kind: `none` (feed-forward), `gru` or `lstm`. size: width of the state."""

    kind: Literal["none", "gru", "lstm"] = "none"
    size: int = 128


def make_core(config: CoreConfig) -> hk.RNNCore | None:
    """The core, whose input is `(features [B, F], reset [B] bool)`, or None for a feed-forward agent. Inside `hk.transform`."""
    if config.kind == "none":
        return None
    return hk.ResetCore({"gru": hk.GRU, "lstm": hk.LSTM}[config.kind](config.size))


def initial_state(config: CoreConfig, batch_size: int) -> ActorState:
    """State `[B, size]` (for an LSTM a pair of them) before an episode: zeros. Needs no transform."""
    zeros = jnp.zeros((batch_size, config.size), jnp.float32)
    return {"none": (), "gru": zeros, "lstm": hk.LSTMState(hidden=zeros, cell=zeros)}[config.kind]


def step(core: hk.RNNCore | None, features: Array, first: Array, state: ActorState) -> tuple[Array, ActorState]:
    """One step: features `[B, F]`, `first` `[B]` bool. Returns `[B, size]` (`[B, F]` without a core) and the state."""
    return (features, state) if core is None else core((features, first), state)


def unroll(core: hk.RNNCore | None, features: Array, first: Array, state: Any) -> tuple[Array, ActorState]:
    """Steps over time: features `[T, B, F]`, `first` `[T, B]` bool. Returns `[T, B, size]` and the last state."""
    return (features, state) if core is None else hk.dynamic_unroll(core, (features, first), state)


def unroll_after(
    burn_in: int, unroll: Callable[..., tuple[Any, ActorState]], inputs: tuple[Any, ...], state: ActorState
) -> Any:
    """Outputs of all steps but the first `burn_in`, which warm up a stored state (Kapturowski et al. 2019, section 3).

    Args:
      unroll: `(*inputs, state) -> (outputs, state)` over time.
      inputs: leaves `[burn_in + T, B, ...]`. state: before the first step; no gradient flows into it, nor into the burn-in.

    Returns:
      Leaves `[T, B, ...]`.
    """
    if burn_in:
        _, state = unroll(*jax.tree.map(lambda x: x[:burn_in], inputs), state)
    return unroll(*jax.tree.map(lambda x: x[burn_in:], inputs), jax.lax.stop_gradient(state))[0]
