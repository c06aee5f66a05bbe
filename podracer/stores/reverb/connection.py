"""A connection to a Reverb server: short calls that are tried again, and what its streams need of it."""

import contextlib
import dataclasses
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Self

import grpc

from podracer.stores.reverb import structure, wire
from podracer.stores.reverb.errors import TRANSIENT, ReverbError, TableNotFound, Timeout, Unavailable

_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own, with a backoff of its own
    ("grpc.enable_http_proxy", 0),  # a proxy for the web has no business between hosts of one job
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableInfo:
    """What a server says about one table.

    name, max_size, max_times_sampled, samples_per_insert, min_size_to_sample, min_diff, max_diff: as in `tables.Table`.
    sampler, remover: one of `tables.SELECTORS`.
    current_size: items now. num_inserted, num_sampled: calls that the rate limiter has let through, over the table's life.
    num_unique_samples: items that were sampled at least once. num_episodes, num_deleted_episodes: distinct episodes.
    signature: tree of `structure.Spec`, or None.
    """

    name: str
    sampler: str
    remover: str
    max_size: int
    max_times_sampled: int
    samples_per_insert: float
    min_size_to_sample: int
    min_diff: float
    max_diff: float
    current_size: int
    num_inserted: int
    num_sampled: int
    num_unique_samples: int
    num_episodes: int
    num_deleted_episodes: int
    signature: Any


@dataclasses.dataclass(frozen=True)
class ServerInfo:
    """state_id: 128 bits that change when the server starts anew. tables: by name."""

    state_id: int
    tables: Mapping[str, TableInfo]


class Connection:
    """A connection; a context manager. Safe to use from several threads. Connects at the first call.

    address: "host:port".
    """

    def __init__(self, address: str, *, timeout_s: float = 10.0):
        """Args: address: "host:port". timeout_s: seconds that a call may take, reconnecting included, unless it says so."""
        self.address = address
        self.timeout_s = timeout_s
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._lock = threading.Lock()
        self._checkers: dict[str, structure.Checker | None] = {}
        self._streams: weakref.WeakSet[Any] = weakref.WeakSet()
        self._closed = False

    def server_info(self, timeout_s: float | None = None) -> ServerInfo:
        """What the server has. Raises Timeout, Unavailable."""
        answer = self.call("ServerInfo", wire.ServerInfoRequest(), wire.ServerInfoResponse, timeout_s)
        state = answer.tables_state_id.high << 64 | answer.tables_state_id.low
        return ServerInfo(state, {info.name: _table_info(info) for info in answer.table_info})

    def checker(self, table: str, timeout_s: float | None = None) -> structure.Checker | None:
        """The table's signature, ready to check with; None where it has none. Remembered until the connection is lost.

        Raises TableNotFound, Timeout, Unavailable.
        """
        with self._lock:
            if table in self._checkers:
                return self._checkers[table]
        tables = self.server_info(timeout_s).tables
        found = {
            name: None if info.signature is None else structure.Checker(info.signature, f"table {name!r}")
            for name, info in tables.items()
        }
        with self._lock:
            self._checkers.update(found)
        if table not in found:
            raise TableNotFound(
                f"the Reverb server at {self.address} has no table {table!r}; it has {', '.join(sorted(found))}"
            )
        return found[table]

    def await_server(self, timeout_s: float, stop: Callable[[], bool]) -> None:
        """Returns once the server answers or `stop` is true; forgets what was remembered of it. Raises Timeout, Unavailable."""
        with self._lock:
            self._checkers.clear()
        deadline = time.monotonic() + timeout_s
        while not stop():
            remaining = deadline - time.monotonic()
            try:
                self.server_info(max(min(1.0, remaining), 0.001))
                return
            except (Timeout, Unavailable) as error:
                if remaining < 1.0:
                    text = str(error).removeprefix(f"no Reverb server answers at {self.address}: ")
                    raise type(error)(
                        f"no Reverb server answers at {self.address}: gone for {timeout_s:.1f} s: {text}"
                    ) from None

    def stream(self, method: str, requests: Any, answer: Any) -> Any:
        """Opens a stream of serialised requests; for writers and samplers."""
        return self._channel.stream_stream(wire.SERVICE + method, response_deserializer=answer.FromString)(requests)

    def adopt(self, stream: Any) -> None:
        """Registers what `close` shall abort. Raises ReverbError after `close`."""
        if self._closed:
            raise ReverbError(f"the client of {self.address} is closed")
        self._streams.add(stream)

    def call(self, method: str, request: Any, answer: Any, timeout_s: float | None) -> Any:
        """One short call, tried again while the server cannot be reached. All of them may be repeated without harm."""
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        call = self._channel.unary_unary(wire.SERVICE + method, response_deserializer=answer.FromString)
        data = request.SerializeToString()
        pause_s = 0.05
        while True:
            try:
                return call(data, timeout=max(deadline - time.monotonic(), 0.001))
            except ValueError as error:  # of gRPC, on a closed channel
                raise ReverbError(f"the client of {self.address} is closed") from error
            except grpc.RpcError as error:
                remaining = deadline - time.monotonic()
                if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED or (error.code() in TRANSIENT and remaining < pause_s):
                    raise self._too_late(method, error, timeout_s) from None
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise self.translate(error, method, getattr(request, "table", "")) from None
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 0.5)

    def _too_late(self, method: str, error: Any, timeout_s: float) -> ReverbError:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            details = " ".join((error.details() or "").split())
            return Unavailable(f"no Reverb server answers at {self.address}: tried {method} for {timeout_s:.1f} s: {details}")
        return Timeout(f"waited {timeout_s:.1f} s for the Reverb server at {self.address} to answer {method}, in vain")

    def translate(self, error: Any, what: str, table: str) -> ReverbError:
        """Our error for one of gRPC's."""
        details = " ".join((error.details() or "").split())
        if error.code() is grpc.StatusCode.NOT_FOUND and table:
            return TableNotFound(f"the Reverb server at {self.address} has no table {table!r} ({what})")
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return Unavailable(f"no Reverb server answers at {self.address} ({what})")
        return ReverbError(f"the Reverb server at {self.address} refuses {what}: {error.code().name}: {details}")

    def state_of(self, table: str) -> str:
        """Words on a table for the text of a timeout; never raises."""
        try:
            info = self.server_info(1.0).tables.get(table)
        except ReverbError:
            return "the server does not answer"
        if info is None:
            return f"the server has no table {table!r}"
        return (
            f"table {table!r} holds {info.current_size} of {info.max_size} items after {info.num_inserted} inserts "
            f"and {info.num_sampled} samples"
        )

    def close(self) -> None:
        """Aborts writers and samplers that are still open, and closes the connection. May be called again."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for stream in list(self._streams):
            with contextlib.suppress(ReverbError):
                stream.abort()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _table_info(info: Any) -> TableInfo:
    limiter = info.rate_limiter_info
    return TableInfo(
        name=info.name,
        sampler=_selector(info.sampler_options),
        remover=_selector(info.remover_options),
        max_size=info.max_size,
        max_times_sampled=info.max_times_sampled,
        samples_per_insert=limiter.samples_per_insert,
        min_size_to_sample=limiter.min_size_to_sample,
        min_diff=limiter.min_diff,
        max_diff=limiter.max_diff,
        current_size=info.current_size,
        num_inserted=limiter.insert_stats.completed,
        num_sampled=limiter.sample_stats.completed,
        num_unique_samples=info.num_unique_samples,
        num_episodes=info.num_episodes,
        num_deleted_episodes=info.num_deleted_episodes,
        signature=structure.from_wire(info.signature) if info.HasField("signature") else None,
    )


def _selector(options: Any) -> str:
    kind = options.WhichOneof("distribution")
    if kind == "heap":
        return "min_heap" if options.heap.min_heap else "max_heap"
    return str(kind or "unknown")
