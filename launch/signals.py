"""SIGTERM and Ctrl-C as requests that the work answers when it can."""

import signal
import types
from typing import Any


class Stopped(Exception):
    """The work was asked to stop and has. exit_code: 0 after SIGTERM, 130 after Ctrl-C."""

    def __init__(self, name: str, exit_code: int):
        super().__init__(name)
        self.name, self.exit_code = name, exit_code


class StopRequests:
    """A context manager that notes the first request; a second one ends the process at once."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequests":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def pending(self) -> bool:
        """Whether someone asked."""
        return self._received is not None

    def stop(self) -> Stopped:
        """The exception that answers the request."""
        code = 130 if self._received == signal.SIGINT else 0
        return Stopped(signal.Signals(self._received or signal.SIGTERM).name, code)

    def check(self) -> None:
        """Raises Stopped if someone asked."""
        if self.pending:
            raise self.stop()

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        if self._received is not None:
            raise SystemExit(128 + number)
        self._received = number
