"""Jobs on many hosts, with real processes and real kills: they end as if nothing had happened, and leave nothing behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import xla

from podracer.launch import job as jobs
from podracer.launch.cluster import record
from podracer.launch.cluster.gang import Gang, GaveUp, Policy, actor_command, learner_command
from podracer.launch.cluster.places import LocalSeat, NoRoom, Places
from podracer.launch.signals import Stopped, StopRequests

HERE = Path(__file__).parent

WAIT_S = 150


def processes_of(folder):
    """Processes that belong to a run, by what is in their environment or their command."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
            state = (path / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if str(folder).encode() in words and state != "Z" and int(path.name) != os.getpid():
            found.append(int(path.name))
    return found


def wait_for(condition, what):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def num_saved(run_dir):
    return sum(path.name.isdecimal() for path in (run_dir / "checkpoints").glob("*"))


class Here(Places):
    """All seats on this machine, without Ray."""

    def seats(self, count):
        return [LocalSeat(str(HERE)) for _ in range(count)]

    def spare(self):
        return LocalSeat(str(HERE))

    def close(self):
        pass


class Crowded(Here):
    """This machine, where hosts for learners must be waited for, and one for actors never comes."""

    refused = 0

    def seats(self, count):
        self.refused += 1
        if self.refused < 4:
            raise NoRoom("the cluster is full")
        return super().seats(count)

    def spare(self):
        seat = super().spare()
        seat.ready = lambda: False
        return seat


class Job:
    """A job of tiny parts on two simulated hosts, without Ray."""

    def __init__(self, run_dir, runtime="anakin", settings=(), steps=64_000, policy=None, places=None):
        monkey = ["anakin.num_envs=8", "eval_episodes=4", "checkpoint_seconds=0.3", "anakin.updates_per_call=20", *settings]
        request = jobs.Request(
            runtime=runtime, agent="tiny_parts:TinyAgent", env="tiny_parts:SUITE", steps=steps, hosts=2, settings=monkey
        )
        job, preset = jobs.new_job(request)
        run_dir.mkdir()
        jobs.save_job(run_dir, job, preset)
        self.run_dir, self.said = run_dir, []
        self.requests = StopRequests()
        listens = runtime == "sebulba" and job.sebulba.store == "reverb"
        self.gang = Gang(
            places or Here(),
            policy or Policy(2, least_actors=2 * listens, most_actors=2 * listens, pause_seconds=0.1),
            run_dir,
            learner_command(runtime, run_dir, listens),
            actor_command(1) if listens else None,
            self.requests,
            say=self.said.append,
        )

    def run(self, meanwhile=None):
        """The gang's exit code; `meanwhile` runs in a thread, and what it raises is raised."""
        failures = []

        def act():
            try:
                meanwhile()
            except BaseException as error:
                failures.append(error)
                record.request_stop(self.run_dir)

        thread = threading.Thread(target=act if meanwhile else lambda: None)
        thread.start()
        try:
            return self.gang.run()
        finally:
            thread.join()
            if failures:
                raise failures[0]
            wait_for(lambda: not processes_of(self.run_dir), "processes are left")

    def pid(self, name):
        wait_for(lambda: name in self.state().get("processes", {}), f"{name} is not there: {self.said}")
        return self.state()["processes"][name]["pid"]

    def state(self):
        return record.read(self.run_dir) or {}

    def summary(self):
        return json.loads((self.run_dir / "summary.json").read_text())


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.chdir(HERE)
    monkeypatch.setenv("XLA_FLAGS", xla.flags())  # of the processes that are started
    monkeypatch.setattr("podracer.launch.cluster.gang._TELL_SECONDS", 0.2)


def test_a_killed_and_a_preempted_learner_change_nothing_of_the_result(tmp_path):
    calm = Job(tmp_path / "calm")
    assert calm.run() == 0
    job = Job(tmp_path / "run")

    def disturb():
        wait_for(lambda: num_saved(job.run_dir), "nothing is saved")
        os.kill(job.pid("learner-1"), signal.SIGKILL)
        wait_for(lambda: job.state().get("generation") == 2, "it does not start again")
        wait_for(lambda: (job.run_dir / "cluster" / "progress-0").exists(), "it does not go on")
        os.kill(job.pid("learner-0"), signal.SIGTERM)

    assert job.run(disturb) == 0
    killed, preempted = [entry["reason"] for entry in job.state()["restarts"]]
    assert killed == "learner 1 ended (SIGKILL)"
    assert "preemption" in preempted
    assert job.state()["state"] == "done"
    for name in ("params_sha256", "num_agent_steps", "num_updates"):
        assert job.summary()[name] == calm.summary()[name], name


@pytest.mark.slow
def test_a_learner_that_is_stuck_is_noticed(tmp_path):
    job = Job(tmp_path / "run", policy=Policy(2, stuck_seconds=5.0, pause_seconds=0.1))

    def disturb():
        wait_for(lambda: (job.run_dir / "cluster" / "progress-0").exists(), "it does not begin")
        os.kill(job.pid("learner-0"), signal.SIGSTOP)

    assert job.run(disturb) == 0
    (restart,) = job.state()["restarts"]
    assert "stuck" in restart["reason"]


@pytest.mark.slow
def test_killed_actors_come_back_alone(tmp_path, reverb_installed):
    # The evaluation is long: actors that the learners have sent away by then do not come back.
    settings = ["sebulba.store=reverb", "sebulba.threads=0", "agent.replay_share=0", "eval_episodes=20000"]
    job = Job(tmp_path / "run", "sebulba", settings, steps=40_000)

    def disturb():
        for name in ("actor-0", "actor-1"):
            pid = job.pid(name)
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda name=name, pid=pid: job.pid(name) != pid, f"{name} does not come back")

    assert job.run(disturb) == 0
    assert [entry["what"] for entry in job.state()["restarts"]] == ["actor-0", "actor-1"]
    assert job.state()["generation"] == 1
    assert job.summary()["num_agent_steps"] >= 40_000


@pytest.mark.slow
def test_learners_wait_for_hosts_and_go_on_while_actors_wait(tmp_path, reverb_installed):
    settings = ["sebulba.store=reverb", "sebulba.threads=1", "agent.replay_share=0"]
    policy = Policy(2, least_actors=1, most_actors=1, pause_seconds=0.1, max_failures=1)
    job = Job(tmp_path / "run", "sebulba", settings, steps=4_000, policy=policy, places=Crowded())
    assert job.run() == 0
    assert job.state()["restarts"] == []
    assert job.said.count("podracer: waiting for hosts: the cluster is full") == 1
    assert not (job.run_dir / "cluster" / "actor-0.log").exists()


def test_actors_follow_the_need_within_their_bounds(tmp_path, monkeypatch):
    monkeypatch.setattr("podracer.launch.cluster.gang._SCALE_SECONDS", 0.0)
    waited = 0.5
    job = Job(tmp_path / "run")
    gang = Gang(
        Here(),
        Policy(2, least_actors=1, most_actors=3),
        job.run_dir,
        learner_command("sebulba", job.run_dir, True),
        actor_command(1),
        job.requests,
        waits=lambda: waited,
    )
    counts = []
    for now in (0.5, 0.5, 0.5, 0.1, 0.0, 0.0, 0.0, None):
        waited = now
        gang._scale()
        counts.append(len(gang._actors))
    assert counts == [2, 3, 3, 3, 2, 1, 1, 1]


def test_what_can_never_be_is_not_tried_again(tmp_path, capfd):
    job = Job(tmp_path / "run", settings=["agent.unroll_length=101"])
    assert job.run() == 2
    assert "unroll_length above 100 is too long" in capfd.readouterr().err
    assert job.state()["restarts"] == []


@pytest.mark.slow
def test_a_job_that_always_fails_is_given_up_with_its_reason(tmp_path):
    policy = Policy(2, max_failures=1, pause_seconds=0.1)
    job = Job(tmp_path / "run", settings=["agent.explode_after=5", "checkpoint_seconds=1000"], policy=policy)
    with pytest.raises(GaveUp, match=r"2 generations failed .*not finite"):
        job.run()
    assert job.state()["state"] == "failed"


def test_a_request_to_stop_saves(tmp_path):
    job = Job(tmp_path / "run", steps=10**9)

    def ask():
        job.pid("learner-1")
        wait_for(lambda: (job.run_dir / "cluster" / "progress-0").exists(), "it does not begin")
        record.request_stop(job.run_dir)

    with pytest.raises(Stopped):
        job.run(ask)
    assert job.state()["state"] == "stopped"
    assert num_saved(job.run_dir)
    assert any("saved" in line for line in job.said)


def test_nothing_outlives_a_launcher_that_is_killed(tmp_path):
    run_dir = tmp_path / "run"
    code = f"import test_cluster; from pathlib import Path; test_cluster.Job(Path({str(run_dir)!r}), steps=10**9).run()"
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=HERE, env={**os.environ, "PYTHONPATH": path})
    try:
        wait_for(lambda: (run_dir / "cluster" / "progress-1").exists(), "it does not begin")
        assert len(processes_of(run_dir)) >= 3
    finally:
        launcher.kill()
        launcher.wait()
    wait_for(lambda: not processes_of(run_dir), "processes outlive their launcher")
