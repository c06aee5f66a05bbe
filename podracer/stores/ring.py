"""Replay in device memory: every environment has a ring of its own past unrolls.

A learning batch takes from environment i's ring the sequences that go with environment i's online one. The union over
environments is uniform over all that is stored (each ring holds as much), and no environment's data ever leaves its
device, so a result does not depend on the number of devices.
"""

from typing import Any

import jax
import jax.numpy as jnp

from podracer.types import Array, Key, Struct


class Ring(Struct):
    """data: leaves `[B, length, ...]`. num_inserted: `[]` int32, saturates so that it never overflows.

    priority: `[B, length]` float32, 0 where nothing is stored, or empty where unrolls are drawn uniformly.
    """

    data: Any
    num_inserted: Any
    priority: Any = ()


def init(example: Any, length: int, prioritized: bool = False) -> Ring:
    """An empty ring of `length` unrolls for each environment. `example`: leaves `[B, ...]`, arrays or shapes."""
    data = jax.tree.map(lambda x: jnp.zeros((x.shape[0], length, *x.shape[1:]), x.dtype), example)
    num_envs = jax.tree.leaves(example)[0].shape[0]
    return Ring(data=data, num_inserted=jnp.int32(0), priority=jnp.zeros((num_envs, length)) if prioritized else ())


def insert(ring: Ring, unroll: Any) -> tuple[Ring, Array]:
    """Adds one unroll for each environment, leaves `[B, ...]`, over the oldest, with the highest priority of its ring.

    Returns:
      The ring, and the index `[]` int32 at which it lies.
    """
    length = jax.tree.leaves(ring.data)[0].shape[1]
    slot = ring.num_inserted % length
    data = jax.tree.map(lambda buffer, x: buffer.at[:, slot].set(x), ring.data, unroll)
    # Schaul et al. 2016, algorithm 1, line 6: so that each is drawn before its own priority is known.
    priority = jax.tree.map(lambda p: p.at[:, slot].set(jnp.where(jnp.any(p > 0, 1), jnp.max(p, 1), 1.0)), ring.priority)
    # Wraps from 2 * length to length: the slot stays right, and the ring stays known to be full.
    count = ring.num_inserted + 1
    return Ring(data=data, num_inserted=jnp.where(count >= 2 * length, length, count), priority=priority), slot


def sample(ring: Ring, key: Key, num: int, exponent: float = 0.0) -> tuple[Any, Array, Array]:
    """Draws `num` unrolls for each environment from its ring, with replacement. There must be at least one.

    Args:
      ring: with data `[B, length, ...]`.
      key: `[B]` PRNG keys.
      num: unrolls an environment.
      exponent: of priorities; 0 draws uniformly.

    Returns:
      Leaves `[B, num, ...]`, their indices `[B, num]` int32, and `1 / (N P)` `[B, num]` float32 of each (see
      `Trajectory.importance`), `N` being what one ring holds.
    """
    length = jax.tree.leaves(ring.data)[0].shape[1]
    size = jnp.minimum(ring.num_inserted, length)
    if exponent:
        logits = jax.nn.log_softmax(jnp.where(jnp.arange(length) < size, exponent * jnp.log(ring.priority), -jnp.inf))
        index: Array = jax.vmap(lambda k, row: jax.random.categorical(k, row, shape=(num,)))(key, logits)
        importance = 1.0 / (size * jnp.exp(jnp.take_along_axis(logits, index, axis=1)))
    else:
        index = jax.vmap(lambda k: jax.random.randint(k, (num,), 0, size))(key)
        importance = jnp.ones(index.shape)
    return jax.tree.map(lambda buffer: jax.vmap(lambda row, i: row[i])(buffer, index), ring.data), index, importance


def prioritize(ring: Ring, index: Array, priority: Array) -> Ring:
    """Sets priorities `[B, n]` at `index` `[B, n]`. Those of 0 are set to the least positive number: all can be drawn."""
    smallest = jnp.finfo(jnp.float32).tiny
    return ring.replace(
        priority=jax.vmap(lambda row, i, p: row.at[i].set(jnp.maximum(p, smallest)))(ring.priority, index, priority)
    )
