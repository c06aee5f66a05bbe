"""A Sebulba run leaves the same folder as any other, stops when it is told to, and fails in one line."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiny_parts import TINY

from podracer.metrics.log import read_rows

RUN = ("launch", "sebulba", *TINY, "--actor-devices", 1, "--learner-devices", 1)


def test_a_run_leaves_a_whole_folder_and_goes_on(podracer: Callable[..., Any], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    result = podracer(*RUN, "--steps", 2000, "--run-dir", run_dir, "--max-lag", 2)
    assert (result.code, result.err) == (0, "")
    assert "actors: env" in result.out
    assert "learner: update" in result.out
    assert {"config.json", "metrics.jsonl", "summary.json", "checkpoints"} <= {path.name for path in run_dir.iterdir()}
    rows = read_rows(run_dir)
    assert max(row["lag_max"] for row in rows) <= 2
    assert len(rows[0]["lag_histogram"]) == 3
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["runtime"] == "sebulba"
    assert summary["num_agent_steps"] == rows[-1]["num_agent_steps"] >= 2000
    result = podracer("launch", "sebulba", "--resume", "--steps", 3000, "--run-dir", run_dir)
    assert result.code == 0, result.err
    assert "start anew" in result.out
    assert json.loads((run_dir / "summary.json").read_text())["num_updates"] > summary["num_updates"]


def test_sigterm_saves_and_ends_in_time(start: Callable[..., Any], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start(*RUN, "--steps", "1e9", "--run-dir", run_dir)
    until = time.monotonic() + 240
    while len(read_rows(run_dir)) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 0, err
    assert "stopped by SIGTERM: saved" in out
    assert any(path.name.isdigit() for path in (run_dir / "checkpoints").iterdir())


def test_actors_that_fail_for_good_end_the_run_in_one_line(podracer: Callable[..., Any], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    failing = ("--env", "tiny_parts:FAILING", "--set", "sebulba.max_restarts=1", "--set", "sebulba.threads=1")
    result = podracer(*RUN, *failing, "--steps", "1e6", "--run-dir", run_dir)
    assert result.code == 1
    last = result.err.splitlines()[-1]
    assert last.startswith("podracer: 1 restarts of actors were not enough")
    assert "the tiny emulator is gone" in last
    assert "Traceback" not in result.err
    assert any(path.name.isdigit() for path in (run_dir / "checkpoints").iterdir())


def test_devices_are_named_by_what_they_do(podracer: Callable[..., Any]) -> None:
    for flags, message in (
        (("--devices", 2), "say --actor-devices and --learner-devices"),
        (("--actor-devices", 8), "XLA_FLAGS"),
        (("--seeds", 2), "use --seeds 1, or Anakin"),
        (("--set", "sebulba.threads=0"), "sebulba.threads must be at least 1"),
    ):
        result = podracer(*RUN, *flags)
        assert (result.code, result.err.count("\n")) == (2, 1), result
        assert message in result.err
