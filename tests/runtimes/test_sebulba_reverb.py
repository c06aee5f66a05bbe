"""Sebulba over the real Reverb server: the same updates, replay of both kinds, and actors of other processes."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_sebulba import MUESLI, build, run

from podracer.agents.impala.agent import Impala
from podracer.runtimes.anakin import Anakin
from podracer.runtimes.sebulba.runtime import Sebulba
from podracer.runtimes.sebulba.supervisor import ActorsFailed

REVERB = ("sebulba.store=reverb",)
SYNC = ("sebulba.sync=true",)


class Prioritized(Impala):
    """Learns from each unroll twice, with replay by priority: the largest absolute reward of a column, plus 0.1."""

    def data_spec(self):
        spec = super().data_spec()
        return dataclasses.replace(spec, replay_share=0.5, replay_capacity=24, priority_exponent=0.7, updates_per_unroll=2)

    def loss(self, params, train_state, trajectory, key):
        weight = trajectory.importance**0.5
        loss, metrics = super().loss(params, train_state, trajectory, key)
        priority = 0.1 + jnp.max(jnp.abs(trajectory.timestep.reward[1:]), axis=0)
        return loss * jnp.mean(weight), {**metrics, "priority": priority, "largest": jnp.max(weight)}


PRIORITIZED = f"{__name__}:Prioritized"


def close(got, expected):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5), got.params, expected.params)
    assert int(got.num_updates) == int(expected.num_updates)


def test_in_turns_it_is_anakin(reverb_installed):
    expected, _ = run(build(Anakin), 6)
    got, metrics = run(build(Sebulba, settings=(*REVERB, *SYNC)), 1, 5)
    close(got, expected)
    assert metrics[1]["agent_steps"][0] == 176
    assert [m["lag_max"][0] for m in metrics] == [0, 0]


@pytest.mark.parametrize("more", [(), ("anakin.minibatches=2", "agent.microbatch=4")])
def test_priorities_of_the_ring_are_the_same_in_both_runtimes(more):
    expected, anakin = run(build(Anakin, PRIORITIZED, more), 1, 5)
    got, sebulba = run(build(Sebulba, PRIORITIZED, (*more, *SYNC)), 1, 5)
    close(got, expected)
    assert int(got.num_updates) == 6 * 2 * (2 if more else 1)
    assert sebulba[1]["largest"][0] == pytest.approx(anakin[1]["largest"][0], abs=1e-5)
    assert anakin[0]["largest"][0] == 1 < anakin[1]["largest"][0]


def test_an_agent_that_forgets_its_priorities_is_told(monkeypatch):
    monkeypatch.setattr(Prioritized, "loss", Impala.loss)
    with pytest.raises(TypeError, match=r"Prioritized.*must report 'priority'"):
        run(build(Anakin, PRIORITIZED), 1)


def test_replay_by_priority_over_reverb(reverb_installed):
    runtime = build(Sebulba, PRIORITIZED, (*REVERB, *SYNC, "sebulba.actor_devices=1", "sebulba.learner_devices=2"))
    state, _ = runtime.run(runtime.init(), 1)
    try:
        state, metrics = runtime.run(state, 9)
        assert int(state.train_state.num_updates) == 20
        assert metrics["largest"][0] > 1
        info = runtime._handover.client.server_info().tables["replay"]
        assert (info.current_size, info.max_size) == (24, 24)
        with runtime._handover.client.sampler("replay") as sampler:
            samples = [sampler.sample(10) for _ in range(300)]
        reward = next(i for i, spec in enumerate(info.signature) if "reward" in spec.name)
        seen = {}
        for sample in samples:
            rewards = sample.data[reward]
            assert rewards.shape == (6,)
            seen[sample.key] = (sample.priority, 0.1 + np.abs(rewards[1:]).max())
        # What arrived after the last update has the highest priority so far; all else has its own.
        own = [priority == pytest.approx(expected) for priority, expected in seen.values()]
        assert sum(own) >= len(own) - runtime.plan.num_envs
        assert len({round(priority, 3) for priority, _ in seen.values()}) == 2
    finally:
        runtime.close()


def test_muesli_mixes_replay_of_reverb(reverb_installed, tmp_path):
    settings = (*MUESLI, *REVERB, "agent.replay_share=0.75", "agent.core.kind=gru")
    runtime = build(Sebulba, "muesli", settings)
    runtime.folder = tmp_path
    state, _ = runtime.run(runtime.init(), 1)
    try:
        state, metrics = runtime.run(state, 11)
        assert (metrics["updates"][0], bool(metrics["finite"][0])) == (11, True)
        assert metrics["lag_max"][0] <= 4
        assert jax.tree.leaves(state.replay) == []
        size = runtime._handover.client.server_info().tables["replay"].current_size
        assert size == 64
        runtime.checkpoint(state)
        train_state = jax.device_get(state.train_state)
    finally:
        runtime.close()

    later = build(Sebulba, "muesli", settings)
    later.folder = tmp_path
    state = later.restore(later.init().replace(train_state=train_state, num_updates=jnp.int32(12)))
    try:
        later.run(state, 1)
        tables = later._handover.client.server_info().tables
        assert tables["replay"].num_inserted > 64  # it goes on with what it had
        assert later._handover.num_repeated == 0
    finally:
        later.close()


def test_a_learner_without_actors_says_so_in_time(reverb_installed, capsys):
    runtime = build(Sebulba, settings=(*REVERB, "sebulba.threads=0", "sebulba.patience=1"))
    started = time.monotonic()
    with pytest.raises(ActorsFailed, match="none has joined"):
        run(runtime, 1)
    assert time.monotonic() - started < 30
    assert "podracer actor --connect 127.0.0.1:" in capsys.readouterr().out


def test_a_server_that_is_killed_loses_no_more_than_what_came_after_the_checkpoint(reverb_installed, tmp_path):
    settings = (*MUESLI, *REVERB, "agent.replay_share=0.5", "agent.replay_capacity=4000")
    runtime = build(Sebulba, "muesli", settings)
    runtime.folder = tmp_path
    state, _ = runtime.run(runtime.init(), 1)
    try:
        state, _ = runtime.run(state, 10)
        runtime.checkpoint(state)
        saved = runtime._handover.client.server_info().tables["replay"].current_size
        assert saved >= 11 * runtime.plan.num_envs
        runtime._handover.server.kill()
        state, metrics = runtime.run(state, 40)
        assert (metrics["updates"][0], metrics["server_restarts"][0], metrics["restarts"][0]) == (40, 1, 0)
        assert bool(metrics["finite"][0])
        # What the 40 updates learned from was added to what was saved; nothing of it came twice.
        assert runtime._handover.client.server_info().tables["replay"].current_size >= saved + 30 * runtime.plan.num_envs
    finally:
        runtime.close()
