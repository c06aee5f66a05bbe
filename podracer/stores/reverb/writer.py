"""Writers: whole trees as items (`Writer`), and overlapping windows over a stream of steps that share data (`WindowWriter`)."""

import collections
import dataclasses
import os
import random
from typing import Any, Self

import numpy as np

from podracer.stores.reverb import structure, tensors, wire
from podracer.stores.reverb.connection import Connection
from podracer.stores.reverb.errors import ItemTooLarge, SignatureMismatch
from podracer.stores.reverb.insert_stream import Chunk, InsertStream, Item, keep_field
from podracer.stores.reverb.tensors import Compression

_OVERHEAD = 4096  # bytes of an item's request beside its chunks, generously


class _Keys:
    """64-bit keys, unique over all writers of a server: from the system's randomness, asked once since that can be slow."""

    def __init__(self) -> None:
        self._random = random.Random(os.urandom(32))

    def new(self) -> int:
        return self._random.getrandbits(64) or 1


def _leaves(tree: Any) -> list[tuple[str, np.ndarray]]:
    try:
        return [(path, tensors.canonical(leaf)) for path, leaf in structure.flatten(tree)]
    except TypeError as error:
        raise SignatureMismatch(str(error)) from None


def _chunk(key: int, arrays: list[np.ndarray], steps: tuple[int, int, int], compression: Compression) -> Chunk:
    """A chunk with a column for each array, `[steps, ...]`. steps: episode, first and last step."""
    size = sum(array.nbytes for array in arrays)
    header = wire.ChunkData(chunk_key=key, data_tensors_len=len(arrays), data_uncompressed_size=size)
    header.sequence_range.episode_id, header.sequence_range.start, header.sequence_range.end = steps
    parts: list[Any] = []
    for array in arrays:
        parts += wire.field(1, *tensors.encode(array, compression))
    return Chunk(key, b"".join(wire.field(1, header.SerializeToString(), *wire.field(5, *parts))))


def _refuse_large(size: int, table: str) -> None:
    if size + _OVERHEAD > wire.MAX_MESSAGE_BYTES:
        raise ItemTooLarge(f"an item of {size / 2**30:.2f} GiB for table {table!r}: Reverb carries 2 GiB - 1 at most; split it")


class _ItemStream:
    """What both writers have: an insert stream, and its end."""

    def __init__(
        self,
        client: Connection,
        *,
        max_in_flight: int = 64,
        compression: Compression = "auto",
        timeout_s: float = 60.0,
        reconnect_s: float = 60.0,
    ):
        """See `Client.writer` and `Client.window_writer`, which make them.

        Args:
          client: whose connection it shares.
          max_in_flight: items sent and not confirmed; more hide the network's latency, and cost memory.
          compression: of arrays; see `tensors.compressed_block`.
          timeout_s: seconds that a call may wait, unless told.
          reconnect_s: seconds without a server after which the writer fails for good.
        """
        self._client = client
        self._compression = compression
        self._keys = _Keys()
        self._stream = InsertStream(client, max_in_flight, timeout_s, reconnect_s)

    @property
    def num_unconfirmed(self) -> int:
        """Items in flight."""
        return self._stream.num_unconfirmed

    @property
    def num_reconnects(self) -> int:
        """How often the stream broke and was opened again."""
        return self._stream.num_reconnects

    def flush(self, timeout_s: float | None = None) -> None:
        """Returns once all items are confirmed. Raises Timeout, and what ended the writer."""
        self._stream.flush(timeout_s)

    def close(self, timeout_s: float | None = None) -> None:
        """`flush`, then the end. May be called again."""
        self._stream.close(timeout_s)

    def abort(self) -> None:
        """Ends at once; items in flight may or may not arrive."""
        self._stream.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


class Writer(_ItemStream):
    """Inserts whole trees, one item each; a context manager. Safe to use from several threads.

    Leaving the context waits until all items are confirmed, unless it is left by an exception. After a lost connection the
    writer connects again and sends unconfirmed items again: an item is inserted at least once. What a restarted server
    remembers of confirmed items is its last checkpoint.
    """

    def insert(self, table: str, tree: Any, *, priority: float = 1.0, timeout_s: float | None = None) -> int:
        """Sends one item. Returns its key, by which priorities are updated and items deleted.

        The tree is encoded before this returns: its arrays may change afterwards. It waits while `max_in_flight` items are
        unconfirmed, as they are when a queue is full.

        Args:
          table: its name.
          tree: dictionaries, sequences, named tuples and dataclasses of arrays of any shape.
          priority: of a prioritised table.
          timeout_s: None is the writer's.

        Raises:
          SignatureMismatch: the tree is not what the table holds, or Reverb cannot carry a leaf's dtype.
          ItemTooLarge: more than 2 GiB - 1, before anything is sent.
          TableNotFound, Timeout, Unavailable: with who waited for whom; the latter end the writer.
        """
        leaves = _leaves(tree)
        _refuse_large(sum(leaf.nbytes for _, leaf in leaves), table)
        checker = self._client.checker(table)
        if checker is not None:
            checker.check(leaves)
        # A leading axis of one step, which `squeeze` takes away again: so leaves may differ in their first size.
        chunk_key = self._keys.new()
        chunk = _chunk(chunk_key, [leaf[None] for _, leaf in leaves], (chunk_key, 0, 0), self._compression)
        _refuse_large(len(chunk.data), table)
        item = wire.PrioritizedItem(key=self._keys.new(), table=table, priority=priority)
        columns = item.flat_trajectory.columns
        for index in range(len(leaves)):
            columns.add(squeeze=True).chunk_slices.add(chunk_key=chunk.key, length=1, index=index)
        data = b"".join(wire.field(2, item.SerializeToString()))
        whole = b"".join([chunk.data, data, keep_field([chunk.key])])
        self._stream.submit(Item(item.key, table, data, (), whole=whole), timeout_s)
        return int(item.key)


@dataclasses.dataclass(frozen=True, eq=False)
class _Span:
    """steps `first` to `first + length - 1` of the episode are in the chunk."""

    chunk: Chunk
    first: int
    length: int


class WindowWriter(_ItemStream):
    """Items that are windows over one stream of steps; a context manager. For one thread.

    Each step is sent once, in a chunk of up to `chunk_length` steps, however many windows share it. The server sends whole
    chunks to samplers, so a chunk should be no longer than the distance between windows.
    """

    def __init__(self, client: Connection, *, chunk_length: int, max_window: int, **options: Any):
        """Args:
        client: whose connection it shares.
        chunk_length: steps of a chunk; a window's end also ends one.
        max_window: steps of the longest window.
        options: as of `Writer`.
        """
        if not 1 <= chunk_length <= max_window:
            raise ValueError(f"chunk_length {chunk_length} must be between 1 and max_window {max_window}")
        super().__init__(client, **options)
        self._chunk_length = chunk_length
        self._max_window = max_window
        self._spec: structure.Checker | None = None
        self._example: Any = None
        self._spans: collections.deque[_Span] = collections.deque()
        self._steps: list[list[np.ndarray]] = []
        self._start_episode()

    def _start_episode(self) -> None:
        self._episode = self._keys.new()
        self._num_steps = 0
        self._spans.clear()
        self._steps.clear()

    def append(self, step: Any) -> None:
        """Adds one step, a tree of arrays; all steps have the same structure, dtypes and shapes.

        Raises SignatureMismatch where this one has not.
        """
        leaves = _leaves(step)
        if self._spec is None:
            self._example = structure.rebuild(step, (leaf for _, leaf in leaves))
            self._spec = structure.Checker(structure.signature_of(self._example), "the stream")
        self._spec.check(leaves)
        self._steps.append([np.array(leaf) for _, leaf in leaves])  # copies: environments reuse their arrays
        self._num_steps += 1
        if len(self._steps) == self._chunk_length:
            self._end_chunk()

    def _end_chunk(self) -> None:
        if not self._steps:
            return
        arrays = [np.stack(column) for column in zip(*self._steps, strict=True)]
        first = self._num_steps - len(self._steps)
        chunk = _chunk(self._keys.new(), arrays, (self._episode, first, self._num_steps - 1), self._compression)
        self._spans.append(_Span(chunk, first, len(self._steps)))
        self._steps.clear()
        while self._num_steps - (self._spans[0].first + self._spans[0].length) >= self._max_window:
            self._spans.popleft()

    def create_item(self, table: str, num_steps: int, *, priority: float = 1.0, timeout_s: float | None = None) -> int:
        """Makes an item of the last `num_steps` steps, leaves `[num_steps, ...]`. Returns its key.

        Raises ValueError for a window that reaches beyond the episode's start or max_window; else like `Writer.insert`.
        """
        if not 1 <= num_steps <= min(self._max_window, self._num_steps):
            raise ValueError(
                f"a window of {num_steps} steps; the episode has {self._num_steps}, and max_window is {self._max_window}"
            )
        self._end_chunk()
        checker = self._client.checker(table)
        if checker is not None:
            checker.check(self._window_specs(num_steps))
        first = self._num_steps - num_steps
        spans = [span for span in self._spans if span.first + span.length > first]
        _refuse_large(sum(len(span.chunk.data) for span in spans), table)
        item = wire.PrioritizedItem(key=self._keys.new(), table=table, priority=priority)
        for index in range(len(structure.flatten(self._example))):
            column = item.flat_trajectory.columns.add()
            for span in spans:
                offset = max(first - span.first, 0)
                column.chunk_slices.add(chunk_key=span.chunk.key, offset=offset, length=span.length - offset, index=index)
        data = b"".join(wire.field(2, item.SerializeToString()))
        live = frozenset(span.chunk.key for span in self._spans)
        self._stream.submit(Item(item.key, table, data, tuple(span.chunk for span in spans), live), timeout_s)
        return int(item.key)

    def _window_specs(self, num_steps: int) -> list[tuple[str, Any]]:
        """Stand-ins for the window's arrays with their shapes and dtypes, which is all that a check reads."""
        return [(path, structure.Spec((num_steps, *leaf.shape), leaf.dtype)) for path, leaf in structure.flatten(self._example)]

    def end_episode(self) -> None:
        """Later windows do not reach back beyond here."""
        self._start_episode()
