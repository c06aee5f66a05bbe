"""Averages what several calls of a runtime report into one row."""

from collections.abc import Mapping
from typing import Any

import numpy as np

_COUNTS = ("agent_steps", "episodes")
_PER_EPISODE = ("episode_return", "episode_length")


class Meter:
    """Sums over calls; counts stay counts, means over episodes weigh by episodes, other means by updates."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._sums: dict[str, np.ndarray] = {}
        self._weights: dict[str, np.ndarray] = {}

    def add(self, metrics: Mapping[str, np.ndarray], num_updates: int, seconds: float) -> None:
        """Adds a call.

        Args:
          metrics: name to `[num_seeds]`; nan where no episode ended.
          num_updates: of the call.
          seconds: that it took.
        """
        self.seconds += seconds
        for name, value in metrics.items():
            value = np.asarray(value, np.float64)
            if name in _COUNTS:
                weight = np.ones_like(value)
            elif name in _PER_EPISODE:
                weight = np.asarray(metrics["episodes"], np.float64)
                value = np.where(weight > 0, value, 0.0)
            else:
                weight = np.full_like(value, num_updates)
            self._sums[name] = self._sums.get(name, 0.0) + value * weight
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def row(self) -> dict[str, Any]:
        """The averages as numbers, or as lists where there are several seeds; `agent_steps_per_second` over all seeds."""
        found: dict[str, Any] = {}
        with np.errstate(invalid="ignore", divide="ignore"):
            for name, total in self._sums.items():
                value = total if name in _COUNTS else total / self._weights[name]
                found[name] = value.tolist() if value.size > 1 else float(value[0])
        steps = float(np.sum(self._sums["agent_steps"])) if self._sums else 0.0
        found["agent_steps_per_second"] = steps / self.seconds if self.seconds else float("nan")
        return found
