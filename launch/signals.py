"""SIGTERM and Ctrl-C as requests that the work answers when it can."""

import os
import signal
import sys
import threading
import types
from typing import Any

_PATIENCE = 6.0  # seconds


class Stopped(Exception):
    """The work was asked to stop and has. exit_code: 0 after SIGTERM, 130 after Ctrl-C."""

    def __init__(self, name: str, exit_code: int):
        super().__init__(name)
        self.name, self.exit_code = name, exit_code


class StopRequests:
    """A context manager that notes the first request; a second one ends the process at once.

    nothing_to_lose: set it while that holds. The process then ends some seconds after the first request, whatever it does:
    while the main thread compiles, which takes minutes and cannot be interrupted, it does not even hear of a request.
    """

    def __init__(self) -> None:
        self.nothing_to_lose = False
        self._received: int | None = None
        self._answered = False
        self._previous: dict[int, Any] = {}
        self._left = threading.Event()

    def __enter__(self) -> "StopRequests":
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        self._previous_fd = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)  # C code writes to it at once
        self._watch = threading.Thread(target=self._abandon, name="stop-requests", daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._left.set()
        os.close(self._write)
        self._watch.join()
        os.close(self._read)

    @property
    def pending(self) -> bool:
        """Whether someone asked."""
        return self._received is not None

    def stop(self) -> Stopped:
        """The exception that answers the request."""
        self._answered = True
        return _stopped(self._received or signal.SIGTERM)

    def check(self) -> None:
        """Raises Stopped if someone asked."""
        if self.pending:
            raise self.stop()

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        if self._received is not None:
            raise SystemExit(128 + number)
        self._received = number

    def _abandon(self) -> None:
        """A thread: ends the process where nobody answers a request."""
        while received := os.read(self._read, 1):
            if received[0] in self._previous and not self._left.wait(_PATIENCE) and self.nothing_to_lose:
                stopped = _stopped(received[0])
                if not self._answered:  # what it was busy with since then was to end
                    print(f"stopped by {stopped.name} before the first update")
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(stopped.exit_code)


def _stopped(number: int) -> Stopped:
    return Stopped(signal.Signals(number).name, 130 if number == signal.SIGINT else 0)
