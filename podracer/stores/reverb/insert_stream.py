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
from typing import Any

from podracer.stores.reverb import wire
from podracer.stores.reverb.connection import Connection
from podracer.stores.reverb.errors import Timeout
from podracer.stores.reverb.stream import PROBE_S, Stream

_BATCH_BYTES = 256 * 1024  # of items that share a request


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


class InsertStream(Stream):
    """Sends items and waits for confirmations."""

    _method, _answer, _doing = "InsertStream", wire.InsertStreamResponse, "inserting"

    def __init__(self, client: Connection, max_in_flight: int, timeout_s: float, reconnect_s: float):
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight is {max_in_flight}; it must be at least 1")
        super().__init__(client, timeout_s, reconnect_s)
        self._max_in_flight = max_in_flight
        self._unconfirmed: collections.OrderedDict[int, Item] = collections.OrderedDict()
        self._unsent: collections.deque[Item] = collections.deque()
        self._start()

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
            self._check("writer")
            if len(self._unconfirmed) <= allowed:
                return
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise self._late(table, timeout_s)
            self._wait(remaining, PROBE_S)

    def _late(self, table: str, timeout_s: float) -> Timeout:
        oldest, count = next(iter(self._unconfirmed.values())), len(self._unconfirmed)
        return Timeout(
            f"a writer to table {table or oldest.table!r} waited {timeout_s:.1f} s for the Reverb server at "
            f"{self._client.address} to confirm {count} item{'s' * (count != 1)}: {self._state_of(oldest.table)}"
        )

    def _begin(self) -> None:
        self._unsent = collections.deque(self._unconfirmed.values())

    def _wanted(self) -> bool:
        return bool(self._unconfirmed)

    def _table(self) -> str:
        return next((item.table for item in self._unconfirmed.values()), "")

    def _requests(self, generation: int) -> Iterator[bytes]:
        held: set[int] = set()  # chunks that the server keeps for this stream
        while True:
            with self._lock:
                while not self._unsent and not self._over(generation):
                    self._work.wait()
                if self._over(generation):
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

    def _receive(self, answer: Any) -> None:
        with self._lock:
            for key in answer.keys:
                self._unconfirmed.pop(key, None)
            self._progress += 1
            self._news.notify_all()

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
            self._news.notify_all()
        if call is not None and unconfirmed:
            call.cancel()
        # Not alive yet, it will find `_closing` and end.
        if self._thread is not threading.current_thread() and self._thread.is_alive():
            self._thread.join(timeout=2.0)
            if self._thread.is_alive() and call is not None:
                call.cancel()
                self._thread.join(timeout=2.0)
