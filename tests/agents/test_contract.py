"""What holds for every agent, in each of its forms: an agent is held to it by being registered."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from podracer import registry
from podracer.checkpoint import Checkpoints, tree_sha256
from podracer.config import ConfigError, override
from podracer.launch import job as jobs
from podracer.runtimes.anakin import Anakin
from podracer.types import FIRST, LAST, MID, EnvironmentSpec, Mode, TimeStep, Trajectory

MODEL = {"torso.hidden": (8,), "dynamics.size": 8, "bins.num_bins": 11, "bins.limit": 3.0, "head_hidden": (), "model_steps": 2}
REPLAY = {"replay_share": 0.5, "replay_capacity": 24, "updates_per_unroll": 2}
FORMS = {
    "cca": {"torso.hidden": (8,), "core.kind": "gru", "core.size": 8, "hindsight.hidden": 8, "independence.bound": 0.1},
    "himo": {"torso.hidden": (8,), "core.size": 8, "lookahead": 2},
    "himo r2d2": {
        **{"base": "r2d2", "torso.hidden": (8,), "core.size": 8, "remember": True, "lookahead": 1},
        **{f"q.{name}": value for name, value in {**REPLAY, "burn_in": 2, "target_period": 5}.items()},
    },
    "impala": {"torso.hidden": (8,), "core.kind": "lstm", "core.size": 8},
    "muesli": {**MODEL, "core.kind": "gru", "core.size": 8, "replay_share": 0.5, "replay_capacity": 24},
    "muzero": {
        **{**MODEL, **REPLAY, "search.num_simulations": 3, "reanalyze_share": 0.5, "target_period": 5},
        **{"priority_exponent": 0.7},
    },
    "nav": {"torso.kind": "mlp", "torso.hidden": (8,), "reward_lstm": 4, "lstm": 8},
    "r2d2": {**REPLAY, "torso.hidden": (8,), "core.size": 8, "head_hidden": (), "burn_in": 2, "target_period": 5},
}
FORMS |= {name: {} for name in registry.names(registry.AGENTS) if name not in FORMS}
A, B, T = 3, 2, 5
SPEC = EnvironmentSpec(
    name="synthetic",
    observation={"seen": specs.Array((4,), np.float32), "legal_actions": specs.Array((A,), np.bool_)},
    action=specs.DiscreteArray(A),
)


@functools.cache
def make(form):
    agent_class = registry.agent_class(form.split()[0])
    return agent_class(SPEC, override(agent_class.Config(), {**FORMS[form], "unroll_length": T}))


def timesteps(step_type):
    """`[len(step_type), B, ...]`, of truncated episodes, in which the last action is illegal at times."""
    rng = np.random.default_rng(0)
    step_type = np.tile(np.array(step_type, np.int32)[:, None], (1, B))
    legal = np.ones((*step_type.shape, A), bool)
    legal[::2, :, 2] = False
    return TimeStep(
        step_type=jnp.asarray(step_type),
        reward=jnp.asarray(np.where(step_type == FIRST, 0, rng.normal(size=step_type.shape)), jnp.float32),
        discount=jnp.ones(step_type.shape, jnp.float32),
        observation={"seen": jnp.asarray(rng.normal(size=(*step_type.shape, 4)), jnp.float32), "legal_actions": legal},
    )


@functools.cache
def acted(form, mode=Mode.TRAIN):
    """A fresh TrainState, and what acting with it gives: as long as a trajectory of the agent, with the end of an episode."""
    agent = make(form)
    state = jax.jit(agent.init)(jax.random.key(0))
    num_steps = T + agent.data_spec().overlap
    step_type = [MID] * (num_steps + 1)
    step_type[num_steps - 3 : num_steps - 1] = [LAST, FIRST]
    timestep, actor_state = timesteps(step_type), agent.initial_actor_state(B)

    def step(carry, inputs):
        now, key = inputs
        output, carry = agent.act(agent.actor_params(state), carry, now, jax.random.split(key, B), mode)
        return carry, output

    inputs = jax.tree.map(lambda x: x[:-1], timestep), jax.random.split(jax.random.key(1), num_steps)
    _, output = jax.jit(lambda s, x: jax.lax.scan(step, s, x))(actor_state, inputs)
    return state, Trajectory(timestep=timestep, actor_output=output, actor_state=actor_state)


@pytest.mark.parametrize("name", ["learning_rate", "decay_updates"])
@pytest.mark.parametrize("agent", registry.names(registry.AGENTS))
def test_an_optimizer_that_cannot_be_is_refused(agent, name):
    with pytest.raises(ConfigError, match=f"{name}.* -1"):
        override(registry.agent_class(agent).Config(), {name: -1})


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("form", sorted(FORMS))
def test_actions_are_legal_and_their_probabilities_are_numbers(form, mode):
    _, trajectory = acted(form, mode)
    action, legal = trajectory.actor_output.action, trajectory.timestep.observation["legal_actions"][:-1]
    assert action.dtype == jnp.int32
    assert np.all(np.take_along_axis(legal, np.asarray(action)[..., None], axis=-1))
    assert np.all(np.isfinite(trajectory.actor_output.log_prob))
    assert np.all(trajectory.actor_output.log_prob <= 1e-6)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_nothing_is_learned_from_the_pair_last_first(form):
    agent, (state, trajectory) = make(form), acted(form)
    keys = jax.random.split(jax.random.key(2), B)
    last = int(np.flatnonzero(trajectory.timestep.step_type[:, 0] == LAST)[0])

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, None, 0), axis_name="devices", axis_size=1)
    def gradients(state, trajectory, keys):
        state, trajectory = agent.relabel(state, trajectory, keys, "devices")
        return agent.gradients(state, trajectory, keys)[0]

    def changed(at):
        """Another action at a time step, another probability of it, and another reward and discount of what it led to."""
        output, timestep = trajectory.actor_output, trajectory.timestep
        return trajectory.replace(
            actor_output=output.replace(
                action=output.action.at[at].set(1 - output.action[at] % 2), log_prob=output.log_prob.at[at].add(-1.0)
            ),
            timestep=timestep.replace(
                reward=timestep.reward.at[at + 1].add(10.0), discount=timestep.discount.at[at + 1].set(0.3)
            ),
        )

    before, after, other = (gradients(state, data, keys[None]) for data in (trajectory, changed(last), changed(last - 1)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), before, after)
    apart = [np.max(np.abs(x - y)) for x, y in zip(*map(jax.tree.leaves, (before, other)), strict=True)]
    assert max(apart) > 1e-3  # the control: a transition
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(before))


@pytest.mark.parametrize("form", sorted(name for name in FORMS if "target_period" in str(FORMS[name])))
def test_a_target_network_is_a_copy_from_time_to_time(form):
    agent, (state, _) = make(form), acted(form)
    new = jax.tree.map(lambda x: x + 1, state.params)
    for num_updates in range(1, 11):
        moved = agent.update_target(new, state.target_params, jnp.int32(num_updates))
        expected = {name: (new if num_updates % 5 == 0 else state.params)[name] for name in state.target_params}
        jax.tree.map(np.testing.assert_array_equal, moved, expected)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_a_run_resumes_bit_for_bit(form, tmp_path):
    """6 updates, a checkpoint and 6 more are 12 updates: parameters, targets, optimizer, replay, priorities, the overlap."""
    settings = [f"agent.{name}={value}" for name, value in {**FORMS[form], "unroll_length": T}.items()]
    request = jobs.Request("anakin", form.split()[0], "catch", devices=1, settings=(*settings, "anakin.num_envs=8"))
    parts = jobs.build(jobs.new_job(request)[0])
    runtime = Anakin(parts.agent, parts.environment, parts.plan)

    start = runtime.checkpoint(runtime.init())

    def after(saved, num_updates):
        state, _ = runtime.run(runtime.restore(jax.tree.map(jnp.copy, saved)), num_updates)
        return state, [tree_sha256(x) for x in (state.train_state.params, runtime.checkpoint(state))]

    state, half = after(start, 6)
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.save(6, runtime.checkpoint(state), [runtime.actor_params(state)], {}, wait=True)
    checkpoints.close()
    _, resumed = after(Checkpoints(tmp_path, {}).restore(start).state, 6)
    state, once = after(start, 12)
    assert resumed == once
    assert not set(half) & set(once)
    if parts.plan.priority_exponent:  # they were set, and to more than what new unrolls get
        assert len(np.unique(state.replay.priority)) > 8
