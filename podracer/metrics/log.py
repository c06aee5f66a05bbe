"""Where numbers go: metrics.jsonl, one object a line, and TensorBoard events beside it."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class MetricsLog:
    """Appends rows to `metrics.jsonl` and TensorBoard events of a run folder."""

    def __init__(self, run_dir: Path, num_updates: int = 0):
        """Opens the files.

        Args:
          run_dir: an existing folder.
          num_updates: where the run goes on from. Rows behind it, from a process that died after its last checkpoint, are
            removed: they will be written again.
        """
        from tensorboardX import SummaryWriter

        self._path = run_dir / "metrics.jsonl"
        rows = [row for row in read_rows(run_dir) if row["num_updates"] <= num_updates]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(_line(row) for row in rows))
        temporary.replace(self._path)
        self._file = self._path.open("a", buffering=1)
        purge = (rows[-1]["num_agent_steps"] + 1 if rows else 0) if num_updates else None
        self._events = SummaryWriter(str(run_dir), purge_step=purge)

    def write(self, row: Mapping[str, Any]) -> None:
        """Writes one row.

        Args:
          row: numbers, or lists of one number a seed; needs `num_updates` and `num_agent_steps`. What is not finite
            becomes null in the file and is left out of TensorBoard, which shows the median over seeds.
        """
        self._file.write(_line(row))
        step = int(row["num_agent_steps"])
        for name, value in row.items():
            values = np.asarray(value, np.float64).reshape(-1)
            values = values[np.isfinite(values)]
            if values.size and name != "num_agent_steps" and not name.endswith("_histogram"):
                self._events.add_scalar(name, float(np.median(values)), step)

    def close(self) -> None:
        """Flushes and closes both."""
        self._file.close()
        self._events.close()


def read_rows(run_dir: Path) -> list[dict[str, Any]]:
    """All complete rows of a run folder's metrics.jsonl; a line that a killed process left half-written is skipped."""
    path = run_dir / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps({name: _plain(value) for name, value in row.items()}) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, (bool, int)) or value is None:
        return value
    value = float(value)
    return value if math.isfinite(value) else None
