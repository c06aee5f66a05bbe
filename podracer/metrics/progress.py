"""One line that says where a long job is: a live bar on a terminal, plain lines every few seconds elsewhere."""

import math
import sys
import time
from types import TracebackType
from typing import TextIO

_PLAIN_SECONDS = 5.0


class ProgressLine:
    """A context manager around the work; `say` prints a line above the bar."""

    def __init__(self, total: int, unit: str, stream: TextIO | None = None):
        """Args:
        total: the amount of work. unit: what it counts. stream: standard output by default.
        """
        self.total, self.unit, self.stream = total, unit, stream or sys.stdout
        self._live = self.stream.isatty()
        self._last = -math.inf

    def __enter__(self) -> "ProgressLine":
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn
            from rich.table import Column

            # A long text goes on below, where the terminal is narrow: its end is the time that is left.
            wraps, stays = Column(ratio=1, overflow="fold"), Column(no_wrap=True, width=24)
            bar, text = BarColumn(table_column=stays), TextColumn("{task.fields[text]}", markup=False, table_column=wraps)
            self._bar = Progress(bar, text, expand=True, console=Console(file=self.stream), transient=False)
            self._task = self._bar.add_task("", total=self.total, text="starting")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Prints a line without disturbing the bar."""
        if self._live:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self.stream, flush=True)

    def update(self, done: int, rate: float, detail: str = "") -> None:
        """Shows the state.

        Args:
          done: work done of `total`.
          rate: work a second, for the time that is left; nan where unknown.
          detail: more text, for example the return.
        """
        left = max(self.total - done, 0)
        eta = f"ETA {duration(left / rate)}" if rate > 0 else "ETA ?"
        text = f"{count(done)}/{count(self.total)} {self.unit}"
        text += f"  {count(rate)} {self.unit}/s" if rate > 0 else ""
        text = "  ".join(part for part in (text, detail, eta) if part)
        now = time.monotonic()
        if self._live:
            self._bar.update(self._task, completed=min(done, self.total), text=text)
        elif now - self._last >= _PLAIN_SECONDS or done >= self.total:
            self._last = now
            print(text, file=self.stream, flush=True)


def count(value: float) -> str:
    """`1234567` as `1.23M`."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """`3725` as `1:02:05`."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}"
