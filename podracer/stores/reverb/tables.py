"""Descriptions of the server's tables: frozen, and written as JSON, since the server's process knows none of our classes."""

import base64
import dataclasses
import math
import sys
from typing import Any, Self

from podracer.stores.reverb import structure, wire

SELECTORS = ("fifo", "lifo", "uniform", "prioritized", "max_heap", "min_heap")
_UNLIMITED = sys.float_info.max


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """One table of a Reverb server. `queue`, `uniform` and `prioritized` make the usual ones.

    name: unique in the server.
    sampler, remover: which item is sampled, and which one goes when the table is full: one of `SELECTORS`.
    max_size: items; inserting into a full table removes one.
    max_times_sampled: samples after which an item is removed; 0 means never.
    priority_exponent: of a prioritized sampler or remover; items are drawn with probability ~ priority ** exponent.
    samples_per_insert, min_size_to_sample, min_diff, max_diff: the rate limiter. Let
      `diff = inserts * samples_per_insert - samples`. An insert waits while it would bring diff above max_diff (unless there
      are fewer than min_size_to_sample items), a sample while it would bring it below min_diff or there are fewer items.
    signature: tree whose leaves have shape and dtype (arrays, `structure.Spec`); None leaves items unchecked.
    """

    name: str
    sampler: str
    remover: str
    max_size: int
    max_times_sampled: int = 0
    priority_exponent: float = 1.0
    samples_per_insert: float = 1.0
    min_size_to_sample: int = 1
    min_diff: float = -_UNLIMITED
    max_diff: float = _UNLIMITED
    signature: Any = None

    def __post_init__(self) -> None:
        problem = None
        if not self.name:
            problem = "needs a name"
        elif self.sampler not in SELECTORS or self.remover not in SELECTORS:
            problem = f"has sampler {self.sampler!r} and remover {self.remover!r}; there are {', '.join(SELECTORS)}"
        elif self.max_size < 1 or not 1 <= self.min_size_to_sample <= self.max_size:
            problem = f"wants max_size {self.max_size} >= min_size_to_sample {self.min_size_to_sample} >= 1"
        elif self.max_times_sampled < 0 or self.priority_exponent < 0:
            problem = "has a negative max_times_sampled or priority_exponent"
        elif not (self.samples_per_insert > 0 and math.isfinite(self.samples_per_insert)):
            problem = f"has samples_per_insert {self.samples_per_insert}, which must be above 0"
        elif not (self.min_diff <= self.max_diff and math.isfinite(self.min_diff) and math.isfinite(self.max_diff)):
            problem = f"has min_diff {self.min_diff} and max_diff {self.max_diff}"
        if problem:
            raise ValueError(f"table {self.name!r} {problem}")

    @classmethod
    def queue(cls, name: str, max_size: int, signature: Any = None) -> Self:
        """First in, first out; each item is sampled once; inserts wait while `max_size` items are waiting."""
        return cls(
            name=name,
            sampler="fifo",
            remover="fifo",
            max_size=max_size,
            max_times_sampled=1,
            min_diff=0.0,
            max_diff=float(max_size),
            signature=signature,
        )

    @classmethod
    def uniform(
        cls,
        name: str,
        max_size: int,
        *,
        min_size: int = 1,
        samples_per_insert: float | None = None,
        tolerance: float | None = None,
        signature: Any = None,
    ) -> Self:
        """Uniform replay; the oldest item goes.

        Args:
          name: of the table.
          max_size: items.
          min_size: items before the first sample.
          samples_per_insert: the ratio that the server holds inserts and samples to; None leaves both free.
          tolerance: samples by which the ratio may be off to either side; at least `max(1, samples_per_insert)`, which is
            the default's tenth of what `min_size` items allow or that, whichever is more.
          signature: of an item.
        """
        return cls._replay("uniform", 1.0, name, max_size, min_size, samples_per_insert, tolerance, signature)

    @classmethod
    def prioritized(
        cls,
        name: str,
        max_size: int,
        *,
        exponent: float = 0.6,
        min_size: int = 1,
        samples_per_insert: float | None = None,
        tolerance: float | None = None,
        signature: Any = None,
    ) -> Self:
        """Prioritised replay (Schaul et al. 2016; exponent 0.6 is theirs); the oldest item goes. Else like `uniform`."""
        return cls._replay("prioritized", exponent, name, max_size, min_size, samples_per_insert, tolerance, signature)

    @classmethod
    def _replay(
        cls,
        sampler: str,
        exponent: float,
        name: str,
        max_size: int,
        min_size: int,
        samples_per_insert: float | None,
        tolerance: float | None,
        signature: Any,
    ) -> Self:
        limits: dict[str, float] = {}
        if samples_per_insert is not None:
            least = max(1.0, samples_per_insert)
            tolerance = max(least, 0.1 * samples_per_insert * min_size) if tolerance is None else tolerance
            if tolerance < least:
                raise ValueError(f"table {name!r} has tolerance {tolerance}; less than {least} would block both sides for ever")
            middle = samples_per_insert * min_size
            limits = {
                "samples_per_insert": samples_per_insert,
                "min_diff": middle - tolerance,
                "max_diff": middle + tolerance,
            }
        return cls(
            name=name,
            sampler=sampler,
            remover="fifo",
            max_size=max_size,
            priority_exponent=exponent,
            min_size_to_sample=min_size,
            signature=signature,
            **limits,  # type: ignore[arg-type]
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; the signature as base64 of its message."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.signature is not None:
            message = structure.to_wire(structure.signature_of(self.signature))
            values["signature"] = base64.b64encode(message.SerializeToString(deterministic=True)).decode()
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_json`; a dataclass in the signature comes back as a named tuple. Raises ValueError, TypeError."""
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"a table has no {', '.join(unknown)}")
        if values.get("signature") is not None:
            message = wire.StructuredValue.FromString(base64.b64decode(values["signature"]))
            values = {**values, "signature": structure.from_wire(message)}
        return cls(**values)

    @classmethod
    def parse(cls, text: str) -> Self:
        """`NAME=KIND:SIZE[:KEY=VALUE...]`, KIND one of queue, uniform, prioritized. Raises ValueError with one line.

        `online=queue:64`, `replay=prioritized:1e6:exponent=0.8:min_size=1000:samples_per_insert=4`.
        """
        makers: dict[str, Any] = {"queue": cls.queue, "uniform": cls.uniform, "prioritized": cls.prioritized}
        name, _, rest = text.partition("=")
        kind, *parts = rest.split(":")
        if not name or kind not in makers or not parts:
            raise ValueError(f"{text!r} is no table: write NAME=KIND:SIZE[:KEY=VALUE...], KIND one of {', '.join(makers)}")
        try:
            settings: dict[str, Any] = {key: float(value) for key, value in (part.split("=") for part in parts[1:])}
            if "min_size" in settings:
                settings["min_size"] = int(settings["min_size"])
            return makers[kind](name, int(float(parts[0])), **settings)
        except TypeError:
            raise ValueError(f"{text!r}: a {kind} has no such setting") from None
        except ValueError as error:
            wrong = "sizes and settings are numbers" if "convert" in str(error) else str(error)
            raise ValueError(f"{text!r}: {wrong}") from None
