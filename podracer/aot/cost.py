"""The cost of a program, from its jaxpr: XLA's own analysis counts the body of a loop once, whatever its length.

Counts are per device (inside `shard_map` shapes are those of one). Loops of known length count that often. A loop whose length
depends on data counts once and is named; a branch that depends on data counts as the dearest, or as the cheapest.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

COLLECTIVES = frozenset(
    ("psum", "psum_invariant", "pmax", "pmin", "all_gather", "all_gather_invariant", "reduce_scatter", "ppermute", "all_to_all")
)
_PASSES = {"HIGH": "high", "HIGHEST": "highest"}
# Layout and selection alone: no arithmetic. XLA fuses them into their neighbours.
_LAYOUT = ("broadcast_in_dim", "reshape", "transpose", "squeeze", "slice", "rev", "concatenate", "stack", "pad", "split")
_CASTS = ("convert_element_type", "bitcast_convert_type", "reduce_precision", "random_wrap", "random_unwrap", "real", "imag")
_NOTHING = ("copy", "stop_gradient", "iota", "optimization_barrier", "axis_index", "pvary", "empty", "platform_index")
_CHOICES = ("gather", "dynamic_slice", "dynamic_update_slice")
_FREE = frozenset((*_LAYOUT, *_CASTS, *_NOTHING, *_CHOICES))
_SCATTERS = ("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max")
_WHOLE = ("dot_general", "conv_general_dilated", "sort", "top_k", "cumsum", "cumprod", "cummax", "cummin", "argmax", "argmin")
# Operands and results of these pass through memory even where all around them is fused.
_MOVES = frozenset((*_CHOICES, *_SCATTERS, *_WHOLE))


@dataclasses.dataclass(frozen=True)
class Collective:
    """kind: the primitive, `psum`. num_bytes: of its operand on one device. num_devices: that take part."""

    kind: str
    num_bytes: int
    num_devices: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one device.

    matmul_flops: floating-point operations of matrix products and convolutions, a multiplication and an addition each, by the
      type of their operands and, where it is not the default, their precision: `float32`, `bfloat16`, `float32:highest`.
    other_ops: all other arithmetic, an element of a result each.
    num_bytes: through memory where XLA fuses all it can: operands and results of matrix products, convolutions, gathers,
      scatters and sorts, and what loops read and write slice by slice. num_bytes_unfused: if it fused nothing.
    rounds: of loops, innermost bodies, one after the other.
    collectives: how often each happens.
    opaque: by name, loops of unknown length (counted once), and calls that leave XLA (not counted).
    """

    matmul_flops: Mapping[str, float] = dataclasses.field(default_factory=dict)
    other_ops: float = 0.0
    num_bytes: float = 0.0
    num_bytes_unfused: float = 0.0
    rounds: float = 0.0
    collectives: Mapping[Collective, float] = dataclasses.field(default_factory=dict)
    opaque: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def flops(self) -> float:
        """Of matrix products and convolutions, of all types."""
        return sum(self.matmul_flops.values())

    @property
    def num_collectives(self) -> float:
        """Those of more than one device, an array each: XLA combines many of them."""
        return sum(count for one, count in self.collectives.items() if one.num_devices > 1)

    @property
    def collective_bytes(self) -> float:
        """Operands of the collectives of more than one device."""
        return sum(one.num_bytes * count for one, count in self.collectives.items() if one.num_devices > 1)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            _sum(self.matmul_flops, other.matmul_flops),
            self.other_ops + other.other_ops,
            self.num_bytes + other.num_bytes,
            self.num_bytes_unfused + other.num_bytes_unfused,
            self.rounds + other.rounds,
            _sum(self.collectives, other.collectives),
            _sum(self.opaque, other.opaque),
        )

    def __mul__(self, times: float) -> "Cost":
        return Cost(
            {key: times * value for key, value in self.matmul_flops.items()},
            times * self.other_ops,
            times * self.num_bytes,
            times * self.num_bytes_unfused,
            times * self.rounds,
            {key: times * value for key, value in self.collectives.items()},
            {key: times * value for key, value in self.opaque.items()},
        )


Choose = Callable[[Sequence[Cost]], Cost]


def cheapest(costs: Sequence[Cost]) -> Cost:
    """The branch that takes least."""
    return min(costs, key=_weight)


def dearest(costs: Sequence[Cost]) -> Cost:
    """The branch that takes most."""
    return max(costs, key=_weight)


def count(jaxpr: Any, choose: Choose = dearest) -> Cost:
    """The cost of a jaxpr, closed or not. choose: which branch counts."""
    return _Counter(choose).jaxpr(_open(jaxpr), {})


def count_loop(jaxpr: Any, choose: Choose = dearest) -> tuple[Cost, Cost]:
    """Of a program that is one loop of a length given at run time: what comes with a call, and what with each round.

    Raises:
      ValueError: there is no such loop, or more than one.
    """
    counter = _Counter(choose)
    counter.outer_loops = []
    call = counter.jaxpr(_open(jaxpr), {})
    if len(counter.outer_loops) != 1:
        raise ValueError(f"a program of one loop was expected, not of {len(counter.outer_loops)}")
    return call, counter.outer_loops[0]


def num_devices(jaxpr: Any) -> int:
    """That a program runs on: the size of its mesh, 1 without."""
    for eqn in _open(jaxpr).eqns:
        if eqn.primitive.name == "shard_map":
            return math.prod(eqn.params["mesh"].shape.values())
        for inner in _jaxprs(eqn.params):
            if (found := num_devices(inner)) > 1:
                return found
    return 1


class _Counter:
    def __init__(self, choose: Choose):
        self.choose = choose
        self.outer_loops: list[Cost] | None = None  # a list: loops of unknown length on the way are put there, and not counted

    def jaxpr(self, jaxpr: Any, axes: Mapping[str, int]) -> Cost:
        total = Cost()
        # What nothing depends on is gone before XLA sees it.
        for eqn in dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0].eqns:
            total += self.equation(eqn, axes)
        return total

    def equation(self, eqn: Any, axes: Mapping[str, int]) -> Cost:
        name, params = eqn.primitive.name, eqn.params
        if name == "scan":
            slices = sum(_num_bytes(v) for v in eqn.invars[params["num_consts"] + params["num_carry"] :])
            slices += sum(_num_bytes(v) for v in eqn.outvars[params["num_carry"] :])
            moved = Cost(num_bytes=slices, num_bytes_unfused=slices)
            return _round(self.inside(params["jaxpr"], axes)) * params["length"] + moved
        if name == "while":
            return self.loop(eqn, axes)
        if name == "cond":
            return self.choose([self.inside(branch, axes) for branch in params["branches"]])
        if name == "shard_map":
            return self.jaxpr(_open(params["jaxpr"]), {**axes, **dict(params["mesh"].shape)})
        if name in COLLECTIVES:
            return _collective(eqn, axes)
        inner = list(_jaxprs(params))
        if inner and name not in _SCATTERS:
            return self.jaxpr(inner[0], axes) if name.startswith("custom_") else self.several(inner, axes)
        return _simple(eqn)

    def several(self, jaxprs: Sequence[Any], axes: Mapping[str, int]) -> Cost:
        total = Cost()
        for jaxpr in jaxprs:
            total += self.jaxpr(jaxpr, axes)
        return total

    def inside(self, jaxpr: Any, axes: Mapping[str, int]) -> Cost:
        """Of a body that is not on the way to the outermost loop."""
        found, self.outer_loops = self.outer_loops, None
        cost = self.jaxpr(_open(jaxpr), axes)
        self.outer_loops = found
        return cost

    def loop(self, eqn: Any, axes: Mapping[str, int]) -> Cost:
        body = self.inside(eqn.params["body_jaxpr"], axes) + self.inside(eqn.params["cond_jaxpr"], axes)
        if self.outer_loops is not None:
            self.outer_loops.append(body)
            return Cost()
        return _round(body) + Cost(opaque={"loop of unknown length": 1.0})


def _round(body: Cost) -> Cost:
    """Of a loop's body, which is a round itself where no loop is in it."""
    return body if body.rounds else body + Cost(rounds=1.0)


def _simple(eqn: Any) -> Cost:
    """Of an equation without equations inside."""
    name = eqn.primitive.name
    moved = sum(map(_num_bytes, eqn.invars)) + sum(map(_num_bytes, eqn.outvars))
    if "callback" in name or "ffi_call" in name or name == "pallas_call" or name == "custom_call":
        return Cost(num_bytes=moved, num_bytes_unfused=moved, opaque={name: 1.0})
    through = _traffic(eqn) if name in _MOVES else 0
    if name == "dot_general":
        return Cost({_type(eqn): _dot_flops(eqn)}, num_bytes=through, num_bytes_unfused=moved)
    if name == "conv_general_dilated":
        return Cost({_type(eqn): _conv_flops(eqn)}, num_bytes=through, num_bytes_unfused=moved)
    ops = 0 if name in _FREE else max(map(_size, [*eqn.invars, *eqn.outvars]), default=0)
    return Cost(other_ops=ops, num_bytes=through, num_bytes_unfused=moved)


def _traffic(eqn: Any) -> int:
    """Bytes that an operation of `_MOVES` reads and writes; of what it only chooses from, or changes in place, the part."""
    name, ins, out = eqn.primitive.name, [_num_bytes(v) for v in eqn.invars], sum(map(_num_bytes, eqn.outvars))
    if name in ("gather", "dynamic_slice"):
        return 2 * out + sum(ins[1:])
    if name == "dynamic_update_slice":
        return 2 * ins[1]
    if name in _SCATTERS:
        return ins[1] + 2 * ins[2]
    return sum(ins) + out


def _collective(eqn: Any, axes: Mapping[str, int]) -> Cost:
    params = eqn.params
    names = params.get("axes", params.get("axis_name", ()))
    names = names if isinstance(names, (tuple, list)) else (names,)
    num = math.prod(axes.get(name, 1) for name in names if isinstance(name, str))
    counts = Counter(Collective(eqn.primitive.name, _num_bytes(v), num) for v in eqn.invars)
    moved = 2 * sum(map(_num_bytes, eqn.invars))
    return Cost(num_bytes=moved, num_bytes_unfused=moved, collectives={one: float(n) for one, n in counts.items()})


def _dot_flops(eqn: Any) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return 2.0 * _size(eqn.outvars[0]) * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)


def _conv_flops(eqn: Any) -> float:
    """Without the products with padding and with the zeros of dilation."""
    params, (lhs, rhs) = eqn.params, [v.aval.shape for v in eqn.invars]
    numbers = params["dimension_numbers"]
    out = eqn.outvars[0].aval.shape
    pairs = 1.0
    for axis, (low, _) in enumerate(params["padding"]):
        size, taps, steps = lhs[numbers.lhs_spec[2 + axis]], rhs[numbers.rhs_spec[2 + axis]], out[numbers.out_spec[2 + axis]]
        dilation = params["lhs_dilation"][axis]
        place = np.arange(steps)[:, None] * params["window_strides"][axis] - low
        place = place + np.arange(taps) * params["rhs_dilation"][axis]
        pairs *= int(np.count_nonzero((place >= 0) & (place <= (size - 1) * dilation) & (place % dilation == 0)))
    batch, channels = out[numbers.out_spec[0]], out[numbers.out_spec[1]]
    return 2.0 * batch * channels * rhs[numbers.rhs_spec[1]] * pairs


def _type(eqn: Any) -> str:
    dtype = max((v.aval.dtype for v in eqn.invars), key=lambda dtype: dtype.itemsize)
    precision = eqn.params.get("precision")
    first = precision[0] if isinstance(precision, (tuple, list)) else precision
    suffix = _PASSES.get(getattr(first, "name", ""))
    return f"{dtype.name}:{suffix}" if suffix else dtype.name


def _jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            opened = _open(one)
            if hasattr(opened, "eqns"):
                yield opened


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _size(variable: Any) -> int:
    return math.prod(getattr(variable.aval, "shape", ()))


def _num_bytes(variable: Any) -> int:
    dtype = getattr(variable.aval, "dtype", None)
    return _size(variable) * dtype.itemsize if dtype is not None else 0


def _weight(cost: Cost) -> tuple[float, float]:
    return cost.flops + cost.other_ops, cost.num_bytes


def _sum(a: Mapping[Any, float], b: Mapping[Any, float]) -> dict[Any, float]:
    return {key: a.get(key, 0.0) + b.get(key, 0.0) for key in {**a, **b}}
