"""Trees of arrays, and signatures that describe them. Our own small walk over containers, so that JAX is not needed.

Containers: dictionaries with string keys (in the order of their sorted keys, as JAX and dm-tree have it), lists, tuples,
named tuples and dataclasses (fields in their order). None and empty containers have no leaves. All else is a leaf. On the
wire a dataclass is a named tuple: Reverb's signatures know no other, and a path such as `timestep.reward` is the same in
both.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from podracer.stores.reverb import tensors, wire
from podracer.stores.reverb.errors import SignatureMismatch


@dataclasses.dataclass(frozen=True)
class Spec:
    """A leaf of a signature. shape: None is any size along that axis, or of the whole, any shape. dtype: of numpy."""

    shape: tuple[int | None, ...] | None
    dtype: Any
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", np.dtype(self.dtype))
        if self.shape is not None:
            object.__setattr__(self, "shape", tuple(self.shape))

    def admits(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
        """Whether an array of this shape and dtype fits."""
        if tensors.dtype_number(dtype) != tensors.dtype_number(self.dtype):
            return False
        if self.shape is None:
            return True
        return len(shape) == len(self.shape) and all(
            want is None or want == have for want, have in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        return _describe(self.shape, self.dtype)


def _describe(shape: tuple[int | None, ...] | None, dtype: Any) -> str:
    if shape is None:
        return f"{np.dtype(dtype)}[...]"
    return f"{np.dtype(dtype)}[{', '.join('?' if size is None else str(size) for size in shape)}]"


def _children(tree: Any) -> tuple[Iterator[tuple[str, Any]], Callable[[list[Any]], Any]] | None:
    """(path parts and children, how to build the container anew); None for a leaf."""
    if tree is None:
        return iter(()), lambda _: None
    if isinstance(tree, Spec):
        return None
    if isinstance(tree, dict):
        keys = sorted(tree)
        return ((f"[{key!r}]", tree[key]) for key in keys), lambda values: dict(zip(keys, values, strict=True))
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return ((f".{name}", getattr(tree, name)) for name in tree._fields), lambda values: type(tree)(*values)
    if isinstance(tree, list | tuple):
        return ((f"[{i}]", child) for i, child in enumerate(tree)), type(tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [field.name for field in dataclasses.fields(tree)]
        return (
            ((f".{name}", getattr(tree, name)) for name in names),
            lambda values: type(tree)(**dict(zip(names, values, strict=True))),
        )
    return None


def flatten(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    """The leaves in order, each with its path (`.timestep.observation['x']`)."""
    found = _children(tree)
    if found is None:
        return [(path, tree)]
    return [leaf for part, child in found[0] for leaf in flatten(child, path + part)]


def rebuild(tree: Any, leaves: Iterator[Any]) -> Any:
    """A tree with the containers of `tree` and other leaves, taken in the order of `flatten`."""
    found = _children(tree)
    if found is None:
        return next(leaves)
    children, build = found
    return build([rebuild(child, leaves) for _, child in children])


def signature_of(tree: Any) -> Any:
    """The same containers with a `Spec` in place of each leaf: arrays, scalars, or whatever has a shape and a dtype."""

    def spec(leaf: Any) -> Spec:
        if isinstance(leaf, Spec):
            return leaf
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
            leaf = np.asarray(leaf)
        return Spec(tuple(leaf.shape), tensors.dtype_of(tensors.dtype_number(leaf.dtype)))

    return rebuild(tree, iter([spec(leaf) for _, leaf in flatten(tree)]))


class Checker:
    """A signature ready to be held against many trees."""

    def __init__(self, signature: Any, owner: str):
        """Args: signature: a tree of `Spec`. owner: who wants it so, for the text of errors (`table 'replay'`)."""
        self.signature = signature
        self.owner = owner
        self._specs: list[tuple[str, Spec]] = flatten(signature)

    def check(self, leaves: list[tuple[str, np.ndarray]]) -> None:
        """Raises SignatureMismatch, in one line, unless paths, dtypes and shapes are those of the signature."""
        if [path for path, _ in leaves] != [path for path, _ in self._specs]:
            have, want = {path for path, _ in leaves}, {path for path, _ in self._specs}
            problems = [f"missing {path or 'array'}" for path in sorted(want - have)]
            problems += [f"unknown {path or 'array'}" for path in sorted(have - want)]
            raise SignatureMismatch(f"{self.owner} holds another structure: {', '.join(problems) or 'another order'}")
        self.check_arrays([leaf for _, leaf in leaves])

    def check_arrays(self, arrays: list[np.ndarray]) -> None:
        """The same for leaves without paths, in order."""
        if len(arrays) != len(self._specs):
            raise SignatureMismatch(f"{self.owner} holds {len(self._specs)} arrays an item, not {len(arrays)}")
        for (path, spec), array in zip(self._specs, arrays, strict=True):
            if not spec.admits(array.shape, array.dtype):
                raise SignatureMismatch(
                    f"{path.lstrip('.') or 'the array'} is {_describe(array.shape, array.dtype)}; {self.owner} holds {spec}"
                )


def to_wire(signature: Any) -> Any:
    """The StructuredValue message of a tree of `Spec`."""
    value = wire.StructuredValue()
    _fill(value, signature)
    return value


def _fill(value: Any, tree: Any) -> None:
    if tree is None:
        value.none_value.SetInParent()
    elif isinstance(tree, Spec):
        spec = value.tensor_spec_value
        spec.name = tree.name
        spec.dtype = tensors.dtype_number(tree.dtype)
        _fill_shape(spec.shape, tree.shape)
    elif isinstance(tree, dict):
        value.dict_value.SetInParent()
        for key in sorted(tree):
            if not isinstance(key, str):
                raise TypeError(f"a signature's dictionary needs string keys, not {key!r}")
            _fill(value.dict_value.fields[key], tree[key])
    elif isinstance(tree, list):
        value.list_value.SetInParent()
        for child in tree:
            _fill(value.list_value.values.add(), child)
    elif isinstance(tree, tuple) and not hasattr(tree, "_fields"):
        value.tuple_value.SetInParent()
        for child in tree:
            _fill(value.tuple_value.values.add(), child)
    else:
        found = _children(tree)
        if found is None:
            raise TypeError(f"a signature's leaves are of the class Spec, not {type(tree).__name__}")
        value.named_tuple_value.name = type(tree).__name__
        for part, child in found[0]:
            pair = value.named_tuple_value.values.add(key=part[1:])
            _fill(pair.value, child)


def _fill_shape(message: Any, shape: tuple[int | None, ...] | None) -> None:
    message.SetInParent()
    if shape is None:
        message.unknown_rank = True
        return
    for size in shape:
        message.dim.add(size=-1 if size is None else size)


def from_wire(value: Any) -> Any:
    """The tree of `Spec` that a StructuredValue message describes. Raises ValueError for kinds that Reverb does not use."""
    kind = value.WhichOneof("kind")
    if kind in (None, "none_value"):
        return None
    if kind in ("tensor_spec_value", "bounded_tensor_spec_value"):
        spec = getattr(value, kind)
        return Spec(_read_shape(spec.shape), tensors.dtype_of(spec.dtype), spec.name)
    if kind == "dict_value":
        return {key: from_wire(value.dict_value.fields[key]) for key in sorted(value.dict_value.fields)}
    if kind == "list_value":
        return [from_wire(child) for child in value.list_value.values]
    if kind == "tuple_value":
        return tuple(from_wire(child) for child in value.tuple_value.values)
    if kind == "named_tuple_value":
        pairs = value.named_tuple_value.values
        built = _named_tuple(value.named_tuple_value.name, tuple(pair.key for pair in pairs))
        return built(*(from_wire(pair.value) for pair in pairs))
    raise ValueError(f"a signature with a {kind} is not known here")


def _read_shape(message: Any) -> tuple[int | None, ...] | None:
    if message.unknown_rank:
        return None
    return tuple(None if dim.size < 0 else dim.size for dim in message.dim)


@functools.cache
def _named_tuple(name: str, fields: tuple[str, ...]) -> Any:
    return collections.namedtuple(name, fields)
