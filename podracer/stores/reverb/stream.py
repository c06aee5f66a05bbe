"""A stream to the server that is opened anew when it breaks: what inserting and sampling have in common."""

import abc
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc

from podracer.stores.reverb.connection import Connection
from podracer.stores.reverb.errors import TRANSIENT, ReverbError

PROBE_S = 5.0
"""Seconds without progress before asking whether the server is there at all, and that it has to answer."""
_MAX_FUTILE = 20  # streams in a row that broke without any progress


class Stream(abc.ABC):
    """Threads: one of ours that reads, one of gRPC's that writes, and the callers, all behind one lock.

    num_reconnects: how often the stream broke and was opened again.
    """

    _method = ""
    _answer: Any = None
    _doing = ""

    def __init__(self, client: Connection, timeout_s: float, reconnect_s: float):
        """Starts nothing yet: `_start` does, once the subclass is ready."""
        self._client = client
        self._timeout_s = timeout_s
        self._reconnect_s = reconnect_s
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # for the writing side: something to send, or the end
        self._news = threading.Condition(self._lock)  # for callers: what they wait for, or the end
        self._generation = 0  # of the stream; a writing thread of an older one ends itself
        self._progress = 0  # what a waiting thread calls life
        self._call: Any = None
        self._failure: ReverbError | None = None
        self._closing = False
        self.num_reconnects = 0
        self._thread = threading.Thread(target=self._run, name=f"reverb-{self._doing}-{client.address}", daemon=True)

    def _start(self) -> None:
        self._client.adopt(self)  # from now on it may be aborted
        self._thread.start()

    # What a subclass says. The lock is held, but where it says otherwise.

    @abc.abstractmethod
    def _begin(self) -> None:
        """Another stream will be opened, as soon as it is wanted."""

    @abc.abstractmethod
    def _wanted(self) -> bool:
        """Whether there is anything to open a stream for: an idle one would be closed for its silence by some networks."""

    @abc.abstractmethod
    def _requests(self, generation: int) -> Iterator[bytes]:
        """What gRPC sends, until `_over(generation)`: runs in a thread of gRPC's for as long as the stream lives. No lock."""

    @abc.abstractmethod
    def _receive(self, answer: Any) -> None:
        """Deals with what has come. No lock."""

    @abc.abstractmethod
    def _table(self) -> str:
        """The table that an error is about."""

    def _rate_limited(self) -> bool:
        """The server has held a request for as long as it was told to. Whether that may be. No lock."""
        return False

    # What they share.

    def _over(self, generation: int) -> bool:
        return generation != self._generation or self._closing

    def _check(self, who: str) -> None:
        """With the lock held. Raises the stream's failure, and ReverbError once it is closed."""
        if self._failure is not None:
            raise self._failure
        if self._closing:
            raise ReverbError(f"this {who} at {self._client.address} is closed")

    def _wait(self, seconds: float, silent_s: float) -> None:
        """With the lock held: waits for news. Where there are none for `silent_s`, asks whether the server is there."""
        progress = self._progress
        if not self._news.wait(min(seconds, silent_s)) and progress == self._progress and seconds > silent_s:
            self._probe(min(PROBE_S, seconds))

    def _probe(self, timeout_s: float) -> None:
        """A connection that died without a word looks like one with nothing to say. Breaks it unless the server answers."""
        call = self._call
        self._lock.release()
        try:
            self._client.server_info(timeout_s)
        except ReverbError:
            if call is not None:
                call.cancel()
        finally:
            self._lock.acquire()

    def _state_of(self, table: str) -> str:
        """With the lock held, which is free meanwhile: words on a table for the text of a timeout."""
        self._lock.release()
        try:
            return self._client.state_of(table)
        finally:
            self._lock.acquire()

    def _run(self) -> None:
        futile = 0
        while True:
            with self._lock:
                self._begin()
                while not self._wanted() and not self._closing:
                    self._work.wait()
                if self._closing:
                    return
                self._generation += 1
                generation, before = self._generation, self._progress
            problem = self._live(generation)
            with self._lock:
                self._generation += 1  # the writing thread of the broken stream ends
                self._work.notify_all()
                self._news.notify_all()
                if self._closing:
                    return
                futile = futile + 1 if self._progress == before else 0
            if problem is None:
                continue
            if not isinstance(problem, ReverbError):
                if futile > _MAX_FUTILE:
                    problem = ReverbError(f"{self._doing} at {self._client.address} fails again and again: {problem}")
                else:
                    problem = self._reconnect(futile)
            if problem is not None:
                self._fail(problem)
                return

    def _reconnect(self, futile: int) -> ReverbError | None:
        try:
            time.sleep(min(0.05 * 2**futile, 1.0))
            self._client.await_server(self._reconnect_s, lambda: self._closing)
        except ReverbError as error:
            return error
        self.num_reconnects += 1
        return None

    def _live(self, generation: int) -> ReverbError | str | None:
        """One stream from its opening to its end. Returns None to open another, a ReverbError to fail, or why it broke."""
        try:
            call = self._client.stream(self._method, self._requests(generation), self._answer)
            self._call = call
            for answer in call:
                self._receive(answer)
        except ValueError:  # of gRPC, on a closed channel
            return ReverbError(f"the client of {self._client.address} is closed")
        except grpc.RpcError as error:
            code = error.code()
            if code is grpc.StatusCode.DEADLINE_EXCEEDED and self._rate_limited():
                return None
            if code in TRANSIENT:
                return f"{code.name}: {error.details()}"
            with self._lock:
                table = self._table()
            return self._client.translate(error, self._doing, table)
        return "the server ended the stream"

    def _fail(self, error: ReverbError) -> None:
        with self._lock:
            self._failure = error
            self._work.notify_all()
            self._news.notify_all()
