"""Several processes that execute one job together, as a launcher starts them: the same answer, one writer, one end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xla

from podracer import hosts
from podracer.config import ConfigError

HERE = Path(__file__).parent

TINY = ["--agent", "tiny_parts:TinyAgent", "--env", "tiny_parts:SUITE", "--set", "anakin.num_envs=8"]
WAIT_S = 120


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start_hosts(tmp_path):
    """`start_hosts(arguments, num=2)` starts the processes of one job and returns them; none outlives the test."""
    started = []

    def start(arguments, num=2, generation=1, devices=1):
        coordinator = f"127.0.0.1:{free_port()}"
        group = []
        for index in range(num):
            environment = {
                **os.environ,
                "PYTHONUNBUFFERED": "1",
                "XLA_FLAGS": xla.flags(devices),
                "PODRACER_HOSTS": str(num),
                "PODRACER_HOST": str(index),
                "PODRACER_COORDINATOR": coordinator,
                "PODRACER_GENERATION": str(generation),
                "PODRACER_PROGRESS": str(tmp_path / f"progress-{index}"),
            }
            command = [sys.executable, "-m", "podracer.launch.cli", "launch", *map(str, arguments)]
            group.append(
                subprocess.Popen(
                    command, cwd=HERE, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
            )
        started.extend(group)
        return group

    yield start
    for process in started:
        process.kill()
        process.wait()


def finish(group):
    """Exit codes and outputs."""
    outputs = [process.communicate(timeout=WAIT_S)[0] for process in group]
    return [process.returncode for process in group], outputs


def summary(run_dir):
    return json.loads((run_dir / "summary.json").read_text())


def wait_for(condition, group):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert all(process.poll() is None for process in group), [process.communicate()[0] for process in group]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_hosts_learn_what_two_devices_of_one_host_do(start_hosts, tmp_path):
    common = ["anakin", *TINY, "--steps", 640, "--set", "eval_episodes=4"]
    codes, outputs = finish(start_hosts([*common, "--run-dir", tmp_path / "two"]))
    assert codes == [0, 0], outputs
    codes, outputs = finish(start_hosts([*common, "--devices", 2, "--run-dir", tmp_path / "one"], num=1, devices=2))
    assert codes == [0], outputs
    one, two = summary(tmp_path / "one"), summary(tmp_path / "two")
    for name in ("params_sha256", "num_agent_steps", "num_updates", "eval_return_mean"):
        assert two[name] == one[name], name


def test_lockstep_actors_of_two_hosts_collect_what_one_does(start_hosts, tmp_path):
    common = ["sebulba", *TINY, "--steps", 320, "--set", "sebulba.sync=true", "--set", "eval_episodes=4"]
    codes, outputs = finish(start_hosts([*common, "--run-dir", tmp_path / "two"]))
    assert codes == [0, 0], outputs
    alone = [*common, "--actor-devices", 1, "--learner-devices", 2, "--run-dir", tmp_path / "one"]
    codes, outputs = finish(start_hosts(alone, num=1, devices=3))
    assert codes == [0], outputs
    one, two = summary(tmp_path / "one"), summary(tmp_path / "two")
    for name in ("params_sha256", "num_agent_steps", "num_updates"):
        assert two[name] == one[name], name


def test_a_request_to_any_host_saves_and_ends_all_and_one_host_goes_on(start_hosts, tmp_path):
    run_dir = tmp_path / "run"
    arguments = ["anakin", *TINY, "--steps", 10**9, "--set", "anakin.updates_per_call=50", "--run-dir", run_dir]
    group = start_hosts(arguments)
    wait_for(lambda: (tmp_path / "progress-1").exists(), group)
    group[1].send_signal(signal.SIGTERM)
    codes, outputs = finish(group)
    assert codes == [0, 0], outputs
    assert "saved" in outputs[0]
    assert not (run_dir / "summary.json").exists()
    (saved,) = [int(path.name) for path in (run_dir / "checkpoints").iterdir()]
    one = start_hosts(["anakin", "--resume", "--run-dir", run_dir], num=1)
    wait_for(lambda: json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])["num_updates"] > saved, one)
    one[0].send_signal(signal.SIGTERM)
    codes, outputs = finish(one)
    assert codes == [0], outputs
    assert f"resumed after update {saved:,}" in outputs[0]


def test_hosts_end_when_one_is_killed_and_ghosts_of_an_older_generation_save_nothing(start_hosts, tmp_path):
    run_dir = tmp_path / "run"
    arguments = ["anakin", *TINY, "--steps", 10**9, "--set", "checkpoint_seconds=0.2", "--run-dir", run_dir]
    group = start_hosts(arguments)
    checkpoints = run_dir / "checkpoints"
    wait_for(lambda: checkpoints.exists() and any(path.name.isdecimal() for path in checkpoints.iterdir()), group)
    group[1].kill()
    codes, outputs = finish(group)
    assert 0 not in codes, outputs
    saved = {path.name for path in checkpoints.iterdir() if path.name.isdecimal()}

    (run_dir / "generation.json").write_text('{"generation": 3}')
    codes, outputs = finish(start_hosts(["anakin", "--resume", "--run-dir", run_dir], generation=2))
    assert codes[0] == 3, outputs
    assert "generation 2 of this run was replaced by generation 3" in outputs[0]
    assert saved == {path.name for path in checkpoints.iterdir() if path.name.isdecimal()}


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"PODRACER_HOSTS": "2"}, "PODRACER_HOST"),
        ({"PODRACER_HOSTS": "two", "PODRACER_HOST": "0", "PODRACER_COORDINATOR": "a:1"}, "two"),
        ({"PODRACER_HOSTS": "2", "PODRACER_HOST": "2", "PODRACER_COORDINATOR": "a:1"}, "between 0 and 1"),
    ],
)
def test_variables_that_make_no_sense_are_named(environ, said):
    with pytest.raises(ConfigError, match=said):
        hosts.join(environ)


def test_alone_everything_is_nothing():
    alone = hosts.join({})
    assert alone.first
    assert alone.agree(2**40) == (2**40,)
    assert alone.any(True, False) == (True, False)
    assert alone.sum([0.1, 2.0]) == [0.1, 2.0]
