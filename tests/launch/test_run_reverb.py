"""Runs whose unrolls go through Reverb, from the command line: with actors of other processes, and without any."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_parts import TINY

RUN = ("launch", "sebulba", *TINY, "--actor-devices", 1, "--learner-devices", 1, "--store", "reverb")


def test_actors_of_another_process_feed_a_learner(reverb_installed: None, start: Callable[..., Any], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    learner = start(*RUN, "--set", "sebulba.threads=0", "--steps", 3000, "--run-dir", run_dir)
    line = ""
    while "podracer actor --connect" not in line:
        line = learner.stdout.readline()
        assert line, learner.communicate()
    address = line.split()[-1]
    actor = start("actor", "--connect", address, "--number", 0, "--threads", 1)
    out, err = learner.communicate(timeout=240)
    assert learner.returncode == 0, err
    assert "evaluation over" in out
    out, err = actor.communicate(timeout=60)
    assert (actor.returncode, err) == (0, "")
    assert re.search(r"joined \S+: tiny_parts:\w+ on \S+, actor 0, \d+ environments each", out), out
    assert out.endswith("ended: the run is over\n")
    assert json.loads((run_dir / "summary.json").read_text())["num_agent_steps"] >= 3000


def test_a_run_goes_on_with_the_replay_it_had(reverb_installed: None, podracer: Callable[..., Any], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    replay = ("--set", "agent.replay_share=0.5", "--set", "agent.replay_capacity=1000")
    small = ("--set", "agent.model_steps=1", "--set", "agent.num_q_samples=0", "--set", "agent.num_kl_samples=0")
    result = podracer(*RUN, "--agent", "muesli", "--env", "catch", *replay, *small, "--steps", 1500, "--run-dir", run_dir)
    assert result.code == 0, result.err
    assert any((run_dir / "reverb").iterdir())
    result = podracer("launch", "sebulba", "--resume", "--steps", 2500, "--run-dir", run_dir)
    assert result.code == 0, result.err
    assert "resumed after update" in result.out


def test_an_actor_without_a_learner_says_so(podracer: Callable[..., Any]) -> None:
    started = time.monotonic()
    result = podracer("actor", "--connect", "127.0.0.1:1", "--reconnect-s", 1)
    assert time.monotonic() - started < 20
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "no Reverb server answers at 127.0.0.1:1" in result.err


def test_flags_of_the_store_are_checked(podracer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for flags, message in (
        (("--listen", "8000"), "write HOST:PORT"),
        (("--listen", "127.0.0.1:99999"), "write HOST:PORT"),
        (("--store", "redis"), "'redis' is not one of"),
        (("--set", "sebulba.patience=0"), "sebulba.patience must be positive"),
    ):
        result = podracer(*RUN, *flags)
        assert (result.code, result.err.count("\n")) == (2, 1), result
        assert message in result.err
    monkeypatch.setenv("PODRACER_REVERB_ENV", str(tmp_path))
    result = podracer(*RUN, "--steps", 100, "--run-dir", tmp_path / "run")
    assert (result.code, result.err.count("\n")) == (2, 1), result
    assert "podracer reverb install" in result.err
