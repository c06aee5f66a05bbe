"""Columns of a trajectory: cutting a batch up and putting batches together."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from podracer.types import Array, Trajectory


def batch_major(trajectory: Trajectory) -> Trajectory:
    """Time steps and actor outputs from `[T, B, ...]` to `[B, T, ...]`, or back; all else is `[B, ...]` in both.

    Of jax's arrays or numpy's.
    """

    def swap(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.swapaxes(0, 1), tree)

    return trajectory.replace(timestep=swap(trajectory.timestep), actor_output=swap(trajectory.actor_output))


def concatenate(first: Trajectory, second: Trajectory) -> Trajectory:
    """The columns of `first`, then those of `second`. Without targets."""

    def append(a: Any, b: Any, axis: int) -> Any:
        return jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=axis), a, b)

    return Trajectory(
        timestep=append(first.timestep, second.timestep, 1),
        actor_output=append(first.actor_output, second.actor_output, 1),
        actor_state=append(first.actor_state, second.actor_state, 0),
        importance=append(first.importance, second.importance, 0),
    )


def take(trajectory: Trajectory, order: np.ndarray) -> Trajectory:
    """Batches of chosen columns along a new leading axis: `order` `[N, B']` of column numbers. Without targets."""
    return Trajectory(
        timestep=jax.tree.map(lambda x: jnp.moveaxis(x[:, order], 1, 0), trajectory.timestep),
        actor_output=jax.tree.map(lambda x: jnp.moveaxis(x[:, order], 1, 0), trajectory.actor_output),
        actor_state=jax.tree.map(lambda x: x[order], trajectory.actor_state),
        importance=jax.tree.map(lambda x: x[order], trajectory.importance),
    )


def split(trajectory: Trajectory, num: int) -> Trajectory:
    """`num` batches of `B / num` columns along a new leading axis, for `lax.scan`.

    Targets of two axes or more are `[T or T+1, B, ...]`; those of fewer (metrics, scales) go to every batch as they are.
    """

    def cut(x: Array, axis: int) -> Array:
        shape = (*x.shape[:axis], num, x.shape[axis] // num, *x.shape[axis + 1 :])
        return jnp.moveaxis(x.reshape(shape), axis, 0)

    def cut_target(x: Array) -> Array:
        return cut(x, 1) if x.ndim >= 2 else jnp.broadcast_to(x, (num, *x.shape))

    return Trajectory(
        timestep=jax.tree.map(lambda x: cut(x, 1), trajectory.timestep),
        actor_output=jax.tree.map(lambda x: cut(x, 1), trajectory.actor_output),
        actor_state=jax.tree.map(lambda x: cut(x, 0), trajectory.actor_state),
        targets=jax.tree.map(cut_target, trajectory.targets),
        importance=jax.tree.map(lambda x: cut(x, 0), trajectory.importance),
    )
