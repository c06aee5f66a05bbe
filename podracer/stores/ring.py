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
    """data: leaves `[B, length, ...]`. num_inserted: `[]` int32, saturates so that it never overflows."""

    data: Any
    num_inserted: Any


def init(example: Any, length: int) -> Ring:
    """An empty ring of `length` unrolls for each environment. `example`: leaves `[B, ...]`, arrays or shapes."""
    data = jax.tree.map(lambda x: jnp.zeros((x.shape[0], length, *x.shape[1:]), x.dtype), example)
    return Ring(data=data, num_inserted=jnp.int32(0))


def insert(ring: Ring, unroll: Any) -> Ring:
    """Adds one unroll for each environment, leaves `[B, ...]`, over the oldest."""
    length = jax.tree.leaves(ring.data)[0].shape[1]
    slot = ring.num_inserted % length
    data = jax.tree.map(lambda buffer, x: buffer.at[:, slot].set(x), ring.data, unroll)
    # Wraps from 2 * length to length: the slot stays right, and the ring stays known to be full.
    count = ring.num_inserted + 1
    return Ring(data=data, num_inserted=jnp.where(count >= 2 * length, length, count))


def sample(ring: Ring, key: Key, num: int) -> Any:
    """Draws `num` unrolls for each environment, uniformly and with replacement. There must be at least one.

    Args:
      ring: with data `[B, length, ...]`.
      key: `[B]` PRNG keys.
      num: unrolls an environment.

    Returns:
      Leaves `[B, num, ...]`.
    """
    length = jax.tree.leaves(ring.data)[0].shape[1]
    size = jnp.minimum(ring.num_inserted, length)
    index: Array = jax.vmap(lambda k: jax.random.randint(k, (num,), 0, size))(key)
    return jax.tree.map(lambda buffer: jax.vmap(lambda row, i: row[i])(buffer, index), ring.data)
