"""Keeps actor threads alive: restarts those that fail or hang; when that is too often, stops the run with the first cause."""

import dataclasses
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from podracer.runtimes.sebulba.actor import Actor, Unroll

_BACKOFF_SECONDS = 0.1
_LONGEST_BACKOFF = 10.0
_FIRST_UNROLL_SECONDS = 900.0
"""Limit of an actor's first unroll, which compiles."""


class ActorsFailed(RuntimeError):
    """Actors failed more often than the run allows, or deliver nothing. Its text is one line with the first cause."""


@dataclasses.dataclass
class _Slot:
    """A place for an actor. attempt: how many actors it has had before. failures: in a row, without an unroll between.

    alive: whether the present thread may go on; each thread has an object of its own, so that one that hangs and wakes
    up later finds that it is no longer wanted.
    """

    number: int
    attempt: int = 0
    failures: int = 0
    thread: threading.Thread | None = None
    alive: threading.Event | None = None
    actor: Actor | None = None
    ticket: Any = None
    unrolls: int = 0
    started: float = 0.0
    error: BaseException | None = None
    restart_at: float = 0.0


class Supervisor:
    """Runs `num_actors` actors in threads. `check` must be called now and then by whoever waits for unrolls."""

    def __init__(
        self,
        make_actor: Callable[[int, int], Actor],
        newest: Callable[[int, Any], Any],
        handover: Any,
        num_actors: int,
        max_restarts: int,
        timeout: float,
    ):
        """Args:
        make_actor: from the number of an actor and of its attempt, with environments of its own.
        newest: the parameters for an actor's number and its ticket.
        handover: where unrolls go: `begin`, `put` and `cancel` of `stores.handover`.
        max_restarts: of all actors together, in a run of this process.
        timeout: seconds after which a step of an actor counts as hung.
        """
        self._make_actor, self._newest, self._handover = make_actor, newest, handover
        self._max_restarts, self._timeout = max_restarts, timeout
        self._slots = [_Slot(number) for number in range(num_actors)]
        self._first_cause: str = ""
        self.num_restarts = 0
        self.num_unrolls = 0

    def start(self) -> None:
        """Starts all threads."""
        for slot in self._slots:
            self._start(slot)

    def check(self) -> None:
        """Deals with actors that failed or hang.

        Raises:
          ActorsFailed: there were more failures than `max_restarts`.
        """
        now = time.monotonic()
        for slot in self._slots:
            if slot.error is not None:
                self._failed(slot, f"actor {slot.number}: {_line(slot.error)}")
            elif slot.alive is not None and (hung := self._hung(slot, now)):
                self._failed(slot, hung)
            elif slot.alive is None and now >= slot.restart_at:
                self._start(slot)

    def waiting_for(self) -> str:
        """What every actor does, for the message of someone who waits for them."""
        now = time.monotonic()
        words = []
        for slot in self._slots:
            actor = slot.actor
            state = "starting" if actor is None else f"{actor.doing} for {now - actor.since:.0f} s"
            words.append(f"actor {slot.number}: {state}")
        return "; ".join(words)

    def stop(self, timeout: float) -> None:
        """Ends all threads and their environments; a thread that does not end in time is left behind, as a daemon."""
        for slot in self._slots:
            if slot.alive is not None:
                slot.alive.clear()
        deadline = time.monotonic() + timeout
        for slot in self._slots:
            if slot.thread is not None:
                slot.thread.join(max(0.0, deadline - time.monotonic()))
                if slot.thread.is_alive() and slot.actor is not None:
                    slot.actor.environment.close()

    def _start(self, slot: _Slot) -> None:
        alive = threading.Event()
        alive.set()
        slot.alive, slot.actor, slot.ticket, slot.error, slot.unrolls = alive, None, None, None, 0
        slot.started = time.monotonic()
        slot.thread = threading.Thread(
            target=self._run, args=(slot, slot.attempt, alive), name=f"actor-{slot.number}", daemon=True
        )
        slot.thread.start()

    def _run(self, slot: _Slot, attempt: int, alive: threading.Event) -> None:
        actor: Actor | None = None
        try:
            actor = self._make_actor(slot.number, attempt)
            if alive.is_set():
                slot.actor = actor
            while alive.is_set():
                actor.note("queue")
                ticket = self._handover.begin(lambda: not alive.is_set())
                if ticket is None:
                    return
                if alive.is_set():
                    slot.ticket = ticket
                unroll: Unroll = actor.unroll(self._newest(slot.number, ticket))
                if not self._handover.put(ticket, unroll):
                    return
                if alive.is_set():
                    slot.ticket, slot.failures, slot.unrolls = None, 0, slot.unrolls + 1
                self.num_unrolls += 1
        except Exception as error:
            if alive.is_set():
                slot.error = error
        finally:
            if actor is not None:
                actor.environment.close()

    def _hung(self, slot: _Slot, now: float) -> str:
        actor = slot.actor
        if actor is None or not slot.unrolls:
            waited, doing = now - slot.started, "its first unroll"
            limit = max(_FIRST_UNROLL_SECONDS, self._timeout)
        else:
            waited, doing, limit = now - actor.since, actor.doing, 1.5 * self._timeout
            if doing == "queue":
                return ""
        return f"actor {slot.number} has not come back from {doing} for {waited:.0f} s" if waited > limit else ""

    def _failed(self, slot: _Slot, cause: str) -> None:
        """Gives up the present actor of a slot and plans its successor."""
        assert slot.alive is not None
        slot.alive.clear()
        if slot.ticket is not None:
            self._handover.cancel(slot.ticket)
        if slot.error is None and slot.actor is not None:
            # Its thread hangs and cannot be ended, but what it waits for can. Not here: that may hang as well.
            threading.Thread(target=slot.actor.environment.close, daemon=True).start()
        self._first_cause = self._first_cause or cause
        if self.num_restarts >= self._max_restarts:
            raise ActorsFailed(
                f"{self.num_restarts} restarts of actors were not enough; the first cause was {self._first_cause}"
            )
        delay = min(_BACKOFF_SECONDS * 2**slot.failures, _LONGEST_BACKOFF)
        print(f"podracer: {cause}: its unroll is discarded, it starts anew in {delay:.1f} s", file=sys.stderr)
        self.num_restarts += 1
        slot.failures += 1
        slot.attempt += 1
        slot.restart_at = time.monotonic() + delay
        slot.alive, slot.error, slot.actor, slot.ticket = None, None, None, None


def _line(error: BaseException) -> str:
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
