"""Unrolls between processes, through Reverb: what `handover` is within one, with the same bound on what is under way.

The learner owns the server; its tables:

    job         one item: what an actor builds its parts from, as JSON
    parameters  one item: the newest version
    tickets     a queue: the learner puts one in for every unroll that may begin, an actor takes one to begin
    unrolls     a queue: unrolls, each with its ticket's number
    over        empty, until the run is over

A ticket's number is used once: an unroll that comes twice (an actor sent it again after the server had died) is passed over. A
ticket that does not come back (its actor was killed) is replaced after a time; where its unroll comes after all, it is taken.
"""

import collections
import contextlib
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from podracer.stores.layout import Layout
from podracer.stores.reverb import Client, ReverbError, ReverbServer, Spec, Table, Timeout, Watch
from podracer.stores.reverb.sampler import Sampler

JOB, PARAMETERS, TICKETS, UNROLLS, OVER = "job", "parameters", "tickets", "unrolls", "over"
_SLICE_S = 1.0  # of a wait that looks now and then whether it is still wanted
_HELD_S = 0.5  # seconds that the server may hold a request; also how long an end may take
_FAREWELL_S = 1.0
_DEAD_S = 60.0  # longer than it takes to start the server again
_REMEMBERED = 1000  # replaced tickets whose unroll may still come


class Ticket:
    """The right to collect one unroll; see `handover.Ticket`. number: of 63 bits. version: of the parameters then published."""

    def __init__(self, number: int, version: int):
        self.number, self.version = number, version
        self.valid = True


_INTEGER = Spec((), np.int64)
_TICKET = {"number": _INTEGER, "version": _INTEGER}


class Exchange:
    """The learner's end: starts and watches the server. Safe to use from several threads."""

    def __init__(
        self,
        *,
        unroll: Any,
        params: Any,
        job: bytes,
        max_in_flight: int,
        receive: Callable[[Any], Any],
        timeout: float,
        max_restarts: int = 10,
        host: str = "127.0.0.1",
        port: int = 0,
        replay: Table | None = None,
        folder: Path | None = None,
    ):
        """Starts the server.

        Args:
          unroll, params: examples, arrays or shapes.
          job: for actors that join.
          max_in_flight: unrolls that may be begun and not yet learned from.
          receive: is given each unroll, on the host, in a thread of the exchange; what it returns is what `get` returns.
          timeout: seconds after which a ticket that was taken and did not come back is replaced.
          max_restarts: of the server.
          host, port: to listen on; port 0 takes a free one.
          replay: a further table. folder: where it is saved, and from where it is restored.

        Raises:
          ReverbError: it is not installed, or does not start.
        """
        self._unroll, self._params, self._receive = Layout(unroll), Layout(params), receive
        self._job, self.max_in_flight, self._timeout = job, max_in_flight, timeout
        self._keys = random.Random(os.urandom(32))
        self._lock = threading.RLock()
        self._arrived = threading.Condition(self._lock)
        self._ready: collections.deque[tuple[Ticket, Any]] = collections.deque()
        self._open: dict[int, tuple[Ticket, float]] = {}  # count as under way; with the time of their issue
        self._replaced: collections.OrderedDict[int, Ticket] = collections.OrderedDict()  # do not count any more
        self._published: tuple[int, list[np.ndarray]] | None = None
        self._failure: Exception | None = None
        self._closed = False
        self._checked = time.monotonic()
        self.num_repeated = 0
        self.num_replaced = 0
        signature = {"ticket": _INTEGER, "leaves": self._unroll.signature}
        tables = [
            Table.uniform(JOB, 1, signature={"json": Spec((None,), np.uint8)}),
            Table.uniform(PARAMETERS, 1, signature={"version": _INTEGER, "leaves": self._params.signature}),
            Table.uniform(OVER, 1, signature=[_INTEGER]),
            Table.queue(TICKETS, 10**6, _TICKET),
            Table.queue(UNROLLS, 10**6, signature),
        ]
        self.server = ReverbServer([*tables, *([replay] if replay else [])], host=host, port=port, checkpoint_dir=folder)
        try:
            self.client = Client(self.server.address, timeout_s=_DEAD_S)
            self._writer = self.client.writer(max_in_flight=4 * max_in_flight + 16)
            self._sampler = self.client.sampler(UNROLLS, prefetch=max_in_flight + 1, rate_limiter_timeout_s=_HELD_S)
            self._watch = Watch(self.server, max_restarts, self._begin_again)
        except BaseException:
            self.server.close()
            raise
        for table in (TICKETS, UNROLLS, OVER):
            self.client.reset(table)  # what an earlier run left in `folder`
        self._put_job()
        self._thread = threading.Thread(target=self._run, name="exchange", daemon=True)

    def start(self) -> None:
        """Begins to receive."""
        self._thread.start()

    @property
    def address(self) -> str:
        """Where actors connect."""
        return self.server.address

    @property
    def num_restarts(self) -> int:
        """How often the server died and was started again."""
        return self._watch.num_restarts

    def publish(self, version: int, params: Any, wait: bool = False) -> None:
        """Replaces what actors will fetch next, and lets unrolls begin, at first. wait: until the server has them."""
        leaves = self._params.pack(params)
        with self._lock:
            self._published = (version, leaves)
            self._writer.insert(PARAMETERS, {"version": np.int64(version), "leaves": leaves})
        if wait:
            self._writer.flush()
        with self._lock:
            while len(self._open) < self.max_in_flight:
                self._issue()

    def get(self, timeout: float) -> tuple[Ticket, Any] | None:
        """The oldest unroll that has arrived, or None if there is none for `timeout` seconds. It stays under way.

        Raises:
          ReverbError: the server died too often, or an unroll could not be read.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            while not self._ready:
                self._watch.check()
                if self._failure is not None:
                    raise self._failure
                left = deadline - time.monotonic()
                if left <= 0 or self._closed:
                    break
                self._arrived.wait(left)
            if self._ready:
                return self._ready.popleft()
        self._replace_lost()
        return None

    def check(self) -> None:
        """Raises ReverbError once the server is given up."""
        self._watch.check()

    def save(self) -> None:
        """Saves all tables to `folder`; other calls wait meanwhile. Raises ReverbError."""
        self.client.checkpoint()

    def cancel(self, ticket: Ticket) -> None:
        """An unroll was learned from, or discarded: another one may begin."""
        with self._lock:
            if self._open.pop(ticket.number, None) is not None and not self._closed:
                self._issue()

    def __len__(self) -> int:
        """Unrolls that wait here."""
        return len(self._ready)

    def close(self) -> None:
        """Tells the actors that the run is over, and ends the server. May be called again."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._arrived.notify_all()
        self._watch.close()
        if self._thread.ident is not None:
            self._thread.join(2 * _HELD_S + _FAREWELL_S)
        try:
            self._writer.insert(OVER, [np.int64(0)], timeout_s=_FAREWELL_S)
            self._writer.flush(_FAREWELL_S)
            time.sleep(_HELD_S)
        except ReverbError:
            pass  # it was dead: actors find out by themselves
        self.client.close()
        self.server.close()

    # Below, the lock is held wherever `_open` changes.

    def _issue(self) -> None:
        assert self._published is not None
        ticket = Ticket(self._keys.getrandbits(63), self._published[0])
        self._open[ticket.number] = (ticket, time.monotonic())
        self._writer.insert(TICKETS, {"number": np.int64(ticket.number), "version": np.int64(ticket.version)})

    def _replace(self, number: int) -> None:
        self._replaced[number] = self._open.pop(number)[0]
        self.num_replaced += 1
        if len(self._replaced) > _REMEMBERED:
            self._replaced.popitem(last=False)
        self._issue()

    def _replace_lost(self) -> None:
        """Issues tickets anew that were taken long ago, once nothing else explains why no unroll comes."""
        now = time.monotonic()
        if now - self._checked < _SLICE_S:
            return
        self._checked = now
        with self._lock:
            lost = [ticket for ticket, issued in self._open.values() if ticket.valid and now - issued > self._timeout]
        if not lost:
            return
        try:
            tables = self.client.server_info(_SLICE_S).tables
        except ReverbError:
            return  # the watch sees to it
        with self._lock:
            for ticket in lost:
                if not ticket.valid or ticket.number not in self._open:
                    continue
                if tables[TICKETS].current_size or tables[UNROLLS].current_size:
                    self._open[ticket.number] = (ticket, now)  # nobody has come to take it, or it is on its way
                else:
                    self._replace(ticket.number)

    def _begin_again(self) -> None:
        """After the server's restart: it knows no more than its checkpoint."""
        self.client.reset(TICKETS)
        self._put_job()
        with self._lock:
            if self._published is not None:
                version, leaves = self._published
                self._writer.insert(PARAMETERS, {"version": np.int64(version), "leaves": leaves})
            for ticket in [ticket for ticket, _ in self._open.values() if ticket.valid]:
                self._replace(ticket.number)

    def _put_job(self) -> None:
        self._writer.insert(JOB, {"json": np.frombuffer(self._job, np.uint8)})

    def _run(self) -> None:
        """Moves unrolls from the server to `_ready`."""
        try:
            while not self._closed:
                try:
                    sample = self._sampler.sample(_SLICE_S)
                except Timeout:
                    continue
                ticket = self._claim(int(sample.data["ticket"]))
                if ticket is None:
                    self.num_repeated += 1
                    continue
                unroll = self._receive(self._unroll.unpack(sample.data["leaves"]))
                with self._lock:
                    self._ready.append((ticket, unroll))
                    self._arrived.notify_all()
        except Exception as error:
            if not self._closed:
                with self._lock:
                    self._failure = error
                    self._arrived.notify_all()

    def _claim(self, number: int) -> Ticket | None:
        """The ticket of an unroll that came, once. `valid` means here: its unroll has not come yet."""
        with self._lock:
            ticket = self._replaced.pop(number, None)
            if ticket is None and number in self._open:
                ticket = self._open[number][0]
            if ticket is None or not ticket.valid:
                return None
            ticket.valid = False
            return ticket


class Remote:
    """An actor process's end. Safe to use from several threads.

    job: what the learner says to actors that join. over: whether it said that the run is over. failure: why there is no way
    to it any more, or None.
    """

    def __init__(self, address: str, reconnect_s: float = 60.0):
        """Connects.

        Args:
          address: "host:port".
          reconnect_s: seconds without a server, now and later, after which it fails for good.

        Raises:
          ReverbError: nobody answers there, or no learner.
        """
        self.client = Client(address, timeout_s=reconnect_s)
        self._reconnect_s = reconnect_s
        self._lock = threading.Lock()
        self._writer = self.client.writer(reconnect_s=reconnect_s, timeout_s=reconnect_s)
        self.job = bytes(self._one(JOB)["json"])
        self._version = -1
        self._tickets = self._sampler(TICKETS)
        self._versions = self._sampler(PARAMETERS)
        self.over = False
        self.failure: ReverbError | None = None
        self._closed = False
        self._listener = threading.Thread(target=self._listen, name="exchange-over", daemon=True)
        self._listener.start()

    def expect(self, unroll: Any, params: Any) -> None:
        """Says what unrolls and parameters are like. `unroll`, `params`: examples. Raises SignatureMismatch."""
        self._unroll, self._params = Layout(unroll), Layout(params)
        for table, layout in ((UNROLLS, self._unroll), (PARAMETERS, self._params)):
            checker = self.client.checker(table)
            assert checker is not None
            theirs, ours = (
                [f"{spec.name} {spec}" for spec in specs] for specs in (checker.signature["leaves"], layout.signature)
            )
            if theirs != ours:
                differ = [f"{a} there, {b} here" for a, b in zip(theirs, ours, strict=False) if a != b]
                differ.append(f"{len(theirs)} arrays there, {len(ours)} here")
                raise ReverbError(f"the learner's {table} are not those of this process: {differ[0]}; is it the same version?")

    def begin(self, stop: Callable[[], bool]) -> Ticket | None:
        """Waits until another unroll may begin; None once `over` or a `failure`, or as soon as `stop()` holds."""
        while not stop() and not self.over:
            try:
                data = self._tickets.sample(_SLICE_S).data
            except Timeout:
                continue
            except ReverbError as error:
                self.failure = error
                return None
            ticket = Ticket(int(data["number"]), int(data["version"]))
            if not self.over and not stop():
                return ticket
            self.cancel(ticket)
        return None

    def put(self, ticket: Ticket, unroll: Any) -> bool:
        """Sends what was collected; False if the ticket was cancelled. It is confirmed later; `close` waits for that."""
        if not ticket.valid:
            return False
        ticket.valid = False
        self._writer.insert(UNROLLS, {"ticket": np.int64(ticket.number), "leaves": self._unroll.pack(unroll)})
        return True

    def cancel(self, ticket: Ticket) -> None:
        """Gives the right to collect back."""
        if ticket.valid:
            ticket.valid = False
            self._writer.insert(TICKETS, {"number": np.int64(ticket.number), "version": np.int64(ticket.version)})

    def fetch(self, at_least: int) -> tuple[int, Any] | None:
        """The newest version and its parameters, on the host; None if the last one fetched is `at_least` so new."""
        with self._lock:
            if self._version >= at_least:
                return None
            data = self._versions.sample(self._reconnect_s).data
            self._version = int(data["version"])
            return self._version, self._params.unpack(data["leaves"])

    def close(self, timeout: float = 5.0) -> None:
        """Hands tickets back that nobody took, and waits until all unrolls are confirmed, at most so long."""
        self._closed = True
        try:
            if not self.over:
                for sample in self._tickets.close():
                    self.cancel(Ticket(int(sample.data["number"]), int(sample.data["version"])))
            self._writer.close(timeout)
        except ReverbError:
            pass  # the learner has gone, and replaces what it misses where it has not
        finally:
            self.client.close()

    def _listen(self) -> None:
        with contextlib.suppress(ReverbError), self._sampler(OVER) as sampler:
            while not self._closed:
                try:
                    sampler.sample(_SLICE_S)
                    self.over = True
                    return
                except Timeout:
                    continue

    def _sampler(self, table: str) -> Sampler:
        return self.client.sampler(table, prefetch=0, rate_limiter_timeout_s=_HELD_S, reconnect_s=self._reconnect_s)

    def _one(self, table: str) -> Any:
        with self._sampler(table) as sampler:
            return sampler.sample(self._reconnect_s).data
