"""Where unrolls wait between the actors and the learner of one host. Holds references; arrays stay on their devices."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any


class Ticket:
    """The right to collect one unroll. It ends by being learned from, or by `Handover.cancel`."""

    def __init__(self) -> None:
        self.valid = True


class Handover:
    """A queue, first in first out, that bounds how many unrolls are begun and not yet learned from.

    Bounding those, and not only the ones that wait, bounds staleness: an unroll that begins while `n` others are under way
    is learned from at most `n` updates after the parameters that it acts with, unless later ones overtake it.
    """

    def __init__(self, max_in_flight: int):
        self.max_in_flight = max_in_flight
        self._condition = threading.Condition()
        self._waiting: deque[tuple[Ticket, Any]] = deque()
        self._in_flight = 0
        self._closed = False

    def begin(self, stop: Callable[[], bool]) -> Ticket | None:
        """Waits until another unroll may begin; None once closed, or as soon as `stop()` holds."""
        with self._condition:
            while not self._closed and not stop():
                if self._in_flight < self.max_in_flight:
                    self._in_flight += 1
                    return Ticket()
                self._condition.wait(0.1)
        return None

    def put(self, ticket: Ticket, item: Any) -> bool:
        """Adds what was collected; False, and nothing is added, if the ticket was cancelled or the queue closed."""
        with self._condition:
            if not ticket.valid or self._closed:
                return False
            self._waiting.append((ticket, item))
            self._condition.notify_all()
            return True

    def cancel(self, ticket: Ticket) -> None:
        """Gives up an unroll that was begun: whoever still collects it will find it refused."""
        with self._condition:
            if ticket.valid:
                ticket.valid = False
                self._in_flight -= 1
                self._condition.notify_all()

    def get(self, timeout: float) -> tuple[Ticket, Any] | None:
        """The oldest unroll that waits, or None if there is none for `timeout` seconds. It stays in flight."""
        deadline = time.monotonic() + timeout
        with self._condition:
            while True:
                while self._waiting:
                    ticket, item = self._waiting.popleft()
                    if ticket.valid:
                        return ticket, item
                left = deadline - time.monotonic()
                if left <= 0 or self._closed:
                    return None
                self._condition.wait(left)

    def close(self) -> None:
        """Wakes everyone up; nothing goes in or out any more."""
        with self._condition:
            self._closed = True
            self._waiting.clear()
            self._condition.notify_all()

    def __len__(self) -> int:
        """Unrolls that wait."""
        return len(self._waiting)
