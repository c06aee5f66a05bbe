"""Replay in a Reverb table: single unrolls, drawn uniformly or by priority. The on-device form of the same is `ring`."""

import queue
import threading
from typing import Any

import numpy as np

from podracer.stores.layout import Layout
from podracer.stores.reverb import Client, Sample, Table, Timeout

NAME = "replay"
_SLICE_S = 1.0
_SMALLEST = 1e-30  # Reverb never draws what has priority 0


class Drawn:
    """unrolls: leaves `[K, n, ...]`. importance: `[K, n]` float32, `1 / (N P)`. keys: `[K][n]`, of the items."""

    def __init__(self, unrolls: Any, importance: np.ndarray, keys: list[list[int]]):
        self.unrolls, self.importance, self.keys = unrolls, importance, keys


def table(example: Any, capacity: int, exponent: float) -> Table:
    """The table. `example`: one unroll, arrays or shapes. `exponent`: of priorities, 0 for uniform draws."""
    signature = Layout(example).signature
    if exponent:
        return Table.prioritized(NAME, capacity, exponent=exponent, signature=signature)
    return Table.uniform(NAME, capacity, signature=signature)


class Replay:
    """A thread draws ahead, so that a batch is ready when the last one was learned from: priorities are as old as that."""

    def __init__(self, client: Client, example: Any, num_draws: int, batch_size: int):
        """Args:
        client: of a server with `table(example, ...)`.
        num_draws, batch_size: `K` and `n` of `Drawn`.
        """
        self._client, self._layout, self._shape = client, Layout(example), (num_draws, batch_size)
        self._writer = client.writer(max_in_flight=max(64, 4 * batch_size))
        self._sampler = client.sampler(NAME, prefetch=max(2 * batch_size, 8), rate_limiter_timeout_s=0.5)
        self._ready: queue.Queue[Drawn] = queue.Queue(maxsize=1)
        self._failure: Exception | None = None
        self._closed = threading.Event()
        self._highest = 1.0
        self._thread = threading.Thread(target=self._run, name="replay", daemon=True)
        self._thread.start()

    def insert(self, unrolls: Any) -> list[int]:
        """Adds unrolls, leaves `[B, ...]` on the host, with the highest priority so far. Returns their items' keys."""
        leaves = self._layout.pack(unrolls)
        number = len(leaves[0])
        return [self._writer.insert(NAME, [leaf[i] for leaf in leaves], priority=self._highest) for i in range(number)]

    def get(self, timeout: float) -> Drawn | None:
        """The next draw, or None if there is none for `timeout` seconds. Raises ReverbError."""
        if self._failure is not None:
            raise self._failure
        try:
            return self._ready.get(timeout=timeout)
        except queue.Empty:
            return None

    def prioritize(self, keys: list[int], priorities: np.ndarray) -> None:
        """Sets priorities `[n]`; of a key that comes twice the last one holds, those that have left are passed over."""
        priorities = np.maximum(np.asarray(priorities, np.float64), _SMALLEST)
        self._highest = max(self._highest, float(priorities.max()))
        self._client.update_priorities(NAME, dict(zip(keys, priorities.tolist(), strict=True)), timeout_s=60.0)

    def close(self) -> None:
        """Ends the thread; the server's data stay."""
        self._closed.set()
        self._sampler.abort()
        self._writer.abort()
        self._thread.join(5.0)

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                drawn = self._draw()
                while drawn is not None and not self._closed.is_set():
                    try:
                        self._ready.put(drawn, timeout=0.1)
                        break
                    except queue.Full:
                        continue
        except Exception as error:
            if not self._closed.is_set():
                self._failure = error

    def _draw(self) -> Drawn | None:
        num_draws, batch_size = self._shape
        samples: list[Sample] = []
        while len(samples) < num_draws * batch_size:
            try:
                samples.append(self._sampler.sample(_SLICE_S))
            except Timeout:
                if self._closed.is_set():
                    return None
        leaves = [
            np.stack(column).reshape(*self._shape, *column[0].shape) for column in zip(*(s.data for s in samples), strict=True)
        ]
        importance = np.array([1.0 / (s.table_size * s.probability) for s in samples], np.float32).reshape(self._shape)
        keys = [[s.key for s in samples[k * batch_size : (k + 1) * batch_size]] for k in range(num_draws)]
        return Drawn(self._layout.unpack(leaves), importance, keys)
