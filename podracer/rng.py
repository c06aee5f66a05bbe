"""Randomness: every key derives by `fold_in` from one seed, the name of its use, and indices. Never from a device count."""

import zlib
from typing import Any

import jax

from podracer.types import Array, Key


def stream(key: Key, name: str) -> Key:
    """The key of one named use (`act`, `environment`, `replay` ...) under `key`."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def columns(key: Key, index: Array) -> Key:
    """One key for each column of a batch: `key` `[]` and global indices `[B]` give `[B]`."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def at(key: Key, index: Array | int) -> Key:
    """`key` `[B]` at step `index`, `[B]`."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(key, index)


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of typed PRNG keys."""
    return hasattr(leaf, "dtype") and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
