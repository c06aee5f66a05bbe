"""Sampling: requests written ahead up to a limit, finite waits at the server, and a stream that is opened anew when it ends."""

import collections
import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from podracer.stores.reverb import structure, tensors, wire
from podracer.stores.reverb.connection import Connection
from podracer.stores.reverb.errors import ReverbError, SignatureMismatch, Timeout
from podracer.stores.reverb.stream import Stream

_GRACE_S = 10.0  # beyond the server's own timeout, before asking whether the server is there at all
_REMEMBERED = 2**16  # keys of a queue's last items


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """One sampled item.

    key: of the item. data: the tree; its arrays may be read-only, and may view a larger chunk.
    priority: as it was when sampled. probability: of having been drawn among the table's items.
    table_size: items in the table then. times_sampled: of this item, this time included.
    rate_limited: whether the sample had to wait for the rate limiter.
    """

    key: int
    data: Any
    priority: float
    probability: float
    table_size: int
    times_sampled: int
    rate_limited: bool


class Sampler(Stream):
    """A stream of samples from one table; a context manager and an iterator. Safe to use from several threads.

    Items of a queue (a table whose items are sampled once) leave the server when they are sent: `close` hands back those
    that arrived and were not taken. An item of a queue that comes again, from a checkpoint or because its writer could not know
    that it had arrived, is passed over: of the last 65,536 each comes out of this sampler once.

    num_reconnects: how often the stream broke and was opened again. num_rate_limited: how often the server had nothing
    within rate_limiter_timeout_s. num_repeated: items of a queue that were passed over.
    """

    _method, _answer, _doing = "SampleStream", wire.SampleStreamResponse, "sampling"

    def __init__(
        self,
        client: Connection,
        table: str,
        *,
        prefetch: int = 8,
        rate_limiter_timeout_s: float = 1.0,
        like: Any = None,
        timeout_s: float = 60.0,
        reconnect_s: float = 60.0,
    ):
        """See `Client.sampler`, which makes them.

        Args:
          client: whose connection it shares.
          table: its name.
          prefetch: items that may be asked for or wait here; priorities of what waits here are as old as it is. 0 asks only
            when `sample` is called, for the newest there is; what arrives after its time was up waits for the next call.
          rate_limiter_timeout_s: seconds that the server may hold one request for its rate limiter; then the stream is opened
            again. Always finite: a request that nobody waits for any more would take an item from a queue, and lose it.
          like: a tree of arrays or specs that gives the containers of the samples (such as a dataclass), and that the table's
            signature must equal. None takes the containers from the signature; without one, data is a list of arrays.
          timeout_s: seconds that `sample` may wait, unless told.
          reconnect_s: seconds without a server after which the sampler fails for good.

        Raises:
          TableNotFound, SignatureMismatch, Timeout, Unavailable.
        """
        if prefetch < 0 or not 0 < rate_limiter_timeout_s < float("inf"):
            raise ValueError(f"prefetch {prefetch} must be at least 0, rate_limiter_timeout_s {rate_limiter_timeout_s} finite")
        super().__init__(client, timeout_s, reconnect_s)
        self.table = table
        self._prefetch = prefetch
        info = client.server_info().tables.get(table)
        # A request for several items that times out after the first ones loses them: gRPC drops what it has not handed over
        # when a stream ends with an error. Replay can bear that, a queue cannot; it pays with a request for each item.
        self._request_size = 1 if info is None or info.max_times_sampled else max(prefetch // 2, 1)
        self._limit_s = rate_limiter_timeout_s
        self._checker, self._containers = _containers(client.checker(table), like, table)
        self._ready: collections.deque[list[Any]] = collections.deque()  # entries of each item, still encoded
        self._arriving: list[Any] = []  # entries of an item that is not whole yet: a large one comes in several
        self._outstanding = 0  # asked for and not yet here
        self._waiting = 0  # callers
        self._once = info is not None and info.max_times_sampled == 1
        self._seen: collections.OrderedDict[int, None] = collections.OrderedDict()
        self.num_repeated = 0
        self.num_rate_limited = 0
        self._start()

    def sample(self, timeout_s: float | None = None) -> Sample:
        """The next sample.

        Raises Timeout; SignatureMismatch or ReverbError for an item that is not as the table promises, after which the next
        one may be; and for good, what ended the sampler: Unavailable, TableNotFound.
        """
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        silent_s = self._limit_s + _GRACE_S
        with self._lock:
            self._waiting += 1
            try:
                if self._room():
                    self._work.notify_all()
                while not self._ready:
                    self._check("sampler")
                    remaining = deadline - time.monotonic()
                    if remaining <= 0:
                        raise self._late(timeout_s)
                    self._wait(remaining, silent_s)
                entries = self._ready.popleft()
            finally:
                self._waiting -= 1
            if self._room():
                self._work.notify_all()
        # Not in the reading thread: what is not read at once may be lost (see the constructor).
        return self._decode(entries)

    def _room(self) -> bool:
        """With the lock held: whether to ask for more."""
        return len(self._ready) + self._outstanding + self._request_size <= max(self._prefetch, self._waiting)

    def __iter__(self) -> Iterator[Sample]:
        """Samples for ever; ends when the sampler is closed. Raises like `sample`."""
        while True:
            try:
                yield self.sample()
            except ReverbError:
                if self._closing:
                    return
                raise

    def _late(self, timeout_s: float) -> Timeout:
        return Timeout(
            f"a sampler of table {self.table!r} waited {timeout_s:.1f} s for an item from the Reverb server at "
            f"{self._client.address}: {self._state_of(self.table)}"
        )

    def _begin(self) -> None:
        self._outstanding, self._arriving = 0, []

    def _wanted(self) -> bool:
        return self._room()

    def _table(self) -> str:
        return self.table

    def _rate_limited(self) -> bool:
        self.num_rate_limited += 1
        self._progress += 1
        return True

    def _requests(self, generation: int) -> Iterator[bytes]:
        request = wire.SampleStreamRequest(table=self.table, num_samples=self._request_size)
        request.rate_limiter_timeout.milliseconds = max(int(1000 * self._limit_s), 1)
        data = request.SerializeToString()
        while True:
            with self._lock:
                while not self._over(generation) and not self._room():
                    self._work.wait()
                if self._over(generation):
                    return
                self._outstanding += self._request_size
            yield data

    def _receive(self, answer: Any) -> None:
        items = []
        for entry in answer.entries:
            self._arriving.append(entry)
            if entry.end_of_sequence:
                items.append(self._arriving)
                self._arriving = []
        with self._lock:
            self._outstanding = max(self._outstanding - len(items), 0)
            if self._once:
                items = [item for item in items if self._is_new(item[0].info.item.key)]
                self._work.notify_all()  # what was passed over makes room
            self._ready += items
            self._progress += 1  # part of a large item is life too
            self._news.notify(len(items))

    def _is_new(self, key: int) -> bool:
        if key in self._seen:
            self.num_repeated += 1
            return False
        self._seen[key] = None
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return True

    def _decode(self, entries: list[Any]) -> Sample:
        info = entries[0].info
        try:
            arrays = _columns(info.item.flat_trajectory, entries)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ReverbError(f"table {self.table!r} holds an item that cannot be read: {error}") from error
        if self._checker is not None:
            self._checker.check_arrays(arrays)
        return Sample(
            key=info.item.key,
            data=arrays if self._containers is None else structure.rebuild(self._containers, iter(arrays)),
            priority=info.item.priority,
            probability=info.probability,
            table_size=info.table_size,
            times_sampled=info.item.times_sampled,
            rate_limited=info.rate_limited,
        )

    def close(self) -> list[Sample]:
        """Ends the stream once the server has answered what was asked. Returns the samples that nobody took.

        Waits for at most the rate limiter's timeout and 2 s more, so that no item is sent to nobody. May be called again.
        """
        with self._lock:
            self._closing = True
            self._work.notify_all()
            self._news.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=self._limit_s * 2 + 2.0)
        self.abort()
        with self._lock:
            left = list(self._ready)
            self._ready.clear()
        return [self._decode(entries) for entries in left]

    def abort(self) -> None:
        """Ends the stream at once; an item that is under way is lost."""
        with self._lock:
            self._closing = True
            call = self._call
            self._work.notify_all()
            self._news.notify_all()
        if not self._thread.is_alive():  # or not yet: one that begins now finds `_closing` and ends
            return
        if call is not None:
            call.cancel()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=2.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ReverbError):
            self.close()


def _containers(checker: structure.Checker | None, like: Any, table: str) -> tuple[structure.Checker | None, Any]:
    """What to check arrays with, and the tree to build them into."""
    if like is None:
        return checker, None if checker is None else checker.signature
    wanted = structure.signature_of(like)
    if checker is None:
        return structure.Checker(wanted, f"what is wanted of table {table!r}"), wanted
    have, want = structure.flatten(checker.signature), structure.flatten(wanted)
    if [path for path, _ in have] != [path for path, _ in want]:
        raise SignatureMismatch(f"table {table!r} holds {_names(have)}, not {_names(want)}")
    for (path, spec), (_, wish) in zip(have, want, strict=True):
        if wish.shape is None or None in wish.shape or spec.admits(wish.shape, wish.dtype):
            continue
        raise SignatureMismatch(f"{path.lstrip('.') or 'the array'} is {spec} in table {table!r}, not {wish}")
    # The containers of `like` itself: a signature of Specs has them too.
    return checker, wanted


def _names(leaves: list[tuple[str, Any]]) -> str:
    return ", ".join(path.lstrip(".") or "one array" for path, _ in leaves) or "nothing"


def _columns(trajectory: Any, entries: list[Any]) -> list[np.ndarray]:
    """The arrays of an item, by column. A chunk that serves several columns or slices is decoded once for each column."""
    chunks = {chunk.chunk_key: chunk for entry in entries for chunk in entry.data}
    decoded: dict[tuple[int, int], np.ndarray] = {}
    arrays = []
    for column in trajectory.columns:
        parts = []
        for piece in column.chunk_slices:
            where = (piece.chunk_key, piece.index)
            array = decoded.get(where)
            if array is None:
                chunk = chunks[piece.chunk_key]
                array = tensors.decode(chunk.data.tensors[piece.index])
                decoded[where] = array = tensors.undo_delta(array) if chunk.delta_encoded else array
            parts.append(array[piece.offset : piece.offset + piece.length])
        array = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if column.squeeze:
            array = array[0] if array.dtype != object or array.ndim > 1 else np.asarray(array[0], dtype=object)
        arrays.append(np.asarray(array))
    return arrays
