"""What commands say: quantities in words, and a mistake in one line."""

import shutil
import sys
import textwrap

from podracer.config import one_line

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_TIMES = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"))


def complain(text: object) -> None:
    """Says on stderr, in one line, what a user is to know or to do."""
    print(f"podracer: {one_line(text)}", file=sys.stderr, flush=True)


def row(name: str, text: str, width: int) -> None:
    """Prints `text` behind `name`, which has `width` columns; on a terminal, the rest of a long one goes below."""
    line, indent = f"{name:{width}} {text}", " " * (width + 1)
    if sys.stdout.isatty():
        columns = max(shutil.get_terminal_size().columns, width + 30)
        line = textwrap.fill(
            line, columns, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False, replace_whitespace=False
        )
    print(line, flush=True)


def many(number: int, noun: str) -> str:
    """`1 device`, `1,024 devices`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def quantity(number: float, unit: str = "") -> str:
    """`1.5 GB` of 1.5e9 and "B"."""
    for power, prefix in _PREFIXES:
        if number >= power:
            return f"{number / power:.3g} {prefix}{unit}"
    return f"{number:.3g} {unit}".strip()


def time_span(seconds: float) -> str:
    """`1.5 ms`, `3 d`."""
    for size, unit in _TIMES:
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us" if seconds else "0"
