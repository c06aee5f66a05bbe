"""The process pool: what crosses it, out of order, and what it says when an environment misbehaves."""

import functools
import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import worker_environments
from dm_env import specs

from podracer import types
from podracer.environment import EnvironmentFailed
from podracer.processes import ProcessPool, environment_seed
from podracer.types import EnvironmentSpec

TIMEOUT = 60.0  # of what should succeed, on a busy machine

SPEC = EnvironmentSpec(
    name="counter",
    observation={"count": specs.Array((3,), np.float32), "action": (specs.Array((), np.int32),)},
    action=specs.DiscreteArray(5),
    aux=specs.Array((1,), np.float32),
)


@pytest.fixture
def make():
    """Makes pools, and sees to it that their processes end."""
    pools, processes = [], []

    def make_pool(factory=worker_environments.Counter, num_envs=4, seed=0, first_env=0, num_workers=2):
        pools.append(ProcessPool(SPEC, factory, num_envs, seed, first_env, num_workers))
        processes.extend(worker.popen for worker in pools[-1]._workers)
        return pools[-1]

    yield make_pool
    for pool in pools:
        pool.close()
    assert all(process.poll() is not None for process in processes)


def play(pool):
    pool.reset(TIMEOUT)
    for _ in range(3):
        pool.step(np.zeros(4, int), TIMEOUT)


def faulty(fault):
    return functools.partial(worker_environments.Faulty, fault=fault)


def test_the_stream_of_an_environment(make):
    pool = make()
    stream = [pool.reset(TIMEOUT)] + [pool.step(np.full(4, action), TIMEOUT) for action in (1, 2, 3, 4, 1)]
    assert all(isinstance(leaf, np.ndarray) for leaf in (stream[0].reward, stream[0].observation["count"], stream[0].aux))
    for number in range(4):
        of = lambda get, n=number: [get(timestep)[n].tolist() for timestep in stream]  # noqa: E731
        assert of(lambda ts: ts.step_type) == [types.FIRST, types.MID, types.MID, types.LAST, types.FIRST, types.MID]
        assert of(lambda ts: ts.reward) == [0, 1, 2, 3, 0, 1]
        assert of(lambda ts: ts.discount) == [1, 1, 1, 0, 1, 1]
        assert of(lambda ts: ts.observation["action"][0]) == [-1, 1, 2, 3, -1, 1]  # the 4 on LAST is ignored
        assert of(lambda ts: ts.observation["count"][:, 1]) == [0, 1, 2, 3, 0, 1]
        assert of(lambda ts: ts.aux) == [[number]] * 6
    kept = stream[1].observation["count"].copy()
    pool.step(np.zeros(4, int), TIMEOUT)
    np.testing.assert_array_equal(stream[1].observation["count"], kept)  # never written to again


def test_a_time_limit_keeps_the_discount(make):
    pool = make(functools.partial(worker_environments.Counter, length=9, limit=2))
    pool.reset(TIMEOUT)
    pool.step(np.zeros(4, int), TIMEOUT)
    timestep = pool.step(np.zeros(4, int), TIMEOUT)
    assert (timestep.step_type == types.LAST).all()
    assert (timestep.discount == 1).all()


@pytest.mark.parametrize("num_workers", [1, 3])
def test_randomness_depends_on_the_seed_and_the_global_number_alone(make, num_workers):
    reference = make(num_envs=4, seed=5, num_workers=2).reset(TIMEOUT).observation["count"]
    part = make(num_envs=3, seed=5, first_env=1, num_workers=num_workers).reset(TIMEOUT).observation["count"]
    np.testing.assert_array_equal(part, reference[1:])
    other = make(num_envs=4, seed=6).reset(TIMEOUT).observation["count"]
    assert len({*reference[:, 2].tolist(), *other[:, 2].tolist()}) == 8
    assert len({environment_seed(seed, number) for seed in (-1, 0, 1) for number in range(1000)}) == 3000


def test_send_and_recv_in_any_order(make):
    pool, whole = make(num_envs=5, num_workers=3), make(num_envs=5, num_workers=2)
    pool.reset(TIMEOUT)
    whole.reset(TIMEOUT)
    expected = [whole.step(np.arange(5) % 5, TIMEOUT) for _ in range(5)]
    taken = np.zeros(5, int)
    rng = np.random.default_rng(0)
    pool.send(np.array([3, 0, 2]), np.array([3, 0, 2]))
    pool.send(np.array([4, 1]), np.array([4, 1]))
    while (taken < 5).any():
        env_id, timestep = pool.recv(TIMEOUT)
        for row, number in enumerate(env_id):
            one = expected[taken[number]]
            np.testing.assert_array_equal(timestep.observation["count"][row], one.observation["count"][number])
            assert timestep.observation["action"][0][row] == one.observation["action"][0][number]
            assert timestep.step_type[row] == one.step_type[number]
        taken[env_id] += 1
        again = rng.permutation(env_id[taken[env_id] < 5])
        if again.size:
            pool.send(again, again)
    with pytest.raises(ValueError, match="send first"):
        pool.recv(TIMEOUT)


def test_a_step_in_the_middle_of_one_is_refused_and_reset_lets_it_end(make):
    pool = make()
    pool.reset(TIMEOUT)
    pool.send(np.array([1]), np.array([2]))
    with pytest.raises(ValueError, match="environment 2 is in the middle"):
        pool.send(np.array([1]), np.array([2]))
    assert (pool.reset(TIMEOUT).step_type == types.FIRST).all()
    assert (pool.step(np.zeros(4, int), TIMEOUT).observation["count"][:, 1] == 1).all()


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("make", "environment 1: ValueError: the ball has left the court\n"),
        ("reset", "environment 1: ValueError: the ball has left the court\n"),
        ("step", "environment 1: ValueError: the ball has left the court\n"),
        ("shape", r"environment 1: ValueError: observation has shape \(1,\), its spec says \(3,\)"),
        ("nan reward", "environment 1: reward is not finite"),
        ("nan observation", r"environment 1: observation\['count'\] is not finite"),
        ("killed", "environment 1: its process was killed by signal 9"),
        ("exit", "environment 1: its process exited with status 3"),
    ],
)
def test_faults_name_the_environment_and_the_cause(make, fault, complaint):
    pool = make(faulty(fault))
    with pytest.raises(EnvironmentFailed, match=complaint) as caught:
        play(pool)
    assert "\n" not in str(caught.value)  # the traceback of the worker is a note
    with pytest.raises(EnvironmentFailed, match=complaint):
        pool.step(np.zeros(4, int), TIMEOUT)


def test_a_worker_killed_from_outside_is_noticed(make):
    pool = make(first_env=10)
    pool.reset(TIMEOUT)
    os.kill(pool._workers[1].popen.pid, signal.SIGKILL)
    with pytest.raises(EnvironmentFailed, match=r"environment 13: its process was killed by signal 9"):
        play(pool)


@pytest.mark.parametrize("fault", ["hang", "deaf"])
def test_an_environment_that_hangs_is_named_and_ended(make, fault):
    pool = make(faulty(fault), first_env=0)
    pool.reset(TIMEOUT)
    pool.step(np.zeros(4, int), TIMEOUT)
    pool.send(np.zeros(2, int), np.arange(2))
    with pytest.raises(TimeoutError, match=r"environment 1 took longer than 0.3 s \(2 of 4 unfinished\)"):
        pool.recv(0.3)
    start, processes = time.monotonic(), [process.popen for process in pool._workers]
    pool.close()
    assert time.monotonic() - start < 5
    assert all(process.poll() is not None for process in processes)


def test_one_may_wait_on_after_a_timeout(make):
    pool = make(faulty("slow"))
    pool.reset(TIMEOUT)
    pool.step(np.zeros(4, int), TIMEOUT)
    pool.send(np.zeros(2, int), np.arange(2))
    with pytest.raises(TimeoutError, match="environment 1"):
        pool.recv(0.1)
    env_id, timestep = pool.recv(TIMEOUT)
    assert sorted(env_id) == [0, 1]
    assert (timestep.observation["count"][:, 1] == 2).all()


def test_workers_import_no_jax_and_the_picture_comes_across(make):
    pool = make(worker_environments.Modules, first_env=7)
    pool.reset(TIMEOUT)
    assert (pool.step(np.zeros(4, int), TIMEOUT).observation["count"][:, 2] == 0).all()
    assert pool.render().tolist() == np.full((2, 3, 3), 7).tolist()


def test_closing_twice_and_using_a_closed_pool(make):
    gc.collect()
    files = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    pool = make()
    pool.reset(TIMEOUT)
    pool.close()
    pool.close()
    if files is not None:
        assert len(os.listdir("/proc/self/fd")) <= files
    for use in (lambda: pool.reset(TIMEOUT), lambda: pool.step(np.zeros(4, int), TIMEOUT), lambda: pool.recv(TIMEOUT)):
        with pytest.raises(EnvironmentFailed, match="closed"):
            use()
    assert pool.render() is None


def test_workers_end_when_their_parent_is_killed(tmp_path):
    """Even those that hang; and a factory of the main module reaches them."""
    script = tmp_path / "main.py"
    script.write_text(
        "import sys, time, numpy as np\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_processes import SPEC, TIMEOUT, ProcessPool, worker_environments\n"
        "def factory(number, seed):\n"
        "    return worker_environments.Faulty(1, seed, ['hang', 'busy'][number])\n"
        "pool = ProcessPool(SPEC, factory, 2, 0, 0, 2)\n"
        "pool.reset(TIMEOUT)\n"
        "pool.step(np.zeros(2, int), TIMEOUT)\n"
        "pool.send(np.zeros(2, int), np.arange(2))\n"
        "print('ready', flush=True)\n"
        "time.sleep(1000)\n"
    )
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "ready\n"
    workers = psutil.Process(parent.pid).children()
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
