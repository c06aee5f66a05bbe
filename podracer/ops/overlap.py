"""Unrolls that overlap: the end of the last one comes along as the start of the next, as burn-in and tail of R2D2 need it."""

from typing import Any

import jax
import jax.numpy as jnp

from podracer.types import LAST, ActorState, Trajectory


def nothing(unroll: Trajectory, length: int) -> Trajectory:
    """What comes before the first unroll: `length` LAST time steps of zeros, no pair of which is a transition of an episode.

    Args:
      unroll: arrays or shapes, time steps `[T+1, B, ...]`.
      length: of the overlap, `O`.

    Returns:
      Time steps and actor outputs `[O, B, ...]`, actor state `[B, ...]`.
    """

    def zeros(tree: Any) -> Any:
        return jax.tree.map(lambda x: jnp.zeros((length, *x.shape[1:]), x.dtype), tree)

    timestep = zeros(unroll.timestep)
    return Trajectory(
        timestep=timestep.replace(step_type=jnp.full_like(timestep.step_type, LAST)),
        actor_output=zeros(unroll.actor_output),
        actor_state=jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), unroll.actor_state),
    )


def end(unroll: Trajectory, length: int, actor_state: ActorState) -> Trajectory:
    """The last `O` steps of an unroll `[T+1, B, ...]`. `actor_state`: before the first of them."""
    first = unroll.actor_output.action.shape[0] - length
    return Trajectory(
        timestep=jax.tree.map(lambda x: x[first:-1], unroll.timestep),
        actor_output=jax.tree.map(lambda x: x[first:], unroll.actor_output),
        actor_state=actor_state,
    )


def join(before: Trajectory, unroll: Trajectory) -> Trajectory:
    """`O` steps and the `T` that follow, as one trajectory: time steps `[O+T+1, B, ...]`."""

    def append(a: Any, b: Any) -> Any:
        return jax.tree.map(lambda x, y: jnp.concatenate([x, y]), a, b)

    return Trajectory(
        timestep=append(before.timestep, unroll.timestep),
        actor_output=append(before.actor_output, unroll.actor_output),
        actor_state=before.actor_state,
    )


def drop(unroll: Trajectory, length: int) -> Trajectory:
    """`unroll` without its first `length` steps, and without the state, which was before those."""
    timestep, output = jax.tree.map(lambda x: x[length:], (unroll.timestep, unroll.actor_output))
    return unroll.replace(timestep=timestep, actor_output=output, actor_state=())
