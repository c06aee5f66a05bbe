"""The client: a connection to a Reverb server with all that it offers."""

from collections.abc import Iterable, Mapping
from typing import Any

from podracer.stores.reverb import wire
from podracer.stores.reverb.connection import Connection
from podracer.stores.reverb.sampler import Sampler
from podracer.stores.reverb.tensors import Compression
from podracer.stores.reverb.writer import WindowWriter, Writer


class Client(Connection):
    """A connection, with the calls on tables, and the writers and samplers that share it."""

    def writer(
        self, *, max_in_flight: int = 64, compression: Compression = "auto", timeout_s: float = 60.0, reconnect_s: float = 60.0
    ) -> Writer:
        """A stream that inserts whole trees. See `writer.Writer`."""
        return Writer(self, max_in_flight=max_in_flight, compression=compression, timeout_s=timeout_s, reconnect_s=reconnect_s)

    def window_writer(
        self,
        *,
        chunk_length: int,
        max_window: int,
        max_in_flight: int = 64,
        compression: Compression = "auto",
        timeout_s: float = 60.0,
        reconnect_s: float = 60.0,
    ) -> WindowWriter:
        """A stream of steps, and items that are overlapping windows over it. See `writer.WindowWriter`."""
        return WindowWriter(
            self,
            chunk_length=chunk_length,
            max_window=max_window,
            max_in_flight=max_in_flight,
            compression=compression,
            timeout_s=timeout_s,
            reconnect_s=reconnect_s,
        )

    def sampler(
        self,
        table: str,
        *,
        prefetch: int = 8,
        rate_limiter_timeout_s: float = 1.0,
        like: Any = None,
        timeout_s: float = 60.0,
        reconnect_s: float = 60.0,
    ) -> Sampler:
        """A stream that samples from one table. See `sampler.Sampler`."""
        return Sampler(
            self,
            table,
            prefetch=prefetch,
            rate_limiter_timeout_s=rate_limiter_timeout_s,
            like=like,
            timeout_s=timeout_s,
            reconnect_s=reconnect_s,
        )

    def update_priorities(self, table: str, priorities: Mapping[int, float], timeout_s: float | None = None) -> None:
        """Sets priorities by item key. Keys that the table no longer has are passed over. Raises TableNotFound, Timeout."""
        request = wire.MutatePrioritiesRequest(table=table)
        for key, priority in priorities.items():
            request.updates.add(key=key, priority=priority)
        self.call("MutatePriorities", request, wire.MutatePrioritiesResponse, timeout_s)

    def delete(self, table: str, keys: Iterable[int], timeout_s: float | None = None) -> None:
        """Removes items by key. Keys that the table no longer has are passed over. Raises TableNotFound, Timeout."""
        request = wire.MutatePrioritiesRequest(table=table, delete_keys=keys)
        self.call("MutatePriorities", request, wire.MutatePrioritiesResponse, timeout_s)

    def reset(self, table: str, timeout_s: float | None = None) -> None:
        """Removes all items of a table and clears its rate limiter. Raises TableNotFound, Timeout."""
        self.call("Reset", wire.ResetRequest(table=table), wire.ResetResponse, timeout_s)

    def checkpoint(self, timeout_s: float | None = 300.0) -> str:
        """Saves all tables; other calls wait meanwhile. Returns the path on the server's host. Raises Timeout, ReverbError."""
        answer = self.call("Checkpoint", wire.CheckpointRequest(), wire.CheckpointResponse, timeout_s)
        return str(answer.checkpoint_path)
