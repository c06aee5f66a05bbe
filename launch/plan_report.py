"""What `podracer plan` prints."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from podracer.aot.roofline import ASSUMPTIONS
from podracer.launch.analyze import Program
from podracer.launch.plan import Answer, Price, estimate, update_seconds
from podracer.launch.words import quantity, time_span

_WHAT = {"updates": "an update", "update": "an update", "act": "an actor's step"}
_BOUNDS = {"matmul": "arithmetic", "memory": "HBM", "links": "links", "network": "network"}
_SIZES = {"arguments": "state and arguments", "results": "results", "temporaries": "temporaries", "code": "program"}


def show(answer: Answer, price: Price) -> None:
    """The whole report, on stdout."""
    # Where nobody watches, as wide as the tables are.
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
    console.print("\n".join(answer.analysis.outline), markup=False)
    topology, chip = answer.topology, answer.topology.chip
    slices = f" in {topology.num_slices} slices" if topology.num_slices > 1 and chip.platform == "tpu" else ""
    shape = f" of {topology.shape}" if topology.shape else ""
    hosts = "1 host" if topology.num_hosts == 1 else f"{topology.num_hosts:,} hosts"
    console.print(f"\n{topology.name}: {topology.num_chips:,} {chip.kind}{slices}{shape}, {hosts}", markup=False)
    programs = answer.analysis.programs
    _print(console, "cost of a device", _costs(programs))
    _print(console, _memory_title(answer), _memory(answer))
    together = [program for program in programs if program.num_devices > 1 and program.messages]
    if together:
        _print(console, "collectives as XLA combines them", _messages(together))
    if any(program.bound for program in programs):
        _print(console, "roofline, a device", _bounds(programs))
        _print(console, "estimate", _estimate(answer, price))
    for title, lines in (
        ("notes", (*answer.notes, *_rounds(programs))),
        ("assumptions of the estimate", ASSUMPTIONS if chip.peak_flops else ()),
    ):
        if lines:
            console.print("\n" + "\n".join([f"{title}:", *(f"  * {line}" for line in lines)]), markup=False)


def _costs(programs: Iterable[Program]) -> Table:
    table = _table("", "FLOPs of matmul", "other arithmetic", "bytes, fused", "bytes, unfused", "collectives", "their bytes")
    for program in programs:
        table.add_row(_WHAT[program.name], *_cost(program.most, program.least))
        if program.once.get("num_collectives"):
            table.add_row("a call, besides", *_cost(program.once, program.once))
    opaque = {name: count for program in programs for name, count in program.most["opaque"].items()}
    if opaque:
        table.caption = "in it: " + ", ".join(f"{count:,.0f} x {name}" for name, count in opaque.items())
    return table


def _cost(most: Mapping[str, Any], least: Mapping[str, Any]) -> list[str]:
    def span(key: str, unit: str) -> str:
        low, high = quantity(least[key], unit), quantity(most[key], unit)
        return high if low == high else f"{low} to {high}"

    return [
        span("flops", ""),
        span("other_ops", ""),
        span("num_bytes", "B"),
        span("num_bytes_unfused", "B"),
        f"{most['num_collectives']:,.0f}",
        quantity(most["collective_bytes"], "B"),
    ]


def _memory_title(answer: Answer) -> str:
    if answer.fits is None:
        return "memory of a device, ESTIMATED"
    return "memory of a device, as XLA lays it out"


def _memory(answer: Answer) -> Table:
    memory = answer.topology.chip.memory / answer.topology.chip.devices
    table = _table("", *_SIZES.values(), "together", "of")
    for program in answer.analysis.programs:
        of = quantity(memory, "B") if memory else "?"
        if program.compiled:
            together = sum(program.compiled.values())
            sizes = [*(program.compiled[key] for key in _SIZES), together]
            share = f" ({together / memory:.1%})" if memory else ""
            table.add_row(program.name, *(quantity(size, "B") for size in sizes), of + share)
        elif program.refused:
            unknown = [""] * len(_SIZES)
            table.add_row(program.name, *unknown, "DOES NOT FIT: " + quantity(program.refused[0], "B"), of)
        else:
            arrays = sum(answer.analysis.arrays.values())
            table.add_row(program.name, quantity(arrays, "B"), *["not compiled"] * 3, "more", of)
    return table


def _messages(programs: Iterable[Program]) -> Table:
    table = _table("", "kind", "arrays", "bytes", "where")
    for program in programs:
        for one in program.messages:
            table.add_row(program.name, one["kind"], str(one["num_arrays"]), f"{one['num_bytes']:,}", _where(program, one))
    return table


def _where(program: Program, message: Mapping[str, Any]) -> str:
    depth = message["depth"] - (program.name == "updates")
    if depth < 0:
        return "once a call"
    return "once an update" if depth == 0 else "in loops of an update"


def _bounds(programs: Iterable[Program]) -> Table:
    table = _table("", *_BOUNDS.values(), "at least", "limited by")
    for program in programs:
        if program.bound:
            limit = max(program.bound, key=lambda name: program.bound[name] if program.bound else 0.0)
            times = [time_span(program.bound[key]) for key in _BOUNDS]
            table.add_row(_WHAT[program.name], *times, time_span(program.bound[limit]), _BOUNDS[limit])
    return table


def _estimate(answer: Answer, price: Price) -> Table:
    found, plan = estimate(answer, price), answer.analysis.plan
    share = "at the bound, so at the most" if price.efficiency == 1 else f"at {price.efficiency:.3g} of the bound"
    table = _table("", share)
    if not update_seconds(answer.analysis):
        return table
    table.add_row("agent steps/s", f"{found['steps_per_second']:,.0f}")
    table.add_row("frames/s", f"{found['frames_per_second']:,.0f}")
    frames = plan["num_env_slots"] * answer.analysis.frames_per_step
    table.add_row("budget", f"{plan['num_updates']:,} updates, {frames:,} frames")
    table.add_row("time", time_span(found["seconds"]))
    table.add_row("chip hours", f"{found['chip_hours']:,.4g}")
    if "cost" in found:
        table.add_row("cost", f"{found['cost']:,.2f} at {price.per_chip_hour:g} a chip and hour")
    return table


def _rounds(programs: Iterable[Program]) -> list[str]:
    """How little a round of a program's loops does."""
    return [
        f"{_WHAT[program.name]} is {rounds:,.0f} rounds of loops one after the other, "
        f"{time_span(max(program.bound.values()) / rounds)} each at the bound: where that is microseconds, the fixed costs of "
        "operations decide, and they are not counted"
        for program in programs
        if program.bound and (rounds := program.least["rounds"])
    ]


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return table


def _print(console: Console, title: str, table: Table) -> None:
    console.print(f"\n{title}", markup=False)
    console.print(table, soft_wrap=False)
