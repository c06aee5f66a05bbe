"""What one call of the runtime adds up over the unrolls that it learns from."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

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

    def values(self, max_lag: int) -> dict[str, Any]:
        """The metrics of it, as `Sebulba.run` describes them."""
        values: dict[str, Any] = dict(self._counts)
        for name in ("episode_return", "episode_length"):
            values[name] = values[name] / values["episodes"] if values["episodes"] else np.nan
        acted = sum(self._seconds.values())
        for name, seconds in self._seconds.items():
            values[f"actor_{name}"] = seconds / acted if acted else np.nan
        elapsed = max(time.monotonic() - self.started, 1e-9)
        values |= {"learner_wait": self.waited / elapsed, "learner_update": 1 - self.waited / elapsed}
        values["actors"] = len(self._actors)
        values["lag"] = float(np.mean(self.lags)) if self.lags else np.nan
        values["lag_max"] = max(self.lags, default=0)
        values["lag_histogram"] = np.bincount(self.lags, minlength=max_lag + 1) / max(len(self.lags), 1)
        values["queue"] = float(np.mean(self._queue)) if self._queue else np.nan
        return values


def _add(into: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        into[name] += value
