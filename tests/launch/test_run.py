"""A run leaves a whole folder, and survives being stopped, killed and resumed, bit for bit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_parts import TINY

from podracer.launch.loop import Counters, updates
from podracer.metrics.log import read_rows

LAUNCH = ("launch", "anakin")
RUN = (*LAUNCH, *TINY)
ISSUE_KEYS = {
    "agent", "env", "runtime", "num_env_frames", "num_agent_steps", "num_updates", "wall_seconds",
    "agent_steps_per_second", "eval_return_mean", "eval_return_std", "eval_episodes", "params_sha256",
}  # fmt: skip


def _summary(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of 3,000 steps in one go."""
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    command = [*RUN, "--steps", 3000, "--run-dir", run_dir]
    subprocess.run(_command(*command), cwd=Path(__file__).parent, check=True, capture_output=True)
    return _summary(run_dir)


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "podracer.launch.cli", *map(str, arguments)]


def test_a_run_leaves_a_whole_folder(podracer: Callable[..., Any], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    result = podracer(*RUN, "--steps", 2000, "--run-dir", run_dir)
    assert result.code == 0, result.err
    assert result.err == ""
    names = {path.name for path in run_dir.iterdir()}
    assert {"config.json", "metrics.jsonl", "summary.json", "curve.png", "evaluation.mp4", "checkpoints"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    summary = _summary(run_dir)
    assert set(summary) >= ISSUE_KEYS
    assert 2000 <= summary["num_agent_steps"] < 2000 + 64
    assert summary["num_env_frames"] == 4 * summary["num_agent_steps"]
    assert summary["eval_episodes"] == 32
    rows = read_rows(run_dir)
    assert rows[-1]["num_agent_steps"] == summary["num_agent_steps"]
    assert rows[-1]["num_updates"] == summary["num_updates"]
    assert "ETA" in result.out
    assert "return" in result.out
    video = run_dir.parent / "film.mp4"
    played = podracer("evaluate", run_dir, "--episodes", 50, "--video", video)
    assert played.code == 0, played.err
    assert "evaluation over 50 episodes" in played.out
    import imageio.v3 as iio

    film = iio.imread(video)
    assert film.shape[1] % 16 == film.shape[2] % 16 == 0
    assert len(film) >= 2


def test_twice_the_steps_by_resuming_is_twice_the_steps_in_one_go(
    podracer: Callable[..., Any], reference: dict[str, Any], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    assert podracer(*RUN, "--steps", 1500, "--run-dir", run_dir, "--set", "anakin.updates_per_call=3").code == 0
    half = _summary(run_dir)
    assert podracer(*LAUNCH, "--resume", "--steps", 3000, "--run-dir", run_dir).code == 0
    whole = _summary(run_dir)
    assert half["params_sha256"] != whole["params_sha256"] == reference["params_sha256"]
    for key in ("num_updates", "num_agent_steps", "num_env_frames", "eval_return_mean"):
        assert whole[key] == reference[key]
    updates_seen = [row["num_updates"] for row in read_rows(run_dir)]
    assert updates_seen == sorted(set(updates_seen))


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.002)


def test_killed_in_a_save_and_resumed_is_bit_for_bit_the_same(
    podracer: Callable[..., Any], start: Callable[..., Any], reference: dict[str, Any], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    folder = run_dir / "checkpoints"
    every_call = ("--set", "checkpoint_seconds=0", "--set", "anakin.updates_per_call=1")
    process = start(*RUN, *every_call, "--steps", 3000, "--run-dir", run_dir)

    def saving() -> bool:
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
        return any("tmp" in name for name in names) and any(name.isdigit() for name in names)

    _wait_for(saving, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (run_dir / "summary.json").exists()
    result = podracer(
        *LAUNCH, "--resume", "--run-dir", run_dir, "--set", "checkpoint_seconds=60", "--set", "anakin.updates_per_call=7"
    )
    assert result.code == 0, result.err
    assert "resumed after update" in result.out
    assert _summary(run_dir)["params_sha256"] == reference["params_sha256"]
    assert _summary(run_dir)["num_agent_steps"] == reference["num_agent_steps"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_asked_to_stop_it_saves(
    start: Callable[..., Any], podracer: Callable[..., Any], tmp_path: Path, number: int, code: int
) -> None:
    run_dir = tmp_path / "run"
    process = start(*RUN, "--steps", 10**9, "--run-dir", run_dir)
    _wait_for(lambda: (run_dir / "metrics.jsonl").exists() and len(read_rows(run_dir)) > 2, process)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, (out, err)
    assert err == ""
    assert "goes on" in out
    saved = [int(path.name) for path in (run_dir / "checkpoints").iterdir()]
    assert max(saved) == read_rows(run_dir)[-1]["num_updates"]
    assert podracer("evaluate", run_dir, "--episodes", 4).code == 0


def test_outside_xla_a_resumed_run_says_that_its_episodes_start_anew(podracer: Callable[..., Any], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert podracer(*RUN, "--env", "tiny_parts:OUTSIDE", "--steps", 300, "--run-dir", run_dir).code == 0
    result = podracer(*LAUNCH, "--resume", "--steps", 600, "--run-dir", run_dir)
    assert result.code == 0, result.err
    assert "its episodes start anew" in result.out
    assert _summary(run_dir)["num_agent_steps"] >= 600


def test_numbers_that_are_none_stop_the_run(podracer: Callable[..., Any], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    explode = ("--set", "agent.explode_after=8", "--set", "anakin.updates_per_call=2", "--set", "checkpoint_seconds=0")
    result = podracer(*RUN, *explode, "--steps", 5000, "--run-dir", run_dir)
    assert result.code == 1
    assert result.err.count("\n") == 1
    assert "not finite" in result.err
    assert "last good checkpoint is update 7" in result.err
    assert not (run_dir / "summary.json").exists()
    assert podracer("evaluate", run_dir, "--episodes", 4).code == 0


def test_without_ffmpeg_a_run_ends_well(podracer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # type: ignore[arg-type]
    run_dir = tmp_path / "run"
    result = podracer(*RUN, "--steps", 200, "--run-dir", run_dir)
    assert (result.code, result.err) == (0, "")
    assert "no ffmpeg, so no films: pip install 'imageio[ffmpeg]'" in result.out
    assert (run_dir / "summary.json").exists()
    film = podracer("evaluate", run_dir, "--video", tmp_path / "film.mp4")
    assert (film.code, film.err) == (2, "podracer: --video: no ffmpeg, so no films: pip install 'imageio[ffmpeg]'\n")
    assert "no ffmpeg" in podracer("doctor").out


def test_a_population_has_median_and_band(podracer: Callable[..., Any], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    result = podracer(*RUN, "--steps", 600, "--seeds", 3, "--seed", 5, "--run-dir", run_dir, "--set", "eval_episodes=8")
    assert result.code == 0, result.err
    summary = _summary(run_dir)
    assert [seed["seed"] for seed in summary["seeds"]] == [5, 6, 7]
    assert len({seed["params_sha256"] for seed in summary["seeds"]}) == 3
    means = [seed["eval_return_mean"] for seed in summary["seeds"]]
    assert summary["eval_return_median"] == np.median(means)
    low, high = summary["eval_return_band"]
    assert low <= summary["eval_return_median"] <= high
    assert summary["eval_episodes"] == 24
    assert summary["num_agent_steps"] >= 3 * 600
    assert (run_dir / "curve.png").stat().st_size > 1000
    assert "over 3 seeds: median" in result.out
    assert "seed 6: evaluation over 10 episodes" in podracer("evaluate", run_dir, "--episodes", 10).out


class _Runtime:
    """Every update takes 10 steps, of which the seeds lose some to resets; a call takes 10 ms."""

    class plan:
        steps_per_update, updates_per_call = 10, 0

    def __init__(self) -> None:
        self.now, self.calls = 0.0, []

    def run(self, state: int, num_updates: int) -> Any:
        self.calls.append(num_updates)
        self.now += 0.01 * num_updates
        return state + num_updates, {"agent_steps": np.array([9, 8]) * num_updates}


@pytest.mark.parametrize("per_call", [0, 1, 7, 1000])
def test_where_a_run_stops_does_not_depend_on_the_calls(per_call: int) -> None:
    runtime = _Runtime()
    runtime.plan.updates_per_call = per_call  # type: ignore[misc]
    seen = list(updates(runtime, 0, Counters(agent_steps=(0, 0)), 1000, clock=lambda: runtime.now))
    state, counters, _ = seen[-1]
    assert state == counters.num_updates == 125  # the slower seed needs 1000 / 8
    assert counters.agent_steps == (9 * 125, 8 * 125)
    assert [call.compiled for _, _, call in seen] == [True] + [False] * (len(seen) - 1)
    if per_call:
        assert all(n <= per_call for n in runtime.calls)


def test_counters_do_not_overflow() -> None:
    start = Counters(num_updates=2**40, agent_steps=(2**63, 2**63))
    runtime = _Runtime()
    _, counters, _ = next(updates(runtime, 0, start, 2**64, clock=lambda: runtime.now))
    assert counters.num_agent_steps == 2**64 + 17
    assert Counters.from_json(json.loads(json.dumps(counters.to_json()))) == counters
