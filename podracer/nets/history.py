"""Histories of observations, and of the actions between them, as one observation (Schrittwieser et al. 2020, appendix E).

MuZero sees the last 32 frames of Atari with a plane `a / A` for the action that led to each, and the last 8 positions of a
board. Acting calls `push` with what it sees, then `remember` with what it chose, once each for every time step; a loss calls
`unroll`, which gives the same numbers. Nothing crosses the start of an episode.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer.nets import torso
from podracer.types import ActorState, Array, EnvironmentSpec, Struct


@dataclasses.dataclass(frozen=True)
class HistoryConfig:
    """length: observations that are stacked, the newest included. actions: stack the action that led to each, too."""

    length: int = 1
    actions: bool = False


class HistoryState(Struct):
    """The last observations and actions, oldest first; zeros before the start of an episode.

    frames: `[B, length, *shape]`, dtype of the observation.
    actions: `[B, length, A]` bool, one-hot, and a row of zeros where there was no action; empty without actions. After
      `push`, `actions[:, i]` led to `frames[:, i]`; after `remember` they are one step ahead.
    """

    frames: Any
    actions: Any


def initial_state(spec: EnvironmentSpec, config: HistoryConfig, batch_size: int) -> ActorState:
    """The `HistoryState` before an episode, or the empty tuple where there is nothing to remember.

    Raises:
      ValueError: as `stacked_spec`.
    """
    frame = _check(spec, config)
    if not _remembers(config):
        return ()
    leading = (batch_size, config.length)
    return HistoryState(
        frames=jnp.zeros((*leading, *frame.shape), jax.dtypes.canonicalize_dtype(frame.dtype)),
        actions=jnp.zeros((*leading, spec.num_actions), bool) if config.actions else (),
    )


def push(config: HistoryConfig, state: ActorState, observation: Any, first: Array) -> tuple[Any, ActorState]:
    """Adds an observation, and forgets what came before it where an episode starts.

    Args:
      config: as of `initial_state`.
      state: of the time step before, after `remember`.
      observation: `[B, *shape]`, or a dictionary with one such entry beside those that no network reads (`legal_actions`),
        which pass through.
      first: `[B]` bool.

    Returns:
      The observation with its history on the last axis, oldest first, and the state. Images `[B, H, W, C]` give
      `[B, H, W, C * length]`, with actions `[B, H, W, C * length + length]`: the planes `a / A` come last, and are scaled to
      [0, 255] in uint8 (where more than 255 actions would share bytes). Vectors `[B, F]` give `[B, F * length]`, with
      actions `[B, F * length + A * length]`: one-hot, of 255 in uint8, since torsos divide bytes by 255. The dtype is
      kept, but for images neither uint8 nor floating, whose action planes make them float32.
    """
    if not _remembers(config):
        return observation, state
    name, frame = _entry(observation)
    frames = jnp.concatenate([_clear(state.frames[:, 1:], first), jnp.expand_dims(frame, 1)], axis=1)
    # Where an episode starts, the newest action goes as well: it led out of the episode before.
    state = HistoryState(frames=frames, actions=_clear(state.actions, first) if config.actions else ())
    return _replace(observation, name, _stack(state)), state


def remember(config: HistoryConfig, state: ActorState, action: Array) -> ActorState:
    """Adds the action `[B]` int32 that was just chosen; the next `push` adds the observation that it led to."""
    if not config.actions:
        return state
    newest = action[:, None, None] == jnp.arange(state.actions.shape[-1])
    return state.replace(actions=jnp.concatenate([state.actions[:, 1:], newest], axis=1))


def played(config: HistoryConfig, state: ActorState, action: Array) -> ActorState:
    """Puts `action` `[B]`, which was played, in the place of the one that `remember` added last."""
    if not config.actions:
        return state
    newest = action[:, None] == jnp.arange(state.actions.shape[-1])
    return state.replace(actions=state.actions.at[:, -1].set(newest))


def unroll(config: HistoryConfig, state: ActorState, observation: Any, first: Array, action: Array) -> Any:
    """What `push` and `remember` gave step by step.

    Args:
      config: as of `initial_state`.
      state: before `observation[0]` was seen, as in `Trajectory.actor_state`.
      observation: leaves `[T+1, B, ...]`, as of `push`.
      first: `[T+1, B]` bool.
      action: `[T, B]` int32, chosen at the first T observations.

    Returns:
      Observations with their history, `[T+1, B, ...]`, as of `push`.
    """
    if not _remembers(config):
        return observation
    name, frames = _entry(observation)

    def one(state: ActorState, inputs: tuple[Array, Array, Array]) -> tuple[ActorState, Array]:
        frame, first, action = inputs
        stacked, state = push(config, state, frame, first)
        return remember(config, state, action), stacked

    # No action was chosen at the last observation, and nothing sees the state after it.
    action = jnp.pad(action, ((0, 1), *((0, 0),) * (action.ndim - 1)))
    # Entries that pass through stay out of the scan, which would copy them.
    return _replace(observation, name, jax.lax.scan(one, state, (frames, first, action))[1])


def stacked_spec(spec: EnvironmentSpec, config: HistoryConfig) -> EnvironmentSpec:
    """The spec with observations as `push` returns them; torsos are built from it. One lower and one upper bound hold all.

    Raises:
      ValueError: length < 1, actions are stacked but not discrete, or the observation is not one vector `[F]` or image
        `[H, W, C]`.
    """
    frame = _check(spec, config)
    if not _remembers(config):
        return spec
    planes = config.actions * config.length * (1 if len(frame.shape) == 3 else spec.num_actions)
    shape = (*frame.shape[:-1], frame.shape[-1] * config.length + planes)
    dtype = np.dtype(_stacked_dtype(np.dtype(frame.dtype), len(frame.shape), config.actions))
    stacked: specs.Array = specs.Array(shape, dtype, frame.name)
    if isinstance(frame, specs.BoundedArray):
        low, high = np.min(frame.minimum), np.max(frame.maximum)
        low, high = min(low, 0), max(high, _full(dtype) if config.actions else 0)
        stacked = specs.BoundedArray(shape, dtype, low, high, frame.name)
    return spec.replace(observation=_replace(spec.observation, _entry(spec.observation)[0], stacked))


def _remembers(config: HistoryConfig) -> bool:
    return config.length > 1 or config.actions


def _check(spec: EnvironmentSpec, config: HistoryConfig) -> Any:
    """The spec of the entry that is stacked, or whatever is observed where there is nothing to remember."""
    if config.length < 1:
        raise ValueError(f"history.length must be >= 1, not {config.length}")
    if not _remembers(config):
        return spec.observation
    if config.actions and not spec.discrete:
        raise ValueError(f"history.actions needs discrete actions, and those of {spec.name} are not: set history.actions=false")
    frame = _entry(spec.observation)[1]
    if not isinstance(frame, specs.Array) or len(frame.shape) not in (1, 3):
        raise ValueError(f"a history needs one vector [F] or image [H, W, C], and {spec.name} observes {spec.observation}")
    return frame


def _entry(observation: Any) -> tuple[str | None, Any]:
    """The name, None where the observation is no dictionary, and the entry that is stacked."""
    seen = torso.visible(observation)
    if not isinstance(seen, dict):
        return None, seen
    if len(seen) != 1:
        raise ValueError(f"a history needs one entry to stack, and the observation has {sorted(seen)}: set history.length=1")
    return next(iter(seen.items()))


def _replace(observation: Any, name: str | None, entry: Any) -> Any:
    return entry if name is None else {**observation, name: entry}


def _clear(x: Array, first: Array) -> Array:
    return jnp.where(jnp.reshape(first, (-1, *(1,) * (x.ndim - 1))), jnp.zeros_like(x), x)


def _stack(state: HistoryState) -> Array:
    has_actions, shape = not isinstance(state.actions, tuple), state.frames.shape[2:]
    dtype = _stacked_dtype(state.frames.dtype, len(shape), has_actions)
    newest_last = jnp.moveaxis(state.frames, 1, -2).astype(dtype)
    stacked = newest_last.reshape(*newest_last.shape[:-2], -1)
    if not has_actions:
        return stacked
    num_actions, full = state.actions.shape[-1], _full(dtype)
    if len(shape) == 1:
        planes = (state.actions.astype(dtype) * full).reshape(stacked.shape[0], -1)
    else:
        # A table and one nonzero term a sum: the same bytes on every device.
        table = np.arange(num_actions) / num_actions * full
        table = np.round(table) if full == 255 else table
        scale = jnp.where(state.actions, table.astype(dtype), jnp.zeros((), dtype)).sum(axis=-1, dtype=dtype)
        planes = jnp.broadcast_to(scale[:, None, None], (*stacked.shape[:-1], scale.shape[-1]))
    return jnp.concatenate([stacked, planes.astype(dtype)], axis=-1)


def _full(dtype: Any) -> int:
    """What torsos read as 1."""
    return 255 if dtype == np.uint8 else 1


def _stacked_dtype(dtype: Any, rank: int, actions: bool) -> Any:
    fractions = actions and rank == 3
    return jnp.float32 if fractions and dtype != np.uint8 and not jnp.issubdtype(dtype, jnp.floating) else dtype
