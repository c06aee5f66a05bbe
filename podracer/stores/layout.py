"""Pytrees as Reverb's items: lists of arrays. Containers may be of any class: JAX knows them, Reverb need not."""

from typing import Any

import jax
import numpy as np

from podracer.stores.reverb import Spec


class Layout:
    """How trees of one structure become lists, and lists trees.

    signature: a list of `Spec`, each with its leaf's path as name.
    """

    def __init__(self, example: Any):
        """`example`: arrays, or whatever has their shapes and dtypes."""
        leaves, self._containers = jax.tree_util.tree_flatten_with_path(example)
        self.signature = [Spec(tuple(x.shape), x.dtype, jax.tree_util.keystr(path)) for path, x in leaves]

    def pack(self, tree: Any) -> list[np.ndarray]:
        """The leaves, on the host."""
        return [np.asarray(x) for x in jax.device_get(jax.tree.leaves(tree))]

    def unpack(self, leaves: list[np.ndarray]) -> Any:
        """The tree of them."""
        return jax.tree.unflatten(self._containers, leaves)
