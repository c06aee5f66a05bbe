"""Anakin: the same answer on any layout, one compile, honest counts, and replay."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from podracer import config, plan, registry
from podracer.agent import DataSpec
from podracer.agents.impala.agent import Impala
from podracer.environment import Environment, Unsupported, VectorEnvironment
from podracer.ops import columns
from podracer.runtimes.anakin import Anakin
from podracer.runtimes.learner import ReplicaDrift
from podracer.stores import ring
from podracer.types import LAST, Mode

SMALL = {
    "agent.unroll_length": 5,
    "agent.torso.hidden": (16,),
    "agent.core.size": 8,
    "anakin.num_envs": 16,
}


class WithReplay(Impala):
    def data_spec(self):
        return DataSpec(unroll_length=self.config.unroll_length, replay_share=2 / 3, replay_capacity=16 * 4)


class ForgetsToAverage(Impala):
    def update(self, train_state, trajectory, key, axis_name):
        grads, metrics = jax.grad(self.loss, has_aux=True)(train_state.params, train_state, trajectory, key)
        updates, opt_state = self.optimizer().update(grads, train_state.opt_state)
        return train_state.replace(params=optax.apply_updates(train_state.params, updates), opt_state=opt_state), metrics


class Unlearning(Impala):
    """The negative control: everything but the policy gradient."""

    def loss(self, params, train_state, trajectory, key):
        loss, metrics = super().loss(params, train_state, trajectory, key)
        return 0.0 * loss, metrics


def build(agent=Impala, overrides=None, **job_fields):
    env = registry.env("catch")
    job = config.JobConfig(agent_name="impala", env_name="catch", agent=agent.Config(), env=env.suite.config(), **job_fields)
    job = config.override(job, {**SMALL, **(overrides or {})})
    environment = env.make(job.env)
    learner = agent(environment.spec, job.agent)
    return Anakin(learner, environment, plan.make_plan(job, learner, len(jax.devices())))


def params_after(runtime, *calls):
    state = runtime.init()
    for num_updates in calls:
        state, _ = runtime.run(state, num_updates)
    return state.train_state.params


def assert_trees_close(a, b, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=0, atol=atol), a, b)


@pytest.fixture(scope="module")
def single():
    return build()


@pytest.mark.parametrize("layout", [{}, {"num_devices": 4}, {"num_seeds": 2}])
def test_memory_is_what_the_arrays_take(layout):
    runtime = build(WithReplay, **{"num_devices": 1, **layout})
    state, memory = runtime.init(), runtime.memory()

    def on_one_device(*trees):
        return sum(
            x.addressable_shards[0].data.nbytes
            for x in jax.tree.leaves(trees)
            if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        )

    assert memory["learner"] == on_one_device(state.train_state)
    assert memory["replay"] == on_one_device(state.replay)
    assert memory["environments"] >= on_one_device(state.env_state, state.timestep, state.actor_state, state.episode)
    # Two of three sequences are replayed, and the ring holds four unrolls of every environment.
    assert memory["batch"] == pytest.approx(memory["replay"] * 3 / 4, rel=0.01)


def test_updates_of_one_call_equal_one_call_each_and_runs_repeat_bit_for_bit(single):
    once = params_after(single, 6)
    assert_trees_close(once, params_after(single, 1, 2, 3), atol=0)
    assert_trees_close(once, params_after(single, 6), atol=0)
    other = params_after(build(seed=1), 6)
    assert any(
        np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(jax.tree.leaves(once), jax.tree.leaves(other), strict=True)
    )


def test_another_number_of_updates_does_not_compile_again(single):
    state = single.init()
    for num_updates in (1, 4, 2):
        state, _ = single.run(state, num_updates)
    assert single._program._cache_size() == 1


@pytest.mark.parametrize("microbatch", [0, 4])
def test_who_asks_for_shapes_first_does_not_trace_the_loss_twice(microbatch):
    class Counting(Impala):
        traced = 0

        def loss(self, *arguments):
            Counting.traced += 1
            return super().loss(*arguments)

    runtime = build(Counting, {"agent.microbatch": microbatch}, num_devices=1)
    runtime.memory()
    runtime.trace()
    assert Counting.traced == 1


def test_no_implicit_transfer_to_the_host_while_running(single):
    state = single.init()
    count = jnp.int32(3)
    with jax.transfer_guard_device_to_host("disallow"):
        state, metrics = single._program(state, count)
        jax.block_until_ready(metrics)


@pytest.mark.parametrize("agent", [Impala, WithReplay])
@pytest.mark.parametrize("core", ["none", "gru"])
def test_eight_devices_equal_one_and_their_replicas_are_bit_identical(agent, core):
    overrides = {"agent.core.kind": core}
    one = params_after(build(agent, overrides), 10)
    eight = params_after(build(agent, overrides, num_devices=8), 10)
    # One all-reduce rounds differently from one sum; after 10 updates of Adam that is below 1e-5 in float32.
    assert_trees_close(one, eight, atol=1e-5)
    for leaf in jax.tree.leaves(eight):
        shards = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(shards) == 8
        for shard in shards[1:]:
            np.testing.assert_array_equal(shards[0], shard)


def test_an_update_that_does_not_average_is_found_out():
    runtime = build(ForgetsToAverage, num_devices=2)
    with pytest.raises(ReplicaDrift, match="average gradients over axis_name"):
        runtime.run(runtime.init(), 2)


def test_a_seed_of_a_population_equals_a_run_of_its_own():
    population = build(seed=3, num_seeds=3)
    state, metrics = population.run(population.init(), 4)
    assert metrics["episode_return"].shape == (3,)
    for index in range(3):
        alone = params_after(build(seed=3 + index), 4)
        assert_trees_close(population.train_state(state, index).params, alone, atol=1e-6)


def test_a_population_over_devices_equals_one_on_a_single_device():
    two = build(seed=3, num_seeds=2, num_devices=2)
    one = build(seed=3, num_seeds=2)
    assert_trees_close(params_after(two, 4), params_after(one, 4), atol=1e-6)


def test_counts_leave_reset_slots_out(single):
    # Catch: 9 steps and one reset slot, so 10 slots hold 9 agent steps; all 16 environments move in phase.
    state, metrics = single.run(single.init(), 20)  # 100 slots an environment, the first FIRST came from reset
    assert metrics["agent_steps"][0] == 16 * 90
    assert metrics["episodes"][0] == 16 * 10
    assert metrics["episode_length"][0] == 9
    assert -1 <= metrics["episode_return"][0] <= 1
    _, metrics = single.run(state, 1)
    assert metrics["episodes"][0] == 0
    assert np.isnan(metrics["episode_return"][0])


def test_an_unroll_starts_where_the_last_one_ended():
    runtime = build(overrides={"agent.core.kind": "gru"})
    state = runtime.init()
    collect = jax.jit(runtime._collect)
    state, first, _ = collect(state)
    _, second, _ = collect(state)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[-1], y[0]), first.timestep, second.timestep)
    # The state that an unroll begins with is the one that acting through the previous unroll ends in.
    core = first.actor_state
    for t in range(5):
        timestep = jax.tree.map(lambda x, t=t: x[t], first.timestep)
        key = jax.random.split(jax.random.key(0), 16)
        _, core = runtime.agent.act(state.train_state.params, core, timestep, key, Mode.TRAIN)
    np.testing.assert_allclose(core, second.actor_state, atol=1e-6)


def test_the_gradient_is_the_mean_of_single_environment_gradients(single):
    state = single.init()
    _, trajectory, _ = single._collect(state)
    keys = jax.random.split(jax.random.key(1), 16)
    agent, train_state = single.agent, state.train_state
    grad = jax.jit(jax.grad(lambda p, tr, k: agent.loss(p, train_state, tr, k)[0]))
    whole = grad(train_state.params, trajectory, keys)

    def column(i):
        part = dataclasses.replace(
            trajectory,
            timestep=jax.tree.map(lambda x: x[:, i : i + 1], trajectory.timestep),
            actor_output=jax.tree.map(lambda x: x[:, i : i + 1], trajectory.actor_output),
        )
        return grad(train_state.params, part, keys[i : i + 1])

    mean = jax.tree.map(lambda *g: sum(g) / 16, *[column(i) for i in range(16)])
    assert_trees_close(whole, mean, atol=1e-6)


@pytest.mark.parametrize("agent", [Impala, WithReplay])
def test_microbatches_give_the_gradient_of_the_whole_batch(agent):
    class Micro(agent):
        def data_spec(self):
            return dataclasses.replace(super().data_spec(), microbatch=8)

    overrides = {"agent.core.kind": "gru"}
    assert_trees_close(params_after(build(agent, overrides), 5), params_after(build(Micro, overrides), 5), atol=1e-5)


@pytest.mark.parametrize("agent", [Impala, WithReplay])
def test_minibatches_take_every_column_once_on_any_number_of_devices(agent):
    overrides = {"anakin.minibatches": 4}
    one = params_after(build(agent, overrides), 5)
    assert_trees_close(one, params_after(build(agent, overrides, num_devices=4), 5), atol=1e-5)
    seen = []

    class Spy(agent):
        def update(self, train_state, trajectory, key, axis_name):
            jax.debug.callback(lambda x: seen.append(np.asarray(x)), trajectory.timestep.observation[0])
            return super().update(train_state, trajectory, key, axis_name)

    runtime = build(Spy, overrides)
    state, _ = runtime.run(runtime.init(), 1)
    jax.effects_barrier()
    assert int(state.train_state.num_updates) == 4
    assert len(seen) == 4
    replicas = 1 + runtime.plan.replay_per_env  # after one unroll, replay holds just that one
    starts = np.concatenate(seen).reshape(16 * replicas, -1)
    expected = np.repeat(np.asarray(build(agent).init().timestep.observation).reshape(16, -1), replicas, axis=0)
    assert sorted(map(tuple, starts)) == sorted(map(tuple, expected))


@pytest.mark.parametrize("length", [2, 5])
def test_unrolls_overlap_as_much_as_the_agent_asks_for(length):
    class Overlapping(WithReplay):
        def data_spec(self):
            return dataclasses.replace(super().data_spec(), overlap=length)

    overrides = {"agent.core.kind": "gru"}
    plain, runtime = build(overrides=overrides), build(Overlapping, overrides)

    def collect(runtime):
        def one(state, _):
            state, trajectory, _ = runtime._collect(state)
            return state.replace(num_updates=state.num_updates + 1), trajectory

        return jax.jit(lambda state: jax.lax.scan(one, state, length=4)[1])(runtime.init())

    unrolls, whole = collect(plain), collect(runtime)

    def assert_same(found, expected):
        """To the bit, but for log-probabilities: two programs round differently."""
        assert_trees_close(found[1].log_prob, expected[1].log_prob, atol=1e-6)
        exact = lambda data: (data[0], data[1].replace(log_prob=()))  # noqa: E731
        jax.tree.map(np.testing.assert_array_equal, exact(found), exact(expected))

    data = lambda tree: (tree.timestep, tree.actor_output)  # noqa: E731
    assert_same(jax.tree.map(lambda x: x[:, length:], data(whole)), data(unrolls))
    ends = jax.tree.map(lambda x: x[:-1, 5 - length : 5], data(unrolls))
    assert_same(jax.tree.map(lambda x: x[1:, :length], data(whole)), ends)
    assert np.all(whole.timestep.step_type[0, :length] == LAST)
    # The recurrent state is the one from before the first step of the overlap.
    params, state = plain.init().train_state.params, jax.tree.map(lambda x: x[1], unrolls.actor_state)
    seen = jax.tree.map(lambda x: x[1, : 5 - length], unrolls.timestep)
    if length < 5:
        _, state = plain.agent._net.apply(params, seen, state)
    np.testing.assert_allclose(whole.actor_state[2], state, atol=1e-6)
    one = params_after(build(Overlapping, overrides), 4)
    assert_trees_close(one, params_after(build(Overlapping, overrides, num_devices=4), 1, 3), atol=1e-5)


def test_replayed_columns_are_past_unrolls_of_the_same_environment():
    runtime = build(WithReplay)
    state = runtime.init()

    @jax.jit
    def step(state):
        state, online, _ = runtime._collect(state)
        keys = jax.random.split(jax.random.key(0), 16)
        draw = jax.random.split(jax.random.fold_in(jax.random.key(1), state.num_updates), 16)
        replay, _ = ring.insert(state.replay, columns.batch_major(online))
        mixed, key = runtime.learner.mix(online, runtime.learner.draw(replay, draw)[0], keys)
        return state.replace(replay=replay, num_updates=state.num_updates + 1), online, mixed, key

    seen: list[list[bytes]] = [[] for _ in range(16)]
    for _ in range(7):
        state, online, mixed, key = step(state)
        assert mixed.timestep.reward.shape == (6, 48)
        assert len({tuple(row) for row in np.asarray(jax.random.key_data(key))}) == 48
        for i in range(16):
            seen[i].append(np.asarray(online.timestep.observation[:, i]).tobytes())
            for j in (16 + 2 * i, 17 + 2 * i):
                assert np.asarray(mixed.timestep.observation[:, j]).tobytes() in seen[i][-4:]


def test_learning_and_its_negative_control():
    overrides = {"agent.learning_rate": 5e-3, "agent.torso.hidden": (32,)}
    results = {}
    for agent in (Impala, Unlearning):
        runtime = build(agent, overrides)
        state, _ = runtime.run(runtime.init(), 1500)
        _, metrics = runtime.run(state, 100)
        results[agent] = metrics["episode_return"][0]
    assert results[Impala] > 0.8
    assert results[Unlearning] < 0.0


class _OutsideXla(Environment):
    def __init__(self):
        self.spec = registry.env("catch").make().spec

    def vectorize(self, num_envs, seed):
        class Vector(VectorEnvironment):
            spec, pure = self.spec, False

            def reset(self, key):
                raise AssertionError("not reached")

            step = reset

        return Vector()


@pytest.mark.parametrize("fields", [{"num_devices": 2}, {"num_seeds": 2}])
def test_an_environment_outside_xla_refuses_what_it_cannot_do(fields):
    environment = _OutsideXla()
    agent = Impala(environment.spec, Impala.Config())
    job = config.JobConfig(agent_name="impala", env_name="catch", agent=agent.config, env=None, **fields)
    with pytest.raises(Unsupported, match="Sebulba"):
        Anakin(agent, environment, plan.make_plan(job, agent, 8))
