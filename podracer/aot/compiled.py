"""What XLA says of a compiled program: memory, collectives; or that it does not fit."""

import dataclasses
import re
from typing import Any

import numpy as np

_KINDS = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all|collective-broadcast"
_COLLECTIVE = re.compile(rf"= (?P<shape>.*?) (?P<kind>{_KINDS})(?:-start)?\(")
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+|c64|c128|f8\w+)\[([\d,]*)\]")
_ROLES = "body|condition|calls|to_apply|branch_computations|true_computation|false_computation"
_CALLED = re.compile(rf"\b({_ROLES})=(?:\{{([^}}]*)\}}|([^\s,}}]+))")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT])")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class OutOfMemory(Exception):
    """The program does not fit. used, available: bytes of a device, 0 where XLA did not say."""

    def __init__(self, used: float, available: float):
        super().__init__(used, available)
        self.used, self.available = used, available


@dataclasses.dataclass(frozen=True)
class Message:
    """A collective of the compiled program, which may carry many arrays. depth: loops around it. num_bytes: of its results."""

    kind: str
    num_arrays: int
    num_bytes: int
    depth: int


@dataclasses.dataclass(frozen=True)
class Compiled:
    """On one device, in bytes: arguments that stay (state), results beside them, temporaries, and the program itself."""

    arguments: int
    results: int
    temporaries: int
    code: int
    messages: tuple[Message, ...]

    @property
    def num_bytes(self) -> int:
        """All of it at once."""
        return self.arguments + self.results + self.temporaries + self.code


def compile_traced(traced: Any) -> Compiled:
    """Compiles what `jax.jit(...).trace` gave, for the devices of its shardings.

    Raises:
      OutOfMemory: XLA refuses it.
    """
    import jax

    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(*sizes_of_refusal(str(error))) from error
    stats = compiled.memory_analysis()
    return Compiled(
        arguments=stats.argument_size_in_bytes,
        results=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        code=stats.generated_code_size_in_bytes,
        messages=messages(compiled.as_text()),
    )


def sizes_of_refusal(text: str) -> tuple[float, float]:
    """Bytes asked for and bytes there are, in XLA's words: `... (88.41G) exceeds available HBM (15.75G)`, or `Used 20.1G of
    15.75G hbm`.
    """
    found = [float(number) * _UNITS[unit] for number, unit in _SIZE.findall(text)]
    return (found[0], found[1]) if len(found) > 1 else (0.0, 0.0)


def messages(hlo: str) -> tuple[Message, ...]:
    """The collectives in the text of a compiled program, and how many loops lie around each."""
    inside: dict[str, list[Message]] = {}
    calls: dict[str, list[tuple[str, int]]] = {}
    name, entry = "", ""
    for line in hlo.splitlines():
        if line.endswith("{") and (line.startswith(("%", "ENTRY"))):
            name = line.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
            entry = name if line.startswith("ENTRY") else entry
            continue
        for role, several, one in _CALLED.findall(line):
            more = 1 if role == "body" else 0
            calls.setdefault(name, []).extend((callee.strip(" %"), more) for callee in (several or one).split(","))
        found = _COLLECTIVE.search(line)
        if found:
            arrays = _ARRAY.findall(found["shape"])
            num_bytes = sum(_array_bytes(dtype, sides) for dtype, sides in arrays)
            inside.setdefault(name, []).append(Message(found["kind"], len(arrays), num_bytes, 0))
    depths = {entry: 0}
    waiting = [entry]
    while waiting:
        caller = waiting.pop()
        for callee, more in calls.get(caller, []):
            if depths.get(callee, -1) < depths[caller] + more:
                depths[callee] = depths[caller] + more
                waiting.append(callee)
    return tuple(
        dataclasses.replace(one, depth=depths[name]) for name, group in inside.items() if name in depths for one in group
    )


def _array_bytes(dtype: str, sides: str) -> int:
    bits = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}.get(dtype) or (8 if dtype.startswith("f8") else int(dtype[1:]))
    return int(np.prod([int(side) for side in sides.split(",") if side], dtype=np.int64)) * bits // 8
