"""Nav: which loss teaches what, what the memory sees and forgets, labels in and out of the loss; and it learns."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from podracer import registry, types
from podracer.agents.nav import losses
from podracer.agents.nav.agent import Nav
from podracer.agents.nav.config import VARIANTS, NavConfig
from podracer.agents.nav.networks import encoder_input
from podracer.config import JobConfig, override
from podracer.environment import JaxEnvironment
from podracer.nets.torso import TorsoConfig
from podracer.plan import make_plan
from podracer.runtimes.anakin import Anakin
from podracer.runtimes.sebulba.runtime import Sebulba
from podracer.types import FIRST, LAST, MID, ActorOutput, EnvironmentSpec, Mode, TimeStep, Trajectory

A, B, T, SQUARES = 3, 2, 6, 5
SMALL = NavConfig(
    torso=TorsoConfig(kind="mlp", hidden=(8,)), reward_lstm=4, lstm=6, depth_hidden=(7,), depth_power=1.0, unroll_length=T
)
ALL = {"beta_d1": 1.0, "beta_d2": 1.0, "beta_l": 1.0}
AUX = {
    "depth": specs.BoundedArray((2, 3), np.float32, 0.0, 1.0),
    "position": specs.DiscreteArray(SQUARES),
    "loop_closure": specs.Array((), np.bool_),
}
SPEC = EnvironmentSpec(
    name="synthetic",
    observation={"rgb": specs.Array((2, 4, 3), np.uint8), "velocity": specs.Array((6,), np.float32)},
    action=specs.DiscreteArray(A),
    aux=AUX,
)
STEP_TYPES = np.array([[MID, MID, LAST, FIRST, MID, MID, MID], [MID] * 7]).T


@functools.cache
def make(spec_name="plain", **changes):
    spec = {
        "plain": SPEC,
        "unlabelled": SPEC.replace(aux=()),
        "continuous": SPEC.replace(action=specs.BoundedArray((2,), np.float32, -1.0, 1.0)),
        "rgbd": SPEC.replace(observation={**SPEC.observation, "depth": specs.Array((2, 4, 1), np.float32)}),
    }[spec_name]
    return Nav(spec, dataclasses.replace(SMALL, **changes))


@functools.cache
def train_state(agent):
    """With outputs far from 0."""
    state = jax.jit(agent.init)(jax.random.key(0))
    return state.replace(params=jax.tree.map(lambda x: 3.0 * x, state.params))


def timesteps(agent, seed=0):
    rng = np.random.default_rng(seed)

    def draw(spec):
        shape = (T + 1, B, *spec.shape)
        if spec.dtype == np.bool_:
            return jnp.asarray(rng.random(shape) < 0.4)
        if np.issubdtype(spec.dtype, np.integer):
            return jnp.asarray(rng.integers(0, getattr(spec, "num_values", 256), shape), spec.dtype)
        return jnp.asarray(rng.random(shape), jnp.float32)

    is_spec = lambda leaf: isinstance(leaf, specs.Array)  # noqa: E731
    return TimeStep(
        step_type=jnp.asarray(STEP_TYPES, jnp.int32),
        reward=jnp.asarray(np.where(STEP_TYPES == FIRST, 0, rng.normal(size=STEP_TYPES.shape)), jnp.float32),
        discount=jnp.ones(STEP_TYPES.shape, jnp.float32),
        observation=jax.tree.map(draw, agent.spec.observation, is_leaf=is_spec),
        aux=jax.tree.map(draw, agent.spec.aux, is_leaf=is_spec),
    )


def warm(agent):
    """An actor state in the middle of an episode."""
    rng = np.random.default_rng(7)
    start = agent.initial_actor_state(B)
    return start.replace(core=jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), start.core))


@functools.cache
def acting(agent):
    return jax.jit(functools.partial(agent.act, mode=Mode.TRAIN))


@functools.cache
def played(agent):
    """An unroll of acting, without labels, in a trajectory that has them."""
    timestep, state, outputs = timesteps(agent), warm(agent), []
    start = state
    for t in range(T):
        now = jax.tree.map(lambda x, t=t: x[t], timestep).unlabelled()
        output, state = acting(agent)(train_state(agent).params, state, now, jax.random.split(jax.random.key(t), B))
        outputs.append(output)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *outputs)
    return Trajectory(timestep=timestep, actor_output=stacked, actor_state=start)


@functools.cache
def unrolling(agent):
    def unroll(params, trajectory):
        state = trajectory.actor_state
        action = jnp.concatenate([state.action[None], trajectory.actor_output.action])
        return agent._net.apply(params, trajectory.timestep, action, state.core)[0]

    return jax.jit(unroll)


def outputs_of(agent, trajectory):
    return unrolling(agent)(train_state(agent).params, trajectory)


@functools.cache
def updating(agent):
    one = lambda state, trajectory, key: agent.update(state, trajectory, key, "devices")  # noqa: E731
    return jax.jit(jax.vmap(one, in_axes=None, axis_name="devices", axis_size=1))


# Labels.


def test_depth_falls_into_the_bands_of_the_paper():
    edges = np.float32(losses.DEPTH_EDGES)
    np.testing.assert_array_equal(losses.depth_bands(edges), [0, 1, 2, 3, 4, 5, 6, 7, 7])
    below = np.nextafter(edges[1:], np.float32(0))
    np.testing.assert_array_equal(losses.depth_bands(below), np.arange(8))


def test_depth_is_taken_to_a_power_before_it_is_told():
    depth = jnp.array([[0.5, 0.8, 0.95, 1.0]])  # to the power 10: 0.001, 0.107, 0.599, 1
    sure = lambda bands: 50.0 * jax.nn.one_hot(jnp.array([bands]), 8)  # noqa: E731
    loss, metrics = losses.depth_loss(sure([0, 1, 5, 7]), depth, 10.0)
    assert loss == pytest.approx(0, abs=1e-6)
    assert metrics["accuracy"] == 1
    loss, metrics = losses.depth_loss(sure([0, 1, 5, 0]), depth, 10.0)
    assert loss == pytest.approx(50 / 4)
    assert [float(metrics[f"accuracy_{i}"]) for i in (0, 1, 5, 7)] == [1, 1, 1, 0]
    loss, metrics = losses.depth_loss(depth**10 - 0.1, depth, 10.0)
    assert loss == pytest.approx(0.5 * 0.1**2, rel=1e-4)
    assert metrics["accuracy"] == pytest.approx(2 / 4)  # 0.007 and 0.499 lie lower than 0.107 and 0.599


def test_loops_are_scored_by_f1():
    logit, label = jnp.array([1.0, 2.0, -1.0, -1.0, 3.0]), jnp.array([True, True, True, False, False])
    loss, metrics = losses.loop_loss(logit, label)
    sigmoid = 1 / (1 + np.exp(-np.asarray(logit, np.float64)))
    assert loss == pytest.approx(-np.mean(np.where(label, np.log(sigmoid), np.log(1 - sigmoid))), rel=1e-5)
    assert metrics["f1"] == pytest.approx(2 / 3)  # precision and recall are 2 / 3
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert losses.loop_loss(-logit[:2], label[3:])[1]["f1"] == 0


def test_first_predictions_know_nothing():
    agent = make(**ALL)
    trajectory = played(agent)
    outputs = unrolling(agent)(jax.jit(agent.init)(jax.random.key(1)).params, trajectory)
    found, _ = losses.auxiliary_losses(outputs, trajectory.timestep.aux, 1.0)
    expected = {"d1": math.log(8), "d2": math.log(8), "loop": math.log(2), "position": math.log(SQUARES)}
    assert {name: float(loss) for name, loss in found.items()} == pytest.approx(expected, rel=0.02)


# Gradients.


def test_every_loss_teaches_what_it_should_and_nothing_else():
    agent = make(**ALL)
    trajectory = played(agent)

    def by_name(params):
        outputs = unrolling(agent)(params, trajectory)
        return losses.auxiliary_losses(outputs, trajectory.timestep.aux, 1.0)[0]

    jacobian = jax.jit(jax.jacrev(by_name))(train_state(agent).params)
    modules = {"encoder": "mlp", "lstm 1": "lstm", "lstm 2": "lstm_1", "policy": "policy", "value": "value"}
    modules |= {name: name for name in ("d1", "d2", "loop_closure", "position")}
    parts = {name.split("/")[0] for name in jacobian["d1"]}
    assert parts == set(modules.values())
    taught = {
        loss: {
            part
            for part, module in modules.items()
            if any(np.any(x != 0) for name in grads if name.split("/")[0] == module for x in jax.tree.leaves(grads[name]))
        }
        for loss, grads in jacobian.items()
    }
    assert taught == {
        "d1": {"encoder", "d1"},
        "d2": {"encoder", "lstm 1", "lstm 2", "d2"},
        "loop": {"encoder", "lstm 1", "lstm 2", "loop_closure"},
        "position": {"position"},
    }


def test_without_weights_it_is_plain_nav_bit_for_bit():
    """The update of an agent that has labels and a probe, and of one whose environment has no labels at all."""
    agent, plain = make(), make("unlabelled")
    trajectory, keys = played(agent), jax.random.split(jax.random.key(0), B)
    state, bare = (jax.jit(x.init)(jax.random.key(3)) for x in (agent, plain))
    for _ in range(3):
        state, _ = jax.tree.map(lambda x: x[0], updating(agent)(state, trajectory, keys))
        bare, _ = jax.tree.map(
            lambda x: x[0], updating(plain)(bare, trajectory.replace(timestep=trajectory.timestep.unlabelled()), keys)
        )
    own = {name: value for name, value in state.params.items() if not name.startswith("position")}
    assert set(own) == set(bare.params) != set(state.params)
    jax.tree.map(np.testing.assert_array_equal, own, bare.params)
    assert np.any(state.params["position/linear"]["b"] != 0)


def test_weights_count():
    agent, heavier = make(**ALL), make(**{**ALL, "beta_d2": 3.0})
    state, trajectory = train_state(agent), played(agent)
    one, three = (jax.jit(x.loss)(state.params, state, trajectory, None) for x in (agent, heavier))
    assert three[0] - one[0] == pytest.approx(2 * float(one[1]["d2_loss"]), rel=1e-4)
    assert one[0] == pytest.approx(float(one[1]["loss"] + one[1]["position_loss"]), rel=1e-5)


# Memory and inputs.


def test_an_unroll_is_its_steps_one_by_one():
    agent = make(**ALL)
    trajectory = played(agent)
    outputs = outputs_of(agent, trajectory)
    log_prob = agent._policy.log_prob(outputs.policy[:-1], trajectory.actor_output.action)
    np.testing.assert_allclose(log_prob, trajectory.actor_output.log_prob, atol=1e-5)


def moves(agent, change):
    """`[T+1, B]` bool: where `change` of a trajectory moves the policy or the value."""
    trajectory = played(agent)
    before, after = (outputs_of(agent, x) for x in (trajectory, change(trajectory)))
    far = lambda x, y: np.abs(np.asarray(x) - np.asarray(y)) > 1e-6  # noqa: E731
    return far(before.policy, after.policy).any(-1) | far(before.value, after.value)


def test_memory_is_forgotten_where_an_episode_starts():
    for memory in ("lstm", "stacked"):
        moved = moves(make(memory=memory), lambda x: x.replace(actor_state=x.actor_state.replace(core=shifted(x))))
        assert moved[:3, 0].all()
        assert not moved[3:, 0].any()
        assert moved[:, 1].all()


def shifted(trajectory):
    return jax.tree.map(lambda x: x + 1.0, trajectory.actor_state.core)


def test_previous_reward_and_action_are_seen_but_at_the_start_of_an_episode():
    agent = make()

    def paid(t):
        def change(x):
            return x.replace(timestep=x.timestep.replace(reward=x.timestep.reward.at[t, 0].add(1.0)))

        return moves(agent, change)

    def acted(t):
        def change(x):
            action = x.actor_output.action
            return x.replace(actor_output=x.actor_output.replace(action=action.at[t].set((action[t] + 1) % A)))

        return moves(agent, change)

    assert not paid(3).any()  # FIRST
    assert paid(5)[5:, 0].all()  # also where an agent respawns: that is a step like others
    assert not paid(5)[:5].any()
    assert not acted(2)[:, 0].any()  # the action at LAST
    assert acted(4)[5:].all()
    assert not acted(4)[:5].any()


@pytest.mark.parametrize(("memory", "sees"), [("stacked", True), ("lstm", False), ("none", False)])
def test_only_nav_sees_velocity_and_rewards(memory, sees):
    def change(x):
        seen = x.timestep.observation
        seen = {**seen, "velocity": seen["velocity"] + 1.0}
        return x.replace(timestep=x.timestep.replace(observation=seen, reward=x.timestep.reward + 1.0))

    assert moves(make(memory=memory), change).all() == sees
    assert moves(make(memory=memory), change).any() == sees


def test_depth_as_input_is_a_fourth_channel():
    agent = make("rgbd")
    assert encoder_input(timesteps(agent).observation).shape == (T + 1, B, 2, 4, 4)

    def change(x):
        seen = x.timestep.observation
        return x.replace(timestep=x.timestep.replace(observation={**seen, "depth": seen["depth"] + 1.0}))

    assert moves(agent, change).all()


# Settings.


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_a_loss(name):
    changes = {key.removeprefix("agent."): value for key, value in VARIANTS[name].items() if key.startswith("agent.")}
    agent = make("rgbd" if "env.depth_input" in VARIANTS[name] else "plain", **changes)
    state = jax.eval_shape(agent.init, jax.random.key(0))
    trajectory = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, example(agent)))
    loss, metrics = jax.eval_shape(agent.loss, state.params, state, trajectory, None)
    assert loss.shape == ()
    heads = {"d1": "beta_d1", "d2": "beta_d2", "loop": "beta_l"}
    assert {name for name in heads if f"{name}_loss" in metrics} == {name for name in heads if heads[name] in changes}
    assert "position_accuracy" in metrics


def example(agent):
    action = jnp.zeros((T, B, *agent.spec.action.shape), agent.spec.action.dtype)
    output = ActorOutput(action=action, log_prob=jnp.zeros((T, B)))
    return Trajectory(timestep=agent.spec.example((T + 1, B)), actor_output=output, actor_state=agent.initial_actor_state(B))


def test_regression_and_continuous_actions():
    agent = make("continuous", **ALL, depth="regression")
    assert outputs_of(agent, played(agent)).d2.shape == (T + 1, B, 2, 3)
    state = train_state(agent)
    loss, metrics = jax.jit(agent.loss)(state.params, state, played(agent), None)
    assert np.isfinite(loss)
    assert metrics["d1_loss"] > 0


def test_what_cannot_be_is_refused_in_one_line():
    with pytest.raises(ValueError, match="beta_l needs the label 'loop_closure', which synthetic does not give"):
        make("unlabelled", beta_l=1.0)
    with pytest.raises(ValueError, match="beta_d2 must be at least 0"):
        dataclasses.replace(SMALL, beta_d2=-1.0)


# In the runtimes.


class Cue(JaxEnvironment):
    """A cue at the first step, then two steps of nothing; the reward of the last action is 1 if it is the cue, else -1.

    All labels tell the cue, also where it is no longer seen.
    """

    spec = SPEC.replace(name="cue", action=specs.DiscreteArray(2))

    def _see(self, cue, shown):
        rgb = jnp.full((2, 4, 3), 255, jnp.uint8) * (shown * cue).astype(jnp.uint8)
        depth = jnp.full((2, 3), 0.1 + 0.8 * cue, jnp.float32)
        aux = {"depth": depth, "position": cue, "loop_closure": cue == 1}
        return {"rgb": rgb, "velocity": jnp.zeros(6)}, aux

    def reset(self, key):
        cue = jax.random.bernoulli(key).astype(jnp.int32)
        return (cue, jnp.int32(0)), types.restart(*self._see(cue, 1))

    def step(self, state, action, key):
        cue, count = state
        over = count == 2
        observation, aux = self._see(cue, 0)
        reward = jnp.where(over, jnp.where(action == cue, 1.0, -1.0), 0.0)
        return (cue, count + 1), types.transition(reward, observation, terminated=over, aux=aux)


def build(runtime, **changes):
    environment = Cue()
    config = dataclasses.replace(SMALL, **{**ALL, "unroll_length": 8, "learning_rate": 5e-3, "lstm": 16, **changes})
    job = JobConfig("nav", "cue", config, (), runtime=runtime.__name__.lower())
    few = {"anakin.num_envs": 16, "sebulba.actor_devices": 1, "sebulba.learner_devices": 1, "sebulba.sync": True}
    job, agent = override(job, few), Nav(environment.spec, config)
    return runtime(agent, environment, make_plan(job, agent, len(jax.devices())))


@pytest.fixture(scope="module")
def anakin():
    return build(Anakin)


def test_sebulba_in_turns_is_anakin(anakin):
    expected, _ = anakin.run(anakin.init(), 4)
    runtime = build(Sebulba)
    try:
        got, _ = runtime.run(runtime.init(), 4)
        got = jax.device_get(runtime.train_state(got))
    finally:
        runtime.close()
    # Adam makes much of what rounding does to the least gradients.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-3), got.params, expected.train_state.params)


def test_memory_learns_what_the_encoder_cannot_know(anakin):
    """The negative controls: the same without memory, and the encoder's own head of depth."""
    state, _ = anakin.run(anakin.init(), 300)
    _, learned = anakin.run(state, 20)
    assert learned["episode_return"] > 0.9
    for name in ("d2_accuracy", "loop_accuracy", "loop_f1", "position_accuracy"):
        assert learned[name] > 0.95, name
    assert learned["d1_accuracy"] < 0.75  # the cue is seen in 1 of 4 steps
    forgetful = build(Anakin, memory="none")
    state, _ = forgetful.run(forgetful.init(), 300)
    _, learned = forgetful.run(state, 20)
    assert learned["episode_return"] < 0.4
    assert learned["position_accuracy"] < 0.75


def test_depth_as_the_defaults_have_it_can_be_told_apart():
    """The default mazes' depth is in proportion to distance: to the paper's power nearly all of it would be one band."""
    environment = registry.env("nav/ray_maze").make()
    label = jax.jit(jax.vmap(lambda key: environment.reset(key)[1].aux["depth"]))(jax.random.split(jax.random.key(0), 64))
    of_bands = lambda power: np.bincount(np.ravel(losses.depth_bands(label**power))) / label.size  # noqa: E731
    assert of_bands(Nav.Config().depth_power).max() < 0.8
    assert of_bands(10.0).max() > 0.99
