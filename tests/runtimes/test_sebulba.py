"""Sebulba: in turns it is Anakin; otherwise fresh, counted exactly, and not stopped by environments that fail."""

import dataclasses
import threading
import time

import jax
import numpy as np
import pytest

from podracer import registry
from podracer.environment import Environment, HostEnvironment
from podracer.launch import job as jobs
from podracer.runtimes.anakin import Anakin
from podracer.runtimes.sebulba.runtime import Sebulba
from podracer.runtimes.sebulba.supervisor import ActorsFailed

TWO_DEVICES = ("sebulba.actor_devices=1", "sebulba.learner_devices=1")
SMALL = ("anakin.num_envs=8", "agent.unroll_length=5", "agent.torso.hidden=(16,)", "agent.core.size=8")
MUESLI = (
    "agent.model_steps=2",
    "agent.head_hidden=(8,)",
    "agent.dynamics.size=8",
    "agent.replay_capacity=64",
    "agent.num_q_samples=0",
    "agent.num_kl_samples=0",
    "agent.bins.num_bins=11",
)


def build(runtime, agent="impala", settings=(), environment=None):
    if runtime is Sebulba and not any("devices" in setting for setting in settings):
        settings = (*settings, *TWO_DEVICES)
    job, _ = jobs.new_job(jobs.Request(runtime.__name__.lower(), agent, "catch", settings=(*SMALL, *settings), devices=1))
    parts = jobs.build(job)
    return runtime(parts.agent, environment or parts.environment, parts.plan)


def run(runtime, *calls):
    state, all_metrics = runtime.init(), []
    try:
        for num_updates in calls:
            state, metrics = runtime.run(state, num_updates)
            all_metrics.append(metrics)
        return jax.device_get(runtime.train_state(state)), all_metrics
    finally:
        runtime.close()


@pytest.mark.parametrize(
    ("agent", "settings"),
    [
        ("impala", ()),
        ("impala", ("agent.core.kind=lstm", "anakin.minibatches=2")),
        # Adam makes much of what rounding does to the least gradients: up to a twentieth of the learning rate here.
        ("muesli", (*MUESLI, "agent.learning_rate=1e-4")),
        ("muesli", (*MUESLI, "agent.core.kind=gru", "agent.replay_share=0.5")),
        ("r2d2", ("agent.burn_in=3", "agent.replay_capacity=64", "agent.learning_rate=1e-4")),
    ],
)
def test_in_turns_it_is_anakin(agent, settings):
    expected, _ = run(build(Anakin, agent, settings), 6)
    got, metrics = run(build(Sebulba, agent, (*settings, "sebulba.sync=true")), 1, 5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), got.params, expected.params)
    assert int(got.num_updates) == int(expected.num_updates)
    assert [m["lag_max"][0] for m in metrics] == [0, 0]


def test_the_learning_batch_is_split_over_learner_devices():
    settings = ("sebulba.sync=true", "sebulba.actor_devices=1", "sebulba.learner_devices=4")
    runtime = build(Sebulba, settings=settings)
    assert runtime.actor_devices == jax.devices()[:1]
    assert list(runtime.mesh.devices) == jax.devices()[1:5]
    expected, _ = run(build(Anakin), 6)
    got, _ = run(runtime, 6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), got.params, expected.params)


def test_many_actors_are_fresh_and_every_step_is_counted_once():
    settings = ("sebulba.actor_devices=2", "sebulba.learner_devices=2", "sebulba.threads=2", "sebulba.max_lag=3")
    _, metrics = run(build(Sebulba, settings=settings), 1, 40)
    assert metrics[1]["updates"][0] == 40
    # Catch takes 9 steps and one for the reset: of 40 unrolls of 5 steps of 8 environments, a tenth are resets.
    assert metrics[1]["agent_steps"][0] == pytest.approx(40 * 5 * 8 * 0.9, rel=0.02)
    assert metrics[1]["episode_length"][0] == 9
    assert metrics[1]["lag_max"][0] <= 3
    assert metrics[1]["lag_histogram"].shape == (4,)
    assert metrics[1]["lag_histogram"].sum() == pytest.approx(1)
    shares = [metrics[1][f"actor_{name}"][0] for name in ("environment", "inference", "transfer", "queue")]
    assert sum(shares) == pytest.approx(1)
    assert metrics[1]["restarts"][0] == 0


class Faulty(Environment):
    """Catch on the host whose environments do `fault` at their 12th step, the first `times` of them."""

    def __init__(self, fault, times):
        self.inner = registry.env("catch").make()
        self.spec, self.fault, self.left, self.lock = self.inner.spec, fault, times, threading.Lock()
        self.opened: list[HostEnvironment] = []

    def vectorize(self, num_envs, seed):
        raise AssertionError("not in a program")

    def host(self, num_envs, seed, first_env=0):
        self.opened.append(FaultyHost(self, self.inner.host(num_envs, seed, first_env)))
        return self.opened[-1]


class FaultyHost(HostEnvironment):
    def __init__(self, owner, inner):
        self.owner, self.inner, self.spec, self.num_envs = owner, inner, inner.spec, inner.num_envs
        self.count, self.closed = 0, threading.Event()

    def reset(self, timeout):
        return self.inner.reset(timeout)

    def send(self, action, env_id):
        self.inner.send(action, env_id)

    def recv(self, timeout):
        self.count += 1
        with self.owner.lock:
            bad = self.count == 12 and self.owner.left > 0
            self.owner.left -= bad
        env_id, timestep = self.inner.recv(timeout)
        if not bad:
            return env_id, timestep
        if self.owner.fault == "raises":
            raise RuntimeError("the emulator is gone")
        if self.owner.fault == "nan":
            return env_id, timestep.replace(reward=np.where(env_id == 3, np.nan, timestep.reward).astype(np.float32))
        if self.owner.fault == "times out":
            raise TimeoutError("environment 3 did not answer")
        self.closed.wait(30)  # hangs
        return env_id, timestep

    def close(self):
        self.closed.set()
        self.inner.close()


@pytest.mark.parametrize("fault", ["raises", "nan", "times out", "hangs"])
def test_an_actor_whose_environment_fails_is_restarted(fault, capsys):
    environment = Faulty(fault, times=2)
    runtime = build(Sebulba, settings=("sebulba.threads=2", "sebulba.env_timeout=0.5"), environment=environment)
    _, metrics = run(runtime, 1, 30)
    assert metrics[-1]["updates"][0] == 30
    assert metrics[-1]["restarts"][0] == 2
    assert bool(metrics[-1]["finite"][0])
    words = {
        "raises": "emulator is gone",
        "nan": "environment 3: reward",
        "times out": "did not answer",
        "hangs": "come back",
    }
    assert words[fault] in capsys.readouterr().err
    assert all(opened.closed.wait(10) for opened in environment.opened)


def test_too_many_failures_stop_the_run_with_the_first_cause():
    environment = Faulty("raises", times=100)
    runtime = build(Sebulba, settings=("sebulba.max_restarts=2",), environment=environment)
    started = time.monotonic()
    with pytest.raises(ActorsFailed, match=r"2 restarts of actors were not enough; .* RuntimeError: the emulator is gone"):
        run(runtime, 1000, 1000)  # the first call hands its state over, the second has nobody to wait for
    assert time.monotonic() - started < 120


def test_it_stops_at_once_when_asked():
    runtime = build(Sebulba)
    state, _ = runtime.run(runtime.init(), 1)
    asked = time.monotonic() + 0.5
    runtime.should_stop = lambda: time.monotonic() > asked
    state, metrics = runtime.run(state, 10**6)
    assert 0 < metrics["updates"][0] < 10**6
    before = threading.active_count()
    runtime.close()
    assert threading.active_count() < before
    assert int(state.num_updates) == 1 + metrics["updates"][0]


def test_memory_is_what_the_arrays_take():
    runtime = build(Sebulba, "muesli", MUESLI)
    state, memory = runtime.init(), runtime.memory()
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))  # noqa: E731
    assert memory["learner"] == size(state.train_state)
    assert memory["replay"] == size(state.replay)
    assert dataclasses.asdict(runtime.plan)["actors"]["max_lag"] == 4
    runtime.close()
