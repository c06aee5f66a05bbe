"""Where numbers go: metrics.jsonl, one object a line, TensorBoard events beside it, and Weights & Biases where asked for."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from podracer.metrics.wandb_run import WandbRun


class MetricsLog:
    """Appends rows to `metrics.jsonl` and TensorBoard events of a run folder."""

    def __init__(self, run_dir: Path, num_updates: int = 0, wandb: WandbRun | None = None):
        """Opens the files.

        Args:
          run_dir: an existing folder.
          num_updates: where the run goes on from. Rows behind it, from a process that died after its last checkpoint, are
            removed: they will be written again.
          wandb: gets the rows too; it stays open.
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
        self._wandb = wandb

    def write(self, row: Mapping[str, Any]) -> None:
        """Writes one row.

        Args:
          row: numbers, or lists of one number a seed; needs `num_updates` and `num_agent_steps`. What is not finite
            becomes null in the file and is left out elsewhere, where the median over seeds is shown.
        """
        self._file.write(_line(row))
        scalars = _scalars(row)
        for name, value in scalars.items():
            if name != "num_agent_steps":
                self._events.add_scalar(name, value, int(row["num_agent_steps"]))
        if self._wandb is not None:
            self._wandb.write(scalars)

    def close(self) -> None:
        """Flushes and closes the files."""
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


def _scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The median over seeds of each number, of what is finite."""
    found = {}
    for name, value in row.items():
        values = np.asarray(value, np.float64).reshape(-1)
        values = values[np.isfinite(values)]
        if values.size and not name.endswith("_histogram"):
            found[name] = float(np.median(values))
    return found


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps({name: _plain(value) for name, value in row.items()}) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, (bool, int)) or value is None:
        return value
    value = float(value)
    return value if math.isfinite(value) else None
