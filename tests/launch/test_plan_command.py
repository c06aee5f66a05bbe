"""`podracer plan`: what it says of jobs on hardware that is not here."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from tiny_parts import TINY

from podracer.aot import compilers
from podracer.launch import job as jobs
from podracer.launch import plan as plans

PLAN = ("plan", "anakin", *TINY[:4])
needs_libtpu = pytest.mark.skipif(not compilers.installed("tpu"), reason="libtpu is missing: podracer plan install")
gpu_compiler = compilers.installed("gpu")
PARAMS = 4 * (3 * 2 + 2)  # bytes of the tiny agent's, which an update reduces


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "anakin", "--env", "catch", "--topology", "v5e-8"], "--agent is missing"),
        ([*PLAN, "--topology", "v5e-7"], "try v5e-8"),
        ([*PLAN, "--topology", "v5e-8", "--devices", "2"], "leave --devices and --hosts out"),
        ([*PLAN, "--topology", "v5e-8", "--budget", "9", "--steps", "9"], "give one of them"),
        ([*PLAN, "--topology", "v5e-8", "--efficiency", "0"], "0.0 is not in the range"),
        ([*PLAN, "--topology", "h100-8", "--set", "anakin.num_envs=12"], "does not divide over 8 devices: try 8 or 16"),
        (["plan", "sebulba", *TINY[:4], "--topology", "h100-8", "--devices", "2"], "--devices is for Anakin"),
    ],
)
def test_a_mistake_is_one_line(podracer: Callable[..., Any], arguments: list[str], message: str) -> None:
    result = podracer(*arguments)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert result.out == ""


def test_gpus_are_planned_without_one(podracer: Callable[..., Any]) -> None:
    price = ("--budget", "1e9", "--price-per-chip-hour", "2", "--efficiency", "0.5")
    result = podracer(*PLAN, "--topology", "h100-16", "--json", *price)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    plan, (program,) = found["plan"], found["programs"]
    # Two hosts of eight; what a preset or default gives one device, each has.
    assert (plan["num_hosts"], plan["num_devices"], plan["num_envs"]) == (2, 16, 16 * 64)
    assert plan["replay_length"] == 256 // 64
    assert plan["num_env_slots"] >= 1e9 / 4 > plan["num_env_slots"] - plan["steps_per_update"]
    assert program["most"]["collective_bytes"] == PARAMS
    assert {one["depth"] for one in program["messages"]} == {0, 1}
    assert sum(one["num_bytes"] for one in program["messages"] if one["depth"] == 1) >= PARAMS  # a GPU's are padded
    assert found["fits"] is (True if gpu_compiler else None)
    assert any("estimate" in note for note in found["notes"]) is not gpu_compiler
    seconds = max(program["bound"].values()) / 0.5
    assert found["estimate"]["seconds"] == pytest.approx(plan["num_updates"] * seconds)
    assert found["estimate"]["cost"] == pytest.approx(plan["num_updates"] * seconds / 3600 * 16 * 2)


def test_the_report_of_sebulba(podracer: Callable[..., Any]) -> None:
    result = podracer("plan", "sebulba", *TINY, "--topology", "h100-4", "--learner-devices", "2")
    assert result.code == 0, result.err
    for text in ("an actor's step", "an update", "num_devices = 2", "once an update", "are not counted"):
        assert text in result.out
    assert ("ESTIMATED" in result.out) is not gpu_compiler


def test_what_does_not_fit_is_said_with_what_does(podracer: Callable[..., Any]) -> None:
    replay = ("--set", "agent.unroll_length=100", "--set", f"agent.replay_capacity={2**25}")
    result = podracer(*PLAN, "--topology", "h100-1", "--json", *replay)
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "out of memory: a device needs" in result.err
    assert "the nearest halving that fits: --set agent.replay_capacity=" in result.err
    assert json.loads(result.out)["fits"] is False
    capacity = int(result.err.rsplit("=", 1)[1])
    unroll = json.loads(result.out)["arrays"]["replay"] / 2**25
    assert capacity * unroll < 80e9 < 4.2 * capacity * unroll


def test_this_host(podracer: Callable[..., Any]) -> None:
    result = podracer(*PLAN, "--devices", "2", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["plan"]["num_devices"] == 2
    assert found["plan"]["num_envs"] == 64
    assert found["topology"]["chip"]["platform"] == "cpu"
    assert found["fits"] is True
    assert found["estimate"] == {}


def test_a_compiler_that_crashes_leaves_the_rest_of_the_plan(
    podracer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = subprocess.run

    def crashing(*arguments: Any, **options: Any) -> Any:
        if json.loads(options["input"])["compiles"]:
            return subprocess.CompletedProcess(arguments, -11, "", "")
        return run(*arguments, **options)

    monkeypatch.setattr(plans.subprocess, "run", crashing)
    result = podracer(*PLAN, "--topology", "h100-1")
    assert result.code == 0, result.err
    assert "the compiler crashed, so memory is of arrays alone: SIGSEGV" in result.out
    assert "not compiled" in result.out


class _Fits:
    """Answers as if `key` fitted up to `most`."""

    def __init__(self, key: str, most: int):
        self.key, self.most, self.asked = key, most, []

    def once(self, job: Any) -> Any:
        from podracer.config import keys
        from podracer.launch.analyze import Analysis, Program

        value = keys(job)[self.key]
        self.asked.append(value)
        refused = (2.0, 1.0) if value > self.most else None
        return Analysis(programs=(Program("updates", 1, {}, {}, {}, None, refused=refused),))


@pytest.mark.parametrize(("most", "excess"), [(2048, 3.0), (64, 1.1), (300, 40.0), (1, 2.0), (4095, 1e9)])
def test_the_search_finds_the_largest_halving_that_fits(most: int, excess: float) -> None:
    job, _ = jobs.new_job(jobs.Request(runtime="anakin", agent="impala", env="catch"))
    ladder = [{"anakin.num_envs": 4096 // 2**k} for k in range(1, 13)]
    asker = _Fits("anakin.num_envs", most)
    search = plans._Search(job, asker, excess)  # type: ignore[arg-type]
    found = search.nearest([ladder])
    best = max(rung["anakin.num_envs"] for rung in ladder if rung["anakin.num_envs"] <= most)
    assert found == {"anakin.num_envs": best}
    assert search.proven
    assert len(asker.asked) == search.tries <= plans._MOST_TRIES


@needs_libtpu
def test_a_pod_is_compiled_for_without_a_tpu(podracer: Callable[..., Any]) -> None:
    result = podracer(*PLAN, "--topology", "v5e-256", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    (program,) = found["programs"]
    assert (found["plan"]["num_hosts"], found["plan"]["num_devices"]) == (64, 256)
    assert found["fits"] is True
    assert program["compiled"]["arguments"] > 0
    assert sum(one["num_bytes"] for one in program["messages"] if one["depth"] == 1) == PARAMS
    assert program["most"]["collective_bytes"] == PARAMS
    assert not any("libtpu is not installed" in note for note in found["notes"])


@needs_libtpu
@pytest.mark.slow
def test_out_of_memory_on_a_tpu_is_xlas_own_word(podracer: Callable[..., Any]) -> None:
    result = podracer(*PLAN, "--topology", "v5e-1", "--set", f"agent.replay_capacity={2**30}", "--set", "anakin.num_envs=64")
    assert result.code == 2
    assert "and has 16.9 GB; the nearest halving that fits: --set agent.replay_capacity=" in result.err
    assert "DOES NOT FIT" in result.out


@needs_libtpu
@pytest.mark.slow
def test_pong_on_a_pod_is_answered_within_five_minutes(podracer: Callable[..., Any]) -> None:
    """The real program, once with what nobody caches."""
    import time

    started = time.monotonic()
    result = podracer("plan", "anakin", "--agent", "muesli", "--env", "atari_jax/pong", "--topology", "v5e-256")
    assert result.code == 0, result.err
    assert time.monotonic() - started < 300
    for text in ("v5e-256: 256 TPU v5e of 16x16, 64 hosts", "as XLA lays it out", "agent steps/s", "in loops of an update"):
        assert text in result.out
