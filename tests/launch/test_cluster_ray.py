"""Through Ray: the commands of many hosts as a user types them, on simulated hosts of this machine."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import xla
from test_cluster import num_saved, processes_of, wait_for

from podracer.launch.cluster.places import SeatLost
from podracer.launch.cluster.processes import free_port
from podracer.launch.cluster.ray_places import OnRay

HERE = Path(__file__).parent

pytest.importorskip("ray", reason="Ray is missing: pip install 'podracer-rl[ray]'")

DOCS = Path(__file__).parents[2] / "docs"
TINY = [
    "--agent",
    "tiny_parts:TinyAgent",
    "--env",
    "tiny_parts:SUITE",
    "--set",
    "anakin.num_envs=8",
    "--set",
    "eval_episodes=4",
]


def command(*words):
    return [sys.executable, "-m", "podracer.launch.cli", *map(str, words)]


@pytest.fixture
def start():
    """`start(words)` runs the command line as a process that ends with the test."""
    started = []
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "XLA_FLAGS": xla.flags()}

    def run(*words, **more):
        env = {**environment, **more}
        process = subprocess.Popen(
            command(*words), cwd=HERE, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


def state(run_dir):
    with contextlib.suppress(FileNotFoundError, ValueError):
        return json.loads((run_dir / "cluster" / "state.json").read_text())
    return {}


def test_seats_are_hosts_and_what_they_hold_dies_with_them(tmp_path):
    places = OnRay(None, 2, {"CPU": 1}, str(tmp_path))
    try:
        first, second = places.seats(2)
        assert first.node != second.node
        first.start("echo", ["/bin/sh", "-c", "echo $WORD; exit 3"], {"WORD": "hello"})
        wait_for(lambda: first.report("echo").code == 3, "it does not end")
        assert first.report("echo").tail == ("hello",)
        second.start("sleep", ["/bin/sleep", "1000"], {})
        pid = second.report("sleep").pid
        psutil.Process(pid).parent().kill()
        with pytest.raises(SeatLost, match="is lost"):
            wait_for(lambda: second.report("sleep").code is not None, "nobody notices")
        wait_for(lambda: not psutil.pid_exists(pid), "a process outlives its Ray actor")
        first.close()
        assert len(places.seats(2)) == 2
    finally:
        places.close()


@pytest.mark.slow
def test_a_job_on_two_hosts_survives_the_loss_of_one(start, podracer, tmp_path, reverb_installed):
    run_dir = tmp_path / "run"
    more = ["--set", "agent.replay_share=0", "--set", "checkpoint_seconds=0.5", "--steps", 60_000, "--hosts", 2]
    launcher = start("launch", "sebulba", *TINY, *more, "--run-dir", run_dir)
    wait_for(lambda: num_saved(run_dir) and "learner-1" in state(run_dir).get("processes", {}), "nothing is saved")
    agent = psutil.Process(state(run_dir)["processes"]["learner-1"]["pid"]).parent()
    told = podracer("status", run_dir)
    assert told.code == 0
    assert "running, generation 1" in told.out
    assert "actor-1" in told.out
    agent.parent().kill()  # the raylet: a whole simulated host
    output = launcher.communicate(timeout=240)[0]
    assert launcher.returncode == 0, output
    assert state(run_dir)["generation"] >= 2
    assert "resumed after update" in output
    assert json.loads((run_dir / "summary.json").read_text())["num_agent_steps"] >= 60_000
    assert "learner-1: " in podracer("logs", run_dir).out
    assert "no run that goes on (done)" in podracer("stop", run_dir).err
    wait_for(lambda: not processes_of(run_dir), "processes are left")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["launch", "anakin", *TINY, "--hosts", 3], "does not divide over 3 devices of 3 hosts: try 6 or 9"),
        (["launch", "anakin", *TINY, "--hosts", 2, "--actors", 2], "--actors is for Sebulba"),
        (["launch", "sebulba", *TINY, "--hosts", 2, "--learner-devices", 1, "--actors", "3:1"], "write a number, or MIN:MAX"),
        (["launch", "anakin", *TINY, "--hosts", 2, "--host-resources", "CPU"], "write NAME=NUMBER"),
        (["submit", "--ray-address", "http://127.0.0.1:1", "--", "envs"], "runs podracer launch, not envs"),
        (["submit", "--ray-address", "http://127.0.0.1:1", "--", "launch", "anakin"], "say --run-dir"),
        (["sweep", "--sweep-dir", "x", "--grid", "agent.learning_rate", "--", "anakin"], "write KEY=VALUE"),
        (["sweep", "--sweep-dir", "x", "--sample", "seed=normal(0,1)", "--", "anakin"], "where F is uniform"),
        (["sweep", "--sweep-dir", "x", "--", "anakin", "--run-dir", "y"], "a folder of its own"),
        (["sweep", "--sweep-dir", "x", "--", "anakin", "--agent", "impala"], "--env is missing"),
        (["status", "nowhere"], "holds no run on several hosts"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(podracer, tmp_path, words, said):
    more = ["--run-dir", tmp_path / "run"] if words[0] == "launch" else []
    result = podracer(*words, *more)
    assert result.code == 2
    assert said in result.err
    assert result.err.count("\n") == 1


@pytest.mark.slow
def test_a_sweep_runs_every_point_once_and_goes_on(start, tmp_path):
    words = ["sweep", "--sweep-dir", tmp_path, "--grid", "agent.learning_rate=0.05,0.0", "--", "anakin", *TINY, "--steps", 6400]
    for _ in range(2):
        sweep = start(*words)
        output = sweep.communicate(timeout=240)[0]
        assert sweep.returncode == 0, output
        rows = json.loads((tmp_path / "sweep.json").read_text())["runs"]
        assert sorted(row["settings"]["agent.learning_rate"] for row in rows) == [0.0, 0.05]
        assert rows[0]["eval_return_mean"] >= rows[1]["eval_return_mean"]
    other = start(*words[:4], "agent.learning_rate=0.1", *words[5:])
    assert "holds another sweep" in other.communicate(timeout=60)[0]


def _listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_a_submitted_job_runs_on_the_cluster(start, tmp_path):
    run_dir = tmp_path / "run"
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}
    ray, port = Path(sys.executable).with_name("ray"), free_port("127.0.0.1")
    words = [
        ray,
        "start",
        "--head",
        "--block",
        "--port=0",
        f"--dashboard-port={port}",
        "--num-cpus=4",
        "--node-ip-address=127.0.0.1",
    ]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where a job finds podracer
    environment = {**os.environ, **token, "PATH": path, "XLA_FLAGS": xla.flags()}
    head = subprocess.Popen([*map(str, words)], env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(lambda: _listens(port), "the dashboard does not listen")
        url = f"http://127.0.0.1:{port}"
        job = ["launch", "anakin", *TINY, "--steps", 640, "--hosts", 1, "--run-dir", run_dir]
        output = start("submit", "--ray-address", url, "--working-dir", HERE, "--", *job, **token).communicate(timeout=240)[0]
        assert (run_dir / "summary.json").exists(), output
        refused = start("submit", "--ray-address", url, "--", *job, **{**token, "RAY_AUTH_TOKEN": "0" * 64})
        assert refused.wait(timeout=60) == 2
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGTERM)
        time.sleep(2.0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def test_the_clusters_of_the_docs_fit_their_schemas():
    import jsonschema
    import ray
    import yaml

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(yaml.safe_load((DOCS / "clusters" / "gcp-tpu.yaml").read_text()), schema)
    cluster = yaml.safe_load((DOCS / "clusters" / "kuberay.yaml").read_text())
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert cluster["spec"]["rayVersion"] == ray.__version__
    for group in [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]:
        assert isinstance(group["rayStartParams"], dict)
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in group["template"]["spec"]["volumes"]}
