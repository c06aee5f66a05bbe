"""The insert stream under the writers: items in flight, confirmations, and sending again after a reconnect.

An item stays here, with the chunks that it refers to, until the server has confirmed its key. When the stream breaks, a new
one is opened and all unconfirmed items are sent again, in their order: inserting a key twice overwrites it, so an item whose
confirmation was lost does no harm (unless a queue's reader has taken it in between: then it is delivered twice).

The server keeps the chunks of a stream that the last request names, so that items can share them. Each item says which
chunks later items may still refer to (`live`); whatever it refers to itself and the server does not have is sent along.
"""

import collections
import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import grpc

from podracer.stores.reverb import wire
from podracer.stores.reverb.errors import ReverbError, Timeout

if TYPE_CHECKING:
    from podracer.stores.reverb.client import Client

_PROBE_S = 5.0  # without progress, before asking whether the server is there at all
_BATCH_BYTES = 256 * 1024  # of items that share a request
_MAX_FUTILE = 20  # streams in a row that broke without a single confirmation


@dataclasses.dataclass(frozen=True, eq=False)
class Chunk:
    """key: 64 bits, unique. data: the serialised `chunks` field of a request."""

    key: int
    data: bytes


@dataclasses.dataclass(frozen=True, eq=False)
class Item:
    """key: 64 bits, unique. table: its name. data: the serialised `items` field. chunks: all it refers to. live: see above.

    whole: the request, where it does not depend on the stream's past; saves a copy of large items.
    """

    key: int
    table: str
    data: bytes
    chunks: tuple[Chunk, ...]
    live: frozenset[int] = frozenset()
    whole: bytes | None = None


def keep_field(keys: Any) -> bytes:
    """The serialised `keep_chunk_keys` field (packed)."""
    return b"".join(wire.field(3, *(wire.varint(key) for key in sorted(keys))))


class InsertStream:
    """Sends items and waits for confirmations. Threads: one of ours that reads, one of gRPC's that writes."""

    def __init__(self, client: "Client", max_in_flight: int, timeout_s: float, reconnect_s: float):
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight is {max_in_flight}; it must be at least 1")
        self._client = client
        self._max_in_flight = max_in_flight
        self._timeout_s = timeout_s
        self._reconnect_s = reconnect_s
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # for the sending side: something to send, or the end
        self._room = threading.Condition(self._lock)  # for callers: something confirmed, or the end
        self._unconfirmed: collections.OrderedDict[int, Item] = collections.OrderedDict()
        self._unsent: collections.deque[Item] = collections.deque()
        self._generation = 0  # of the stream; a writing thread of an older one ends itself
        self._progress = 0  # confirmations and new streams: what a waiting thread calls life
        self._call: Any = None
        self._failure: ReverbError | None = None
        self._closing = False
        self.num_reconnects = 0
        self._thread = threading.Thread(target=self._run, name=f"reverb-insert-{client.address}", daemon=True)
        client.adopt(self)  # from now on it may be aborted
        self._thread.start()

    @property
    def num_unconfirmed(self) -> int:
        """Items in flight."""
        return len(self._unconfirmed)

    def submit(self, item: Item, timeout_s: float | None = None) -> None:
        """Sends the item as soon as fewer than max_in_flight are unconfirmed. Raises Timeout, and the stream's failure."""
        with self._lock:
            self._wait_until_at_most(self._max_in_flight - 1, item.table, timeout_s)
            self._unconfirmed[item.key] = item
            self._unsent.append(item)
            self._work.notify_all()

    def flush(self, timeout_s: float | None = None) -> None:
        """Returns once all items are confirmed. Raises Timeout, and the stream's failure."""
        with self._lock:
            self._wait_until_at_most(0, "", timeout_s)

    def _wait_until_at_most(self, allowed: int, table: str, timeout_s: float | None) -> None:
        """With the lock held. The lock is free while it asks whether the server is there."""
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        while True:
            if self._failure is not None:
                raise self._failure
            if self._closing:
                raise ReverbError(f"this writer to {self._client.address} is closed")
            if len(self._unconfirmed) <= allowed:
                return
            remaining = deadline - time.monotonic()
            progress = self._progress
            if remaining <= 0:
                raise self._late(table, timeout_s)
            if not self._room.wait(min(remaining, _PROBE_S)) and progress == self._progress and remaining > _PROBE_S:
                self._probe(min(_PROBE_S, remaining))

    def _probe(self, timeout_s: float) -> None:
        """A connection that died without a word looks like a slow server. Breaks the stream unless the server answers."""
        call = self._call
        self._lock.release()
        try:
            self._client.server_info(timeout_s)
        except ReverbError:
            if call is not None:
                call.cancel()
        finally:
            self._lock.acquire()

    def _late(self, table: str, timeout_s: float) -> Timeout:
        oldest = next(iter(self._unconfirmed.values()))
        count = len(self._unconfirmed)
        table = table or oldest.table
        self._lock.release()
        try:
            state = self._client.state_of(oldest.table)
        finally:
            self._lock.acquire()
        return Timeout(
            f"a writer to table {table!r} waited {timeout_s:.1f} s for the Reverb server at {self._client.address} "
            f"to confirm {count} item{'s' * (count != 1)}: {state}"
        )

    def _requests(self, generation: int) -> Iterator[bytes]:
        """What gRPC sends: runs in a thread of gRPC's for as long as the stream lives."""
        held: set[int] = set()  # chunks that the server keeps for this stream
        while True:
            with self._lock:
                while not self._unsent and not self._closing and generation == self._generation:
                    self._work.wait()
                if generation != self._generation or (self._closing and not self._unsent):
                    return
                item = self._unsent.popleft()
                batch = self._small_items(item)
            if batch:
                yield b"".join(batch)
                continue
            own = {chunk.key for chunk in item.chunks}
            new = [chunk for chunk in item.chunks if chunk.key not in held]
            held = (held | own) & (item.live | own)
            yield b"".join([*(chunk.data for chunk in new), item.data, keep_field(held)])

    def _small_items(self, item: Item) -> list[bytes]:
        """With the lock held: the item's whole request and those of small ones after it, which together are a request too."""
        batch: list[bytes] = []
        size = 0
        following: Item | None = item
        while following is not None and following.whole is not None:
            batch.append(following.whole)
            size += len(following.whole)
            upcoming = self._unsent[0] if self._unsent else None
            if upcoming is None or upcoming.whole is None or size + len(upcoming.whole) > _BATCH_BYTES:
                break
            following = self._unsent.popleft()
        return batch

    def _run(self) -> None:
        futile = 0
        while True:
            with self._lock:
                while not self._unconfirmed and not self._closing:
                    self._work.wait()
                if self._closing and not self._unconfirmed:
                    return
                self._generation += 1
                self._unsent = collections.deque(self._unconfirmed.values())
                generation, before = self._generation, self._progress
            problem = self._stream(generation)
            with self._lock:
                if self._closing:
                    return
                futile = futile + 1 if self._progress == before else 0
                self._generation += 1  # the writing thread of the broken stream ends
                self._work.notify_all()
                self._room.notify_all()
            if isinstance(problem, ReverbError) or futile > _MAX_FUTILE:
                self._fail(
                    problem
                    if isinstance(problem, ReverbError)
                    else ReverbError(f"inserting at {self._client.address} fails again and again: {problem}")
                )
                return
            try:
                time.sleep(min(0.05 * 2**futile, 1.0))
                self._client.await_server(self._reconnect_s, lambda: self._closing)
            except ReverbError as error:
                self._fail(error)
                return
            self.num_reconnects += 1

    def _stream(self, generation: int) -> Any:
        """One stream from its opening to its end. Returns a ReverbError that ends the writer, or else why it broke."""
        try:
            call = self._client.stream("InsertStream", self._requests(generation), wire.InsertStreamResponse)
            self._call = call
            for answer in call:
                with self._lock:
                    for key in answer.keys:
                        self._unconfirmed.pop(key, None)
                    self._progress += 1
                    self._room.notify_all()
        except ValueError:  # of gRPC, on a closed channel
            return ReverbError(f"the client of {self._client.address} is closed")
        except grpc.RpcError as error:
            from podracer.stores.reverb.client import TRANSIENT

            code = error.code()
            if code in TRANSIENT:
                return f"{code.name}: {error.details()}"
            with self._lock:
                table = next((item.table for item in self._unconfirmed.values()), "")
            return self._client.translate(error, "inserting", table)
        return "ended"

    def _fail(self, error: ReverbError) -> None:
        with self._lock:
            self._failure = error
            self._generation += 1
            self._work.notify_all()
            self._room.notify_all()

    def close(self, timeout_s: float | None = None) -> None:
        """Waits until all is confirmed, then ends the stream. Raises what `flush` raises, having ended it all the same."""
        if self._closing:
            return
        try:
            self.flush(timeout_s)
        finally:
            self.abort()

    def abort(self) -> None:
        """Ends the stream at once; what is unconfirmed may or may not have arrived."""
        with self._lock:
            self._closing = True
            self._unsent.clear()
            unconfirmed = bool(self._unconfirmed)
            self._unconfirmed.clear()
            call = self._call
            self._work.notify_all()
            self._room.notify_all()
        if call is not None and unconfirmed:
            call.cancel()
        # Not alive yet, it will find `_closing` and end.
        if self._thread is not threading.current_thread() and self._thread.is_alive():
            self._thread.join(timeout=2.0)
            if self._thread.is_alive() and call is not None:
                call.cancel()
                self._thread.join(timeout=2.0)
