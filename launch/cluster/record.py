"""What a run folder tells of its processes on many hosts: `cluster/state.json`, a log of each, and a request to stop."""

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from podracer.checkpoint import GENERATION_FILE, newest_generation
from podracer.launch.job import write_atomically

RUNNING = ("starting", "running", "restarting", "stopping")
"""States of a run whose launcher lives; the others are `done`, `stopped` and `failed`."""
_STALE_SECONDS = 30.0


class Record:
    """Writes it; of the launcher alone."""

    def __init__(self, run_dir: Path):
        self.folder = run_dir / "cluster"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stop = self.folder / "stop"
        self._stop.unlink(missing_ok=True)
        self._run_dir, self._generation = run_dir, newest_generation(run_dir)
        self._logs: dict[str, Any] = {}
        self._state: dict[str, Any] = {
            "launcher": {"pid": os.getpid(), "node": socket.gethostname()},
            "started": time.time(),
            "restarts": [],
        }

    def next_generation(self) -> int:
        """Announces the next generation of processes: older ones save nothing from now on."""
        self._generation += 1
        write_atomically(self._run_dir / GENERATION_FILE, json.dumps({"generation": self._generation}) + "\n")
        return self._generation

    def tell(self, state: str, processes: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Writes `state` down, and which processes there are: name to `node` and `pid`."""
        if processes is not None:
            self._state["processes"] = {name: dict(facts) for name, facts in processes.items()}
        self._state |= {"state": state, "generation": self._generation, "told": time.time()}
        write_atomically(self.folder / "state.json", json.dumps(self._state, indent=2) + "\n")

    def restarted(self, what: str, reason: str) -> None:
        """Notes that `what`, `all` or an actor, was started again, and why."""
        entry = {"time": time.time(), "generation": self._generation, "what": what, "reason": reason}
        self._state["restarts"] = [*self._state["restarts"], entry][-1000:]

    def log(self, name: str, lines: Sequence[str]) -> None:
        """Adds lines to the log of a process."""
        if lines:
            if name not in self._logs:
                self._logs[name] = (self.folder / f"{name}.log").open("a", buffering=1)
            self._logs[name].write("".join(f"{line}\n" for line in lines))

    @property
    def stop_requested(self) -> bool:
        """Whether `request_stop` was called, on whatever host."""
        return self._stop.exists()

    def close(self) -> None:
        """Closes the logs."""
        for file in self._logs.values():
            file.close()
        self._logs.clear()
        self._stop.unlink(missing_ok=True)


def read(run_dir: Path) -> dict[str, Any] | None:
    """What `Record.tell` wrote last, or None; the state of a launcher that says nothing any more is `lost`."""
    try:
        state: dict[str, Any] = json.loads((run_dir / "cluster" / "state.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    if state["state"] in RUNNING and time.time() - state["told"] > _STALE_SECONDS:
        state["state"] = "lost"
    return state


def request_stop(run_dir: Path) -> None:
    """Asks the launcher of a run to save and end."""
    (run_dir / "cluster" / "stop").touch()


def logs(run_dir: Path) -> dict[str, Path]:
    """The log of each process by its name."""
    return {path.stem: path for path in sorted((run_dir / "cluster").glob("*.log"))}
