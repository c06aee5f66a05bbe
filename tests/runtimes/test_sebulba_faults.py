"""Faults under the whole of Sebulba: environments' processes that die and hang, a slow learner, Ctrl-C while it compiles."""

import functools
import itertools
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import psutil
import pytest
import worker_environments
from dm_env import specs

from podracer import registry, types
from podracer.launch import job as jobs
from podracer.processes import ProcessEnvironment
from podracer.runtimes.sebulba.runtime import Sebulba
from podracer.types import EnvironmentSpec

NUM_ENVS, UNROLL = 4, 5
SETTINGS = (
    f"anakin.num_envs={NUM_ENVS}",
    f"agent.unroll_length={UNROLL}",
    "agent.torso.hidden=(16,)",
    "agent.core.size=8",
    "sebulba.actor_devices=1",
    "sebulba.learner_devices=1",
)
SPEC = EnvironmentSpec(name="walk", observation=specs.Array((3,), np.float32), action=specs.DiscreteArray(2))


class Watched(ProcessEnvironment):
    """Remembers its pools and their processes."""

    def __init__(self, hangs=""):
        super().__init__(SPEC, functools.partial(worker_environments.Walk, hangs=str(hangs)), num_workers=2)
        self.pools, self.processes = [], []

    def host(self, num_envs, seed, first_env=0):
        pool = super().host(num_envs, seed, first_env)
        self.pools.append(pool)
        self.processes += [psutil.Process(process.popen.pid) for process in pool._workers]
        return pool


class Recording(Sebulba):
    """Keeps the time steps and counts of all unrolls that are learned from; calls `at_update` before each."""

    def __init__(self, *args):
        super().__init__(*args)
        self.learned, self.at_update = [], lambda number: None
        self._taken, self._get, self._learn = None, self._handover.get, self._program
        self._handover.get, self._program = self._recorded_get, self._recorded_program

    def _recorded_get(self, timeout):
        found = self._get(timeout)
        self._taken = found and found[1]
        return found

    def _recorded_program(self, state, trajectory, *args):
        self.at_update(len(self.learned))
        assert trajectory is self._taken.trajectory
        self.learned.append((self._taken.actor, jax.device_get(trajectory.timestep), self._taken.counts))
        return self._learn(state, trajectory, *args)


def build(environment, *settings):
    request = jobs.Request("sebulba", "impala", "catch", settings=(*SETTINGS, *settings), devices=1)
    job, _ = jobs.new_job(request)
    plan = jobs.build(job).plan
    return Recording(registry.agent_class("impala")(environment.spec, job.agent), environment, plan)


def check_counts(learned, metrics):
    """No step is missing within an unroll, none is there twice, and all that were learned from are counted once."""
    expected = {"agent_steps": 0, "episodes": 0}
    for _, steps, counts in learned:
        kind, (number, count, life) = steps.step_type, np.moveaxis(steps.observation, -1, 0)
        assert (number == number[0]).all()
        assert (np.diff(life, axis=0) == 1).all()
        np.testing.assert_array_equal(count, life % 10)
        np.testing.assert_array_equal(kind == types.FIRST, count == 0)
        np.testing.assert_array_equal(kind == types.LAST, count == 9)
        assert counts["agent_steps"] == (kind[1:] != types.FIRST).sum()
        assert counts["episode_return"] == counts["episode_length"] == 9 * counts["episodes"]
        expected["agent_steps"] += int(counts["agent_steps"])
        expected["episodes"] += int((kind[1:] == types.LAST).sum())
    for name, value in expected.items():
        assert sum(call[name][0] for call in metrics) == value


def lives(learned):
    """How many actors these unrolls are of, restarted ones counted anew, and how many unrolls are missing between them."""
    num, num_missing, ends = 0, 0, {}
    for actor, steps, _ in learned:
        life = steps.observation[..., 2]
        if actor not in ends or life[0, 0] < ends[actor]:
            ends[actor], num = 0, num + 1
        missing, rest = divmod(int(life[0, 0]) - ends[actor], UNROLL)
        assert rest == 0
        num_missing += missing
        ends[actor] = int(life[-1, 0])
    return num, num_missing


def run(runtime, *calls, enough=lambda: True):
    """Metrics of these calls, and then of as many of 10 updates as it takes until `enough()`."""
    state, metrics, until = runtime.init(), [], time.monotonic() + 120
    for num_updates in itertools.chain(calls, itertools.repeat(10)):
        if len(metrics) >= len(calls) and enough():
            break
        assert time.monotonic() < until
        state, call = runtime.run(state, num_updates)
        metrics.append(call)
        assert call["updates"][0] == num_updates
    assert int(state.num_updates) == len(runtime.learned) == sum(call["updates"][0] for call in metrics)
    assert bool(metrics[-1]["finite"][0])
    return metrics


def assert_ended(processes):
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_a_killed_environment_costs_one_unroll(capfd):
    environment = Watched()
    runtime = build(environment, "sebulba.threads=2", "sebulba.max_lag=8")
    runtime.at_update = lambda number: number == 12 and environment.processes[1].kill()
    try:
        # The other actor goes on alone, until the new one's processes have started.
        metrics = run(runtime, 1, 29, enough=lambda: lives(runtime.learned)[0] == 3)
    finally:
        runtime.close()
    assert metrics[-1]["restarts"][0] == 1
    assert lives(runtime.learned)[1] <= metrics[-1]["stale"][0]  # a new actor may be slow to deliver its first
    check_counts(runtime.learned, metrics)
    assert "killed by signal 9: its unroll is discarded" in capfd.readouterr().err
    assert len(environment.processes) == 6
    assert_ended(environment.processes)


def test_an_environment_that_hangs_is_replaced(tmp_path, capfd):
    hangs = tmp_path / "hangs"
    hangs.touch()
    environment = Watched(hangs)
    timeout = 5  # also of the start of its processes
    runtime = build(environment, "sebulba.threads=1", f"sebulba.env_timeout={timeout}")
    try:
        metrics = run(runtime, 1, 25)
    finally:
        runtime.close()
    assert not hangs.exists()
    assert metrics[-1]["restarts"][0] >= 1
    assert lives(runtime.learned) == (2, 0)
    check_counts(runtime.learned, metrics)
    assert f"environment 1 took longer than {timeout} s" in capfd.readouterr().err
    assert_ended(environment.processes)


def test_actors_wait_for_a_slow_learner_and_nothing_is_lost():
    environment = registry.env("catch").make()
    runtime = build(environment, "sebulba.threads=1", "sebulba.max_lag=3")
    fast, begun = runtime._program, []
    runtime._program = lambda *args: (time.sleep(0.15), fast(*args))[1]
    begin = runtime._handover.begin
    runtime._handover.begin = lambda *args: begun.append(0) or begin(*args)
    state, _ = runtime.run(runtime.init(), 1)
    state, metrics = runtime.run(state, 20)
    assert len(begun) <= 21 + 3 + 2  # it begins no more than may be under way, and waits for the next
    assert (metrics["stale"][0], metrics["lag_max"][0], metrics["queue"][0] > 1.5) == (0, 3, True)
    assert metrics["actor_queue"][0] > 0.5
    assert metrics["learner_wait"][0] < 0.3
    for (_, before, _), (_, after, _) in zip(runtime.learned, runtime.learned[1:], strict=False):
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[-1], y[0]), before, after)
    asked = time.monotonic() + 0.5
    runtime.should_stop = lambda: time.monotonic() > asked
    state, metrics = runtime.run(state, 10**6)
    assert 0 < metrics["updates"][0] < 10
    runtime.close()
    assert time.monotonic() - asked < 3


def test_ctrl_c_while_it_compiles_ends_it_in_time(tmp_path):
    command = [sys.executable, "-m", "podracer.launch.cli", "launch", "sebulba", "--agent", "muesli", "--env", "catch"]
    surroundings = {**os.environ, "PODRACER_CACHE_DIR": str(tmp_path / "cache"), "PYTHONUNBUFFERED": "1"}
    surroundings.pop("JAX_COMPILATION_CACHE_DIR", None)
    process = subprocess.Popen(
        [*command, "--actor-devices", "1", "--learner-devices", "1", "--run-dir", str(tmp_path / "run")],
        env=surroundings,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        seen = ""
        while "compiling" not in seen:
            line = process.stdout.readline()
            assert line, process.communicate()
            seen += line
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        out, err = process.communicate(timeout=30)
        assert time.monotonic() - sent < 10
        assert (process.returncode, err) == (130, "")
        assert out == "stopped by SIGINT before the first update\n"
    finally:
        process.kill()


@pytest.mark.parametrize("name", ["gymnasium/CartPole-v1"])
def test_a_library_s_environment_is_killed_twice(name, capfd):
    environment = registry.env(name).make()
    pools, host = [], environment.host
    environment.host = lambda *args: pools.append(host(*args)) or pools[-1]
    runtime = build(environment, "sebulba.threads=1")
    processes = []

    def kill(number):
        if number in (5, 10):
            processes.extend(psutil.Process(process.popen.pid) for process in pools[-1]._workers)
            processes[-1].kill()

    runtime.at_update = kill
    try:
        metrics = run(runtime, 20)
        assert metrics[-1]["restarts"][0] == 2
        steps = sum((timestep.step_type[1:] != types.FIRST).sum() for _, timestep, _ in runtime.learned)
        assert metrics[-1]["agent_steps"][0] == steps
    finally:
        runtime.close()
    assert capfd.readouterr().err.count("gymnasium/CartPole-v1: environment") == 2
    assert_ended(processes)
