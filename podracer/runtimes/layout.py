"""Where the arrays of a runtime's state lie, and how large they are."""

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def shardings(mesh: Mesh, specs: Any) -> Any:
    """Shardings over `mesh` for a tree of partition specs."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda leaf: isinstance(leaf, P))


def placed(shapes: Any, where: Any) -> Any:
    """Shapes (or arrays, for theirs) that know their sharding: arguments for a trace. where: a tree prefix of shardings."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, jax.tree.broadcast(where, shapes)
    )


def num_bytes(tree: Any) -> int:
    """Bytes of all arrays, of each on one device where they are `placed`."""

    def one(x: Any) -> int:
        shape = x.shape if getattr(x, "sharding", None) is None else x.sharding.shard_shape(x.shape)
        return math.prod(shape) * x.dtype.itemsize

    return sum(map(one, jax.tree.leaves(tree)))
