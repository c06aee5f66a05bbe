"""What one call of the runtime adds up over the unrolls that it learns from."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from podracer.hosts import Hosts
from podracer.runtimes.sebulba.actor import ACTIVITIES, COUNTS, Unroll


class Tally:
    """Counts, times and lags.

    waited: seconds that the learner waited. lags: of each unroll, in updates.
    """

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.waited = 0.0
        self.lags: list[int] = []
        self._actors: set[int] = set()
        self._queue: list[int] = []
        self._counts = dict.fromkeys(COUNTS, 0.0)
        self._seconds = dict.fromkeys(ACTIVITIES, 0.0)

    def add(self, unroll: Unroll, lag: int, queue: int) -> None:
        """Adds an unroll that was learned from. `queue`: unrolls that waited meanwhile."""
        self.lags.append(lag)
        self._actors.add(unroll.actor)
        self._queue.append(queue)
        _add(self._counts, unroll.counts)
        _add(self._seconds, unroll.seconds)

    def values(self, max_lag: int, host: Hosts) -> dict[str, Any]:
        """The metrics of it, over all hosts, as `Sebulba.run` describes them."""
        elapsed = max(time.monotonic() - self.started, 1e-9)
        own = [
            *(*self._counts.values(), *self._seconds.values()),
            *(elapsed, self.waited, len(self._actors), sum(self._queue)),
            *np.bincount(self.lags, minlength=max_lag + 1),
        ]
        over_hosts = iter(host.sum(own))
        values: dict[str, Any] = {name: next(over_hosts) for name in self._counts}
        for name in ("episode_return", "episode_length"):
            values[name] = values[name] / values["episodes"] if values["episodes"] else np.nan
        seconds = {name: next(over_hosts) for name in self._seconds}
        acted = sum(seconds.values())
        values |= {f"actor_{name}": spent / acted if acted else np.nan for name, spent in seconds.items()}
        elapsed, waited, values["actors"], queued = (next(over_hosts) for _ in range(4))
        values |= {"learner_wait": waited / elapsed, "learner_update": 1 - waited / elapsed}
        lags = np.array(list(over_hosts))
        num = lags.sum()
        values["lag"] = float(lags @ np.arange(len(lags)) / num) if num else np.nan
        values["lag_max"] = int(np.flatnonzero(lags)[-1]) if num else 0
        values["lag_histogram"] = lags / max(num, 1)
        values["queue"] = queued / num if num else np.nan
        return values


def _add(into: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        into[name] += value
