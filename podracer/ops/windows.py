"""Windows of an unroll: what a model that starts at every `t` should predict after `k = 1..K` steps."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from podracer.types import Array, TimeStep


class WindowMasks(NamedTuple):
    """Masks `[K, T, B]` float32 of the predictions `k` steps (1-based) after each start `t`.

    alive: 1 where step `t + k` is reached from `t` within the episode; elsewhere rewards and values have the target 0.
    value: 1 where reward and value have a target: alive, or after a TERMINATION (an absorbing state with reward 0 and value
      0). 0 after a truncation, of which nobody knows what follows, for starts on LAST, and beyond the unroll.
    policy: 1 where the policy has a target: alive and not at a termination.
    in_unroll: 1 where `t + k <= T`.
    """

    alive: Array
    value: Array
    policy: Array
    in_unroll: Array


def windows(values: Array, num_steps: int, offset: int = 0) -> Array:
    """`[N, ...]` to `[K, T, ...]` with `result[k, t] = values[t + k + offset]`, `T = N - offset`; zeros beyond the end.

    With `offset` 1, values at `t + 1 .. t + K` of `T + 1` time steps; with 0, the actions that lead there.
    """
    padded = jnp.concatenate([values, jnp.zeros((num_steps, *values.shape[1:]), values.dtype)])
    length = values.shape[0] - offset
    return jnp.stack([padded[k + offset : k + offset + length] for k in range(num_steps)])


def pad_last(values: Array) -> Array:
    """`[T, ...]` to `[T+1, ...]`: what actors gave, and an entry for the last time step that nobody must read."""
    return jnp.concatenate([values, values[-1:]])


def window_masks(timestep: TimeStep, num_steps: int) -> WindowMasks:
    """Where `num_steps` predictions from each of the first `T` time steps have targets.

    Args:
      timestep: step types and discounts `[T+1, B]`.
      num_steps: `K`.

    Returns:
      `WindowMasks`. No gradients flow.
    """
    chex.assert_rank([timestep.step_type, timestep.discount], 2)
    last = timestep.last()
    terminated = last & (timestep.discount == 0)
    in_unroll = windows(jnp.ones(last.shape, jnp.bool), num_steps, 1)
    last_k, terminated_k = windows(last, num_steps, 1), windows(terminated, num_steps, 1)
    # What step k inherits from those before it: whether all were inside the episode, and whether one was its termination.
    inside, absorbed, alive, absorbing = ~last[:-1], jnp.zeros_like(last[:-1]), [], []
    for k in range(num_steps):
        alive.append(inside)
        absorbing.append(absorbed)
        absorbed = absorbed | (inside & terminated_k[k])
        inside = inside & ~last_k[k]
    alive_k, absorbed_k = jnp.stack(alive) & in_unroll, jnp.stack(absorbing) & in_unroll
    masks = WindowMasks(alive=alive_k, value=alive_k | absorbed_k, policy=alive_k & ~terminated_k, in_unroll=in_unroll)
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x.astype(jnp.float32)), masks)
