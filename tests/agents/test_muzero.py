"""MuZero: targets and losses against independent answers, and what each setting of acting does."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from podracer.agents.muzero.agent import MuZero
from podracer.agents.muzero.config import Config, EvaluationConfig
from podracer.agents.muzero.losses import priorities
from podracer.agents.muzero.targets import make_targets
from podracer.nets.dynamics import DynamicsConfig
from podracer.nets.heads import Bins, BinsConfig
from podracer.nets.history import HistoryConfig
from podracer.nets.torso import TorsoConfig
from podracer.search import SearchConfig
from podracer.types import FIRST, LAST, MID, EnvironmentSpec, Mode, TimeStep, Trajectory

A, T, B = 3, 6, 4
SMALL = Config(
    torso=TorsoConfig(hidden=(8,)),
    dynamics=DynamicsConfig(size=8),
    bins=BinsConfig(num_bins=11, limit=5.0),
    head_hidden=(),
    search=SearchConfig(num_simulations=6),
    unroll_length=T,
    model_steps=2,
    return_steps=3,
    discount=0.9,
)
SPEC = EnvironmentSpec(name="synthetic", observation=specs.Array((4,), np.float32), action=specs.DiscreteArray(A))
CONTINUOUS = dataclasses.replace(SPEC, action=specs.BoundedArray((2,), np.float32, [-2.0, 0.0], [2.0, 1.0]))


@functools.cache  # agents compile what they do once
def made(continuous, config):
    return MuZero(CONTINUOUS if continuous else SPEC, config)


def make(continuous=False, **changes):
    return made(continuous, dataclasses.replace(SMALL, **changes))


def timesteps(step_type, discount=None, seed=0):
    rng = np.random.default_rng(seed)
    step_type = np.tile(np.array(step_type, np.int32)[:, None], (1, B))
    discount = np.ones(step_type.shape) if discount is None else np.tile(np.array(discount, float)[:, None], (1, B))
    return TimeStep(
        step_type=jnp.asarray(step_type),
        reward=jnp.asarray(np.where(step_type == FIRST, 0, rng.normal(size=step_type.shape)), jnp.float32),
        discount=jnp.asarray(discount, jnp.float32),
        observation=jnp.asarray(rng.normal(size=(*step_type.shape, 4)), jnp.float32),
    )


@functools.cache
def acting(agent, mode=Mode.TRAIN):
    return jax.jit(functools.partial(agent.act, mode=mode))


def unroll(agent, timestep, seed=0):
    """What acting at these time steps gives."""
    train_state = agent.init(jax.random.key(seed))
    actor_state = start = agent.initial_actor_state(B)
    outputs = []
    for t in range(len(timestep.reward) - 1):
        now = jax.tree.map(lambda x, t=t: x[t], timestep)
        keys = jax.random.split(jax.random.key(t), B)
        output, actor_state = acting(agent)(agent.actor_params(train_state), actor_state, now, keys)
        outputs.append(output)
    outputs = jax.tree.map(lambda *x: jnp.stack(x), *outputs)
    return train_state, Trajectory(timestep=timestep, actor_output=outputs, actor_state=start)


def relabel(agent, train_state, trajectory):
    def one(train_state, trajectory, key):
        return agent.relabel(train_state, trajectory, key, "devices")[1]

    return jax.jit(one)(train_state, trajectory, jax.random.split(jax.random.key(7), B))


def reference_values(timestep, search_value, discount, num_steps):
    """n-step returns, one entry at a time."""
    step_type, reward, env_discount = map(np.asarray, (timestep.step_type, timestep.reward, timestep.discount))
    length, batch = step_type.shape
    value = np.zeros((length, batch))
    for t in range(length):
        for b in range(batch):
            if step_type[t, b] == LAST:
                value[t, b] = search_value[t, b] if env_discount[t, b] else 0.0
                continue
            total, factor, s = 0.0, 1.0, t
            while s < length - 1 and s < t + num_steps and (s == t or step_type[s, b] != LAST):
                s += 1
                total += factor * reward[s, b]
                factor *= discount * env_discount[s, b]
            value[t, b] = total + factor * search_value[s, b]
    return value


@pytest.mark.parametrize("num_steps", [1, 3, 50])
@pytest.mark.parametrize(
    ("step_type", "discount"),
    [
        ([MID] * 7, None),
        ([MID, MID, LAST, FIRST, MID, MID, MID], [1, 1, 0, 1, 1, 1, 1]),
        ([MID, MID, LAST, FIRST, MID, MID, MID], None),
        ([LAST, FIRST, LAST, FIRST, MID, MID, LAST], [0, 1, 0, 1, 1, 1, 0]),
        ([FIRST, MID, MID, MID, MID, LAST, FIRST], [1, -1, -1, -1, -1, 0, 1]),
    ],
)
def test_value_targets_are_n_step_returns(step_type, discount, num_steps):
    timestep = timesteps(step_type, discount)
    search_value = np.random.default_rng(1).normal(size=timestep.reward.shape).astype(np.float32)
    searched = jnp.concatenate([jnp.ones((T, B)), jnp.zeros((1, B))])
    targets = make_targets(timestep, jnp.full((T + 1, B, A), 1 / A), (), jnp.asarray(search_value), searched, 0.9, num_steps)
    np.testing.assert_allclose(targets.value, reference_values(timestep, search_value, 0.9, num_steps), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(targets.known[:-1], 1)
    np.testing.assert_array_equal(targets.known[-1], step_type[-1] == LAST and discount is not None and discount[-1] == 0)
    # Priorities: |nu - z| over real transitions.
    mask = np.asarray(timestep.step_type)[1:] != FIRST
    error = np.abs(search_value - np.asarray(targets.value))[:-1]
    np.testing.assert_allclose(priorities(targets, timestep), (error * mask).sum(0) / np.maximum(mask.sum(0), 1), rtol=1e-5)


def test_loss_by_hand_with_an_absorbing_end():
    """An episode of three steps that terminates, K = 2 and T = 3, against sums over single predictions."""
    agent = make(unroll_length=3)
    timestep = timesteps([FIRST, MID, MID, LAST], [1, 1, 1, 0])
    train_state, trajectory = unroll(agent, timestep)
    trajectory = relabel(agent, train_state, trajectory)
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(9), x.shape), train_state.params)
    loss, metrics = jax.jit(agent.loss)(params, train_state, trajectory, None)

    networks, bins, targets = agent._networks, Bins(SMALL.bins), trajectory.targets
    action, reward = trajectory.actor_output.action, timestep.reward
    total = np.zeros(5)
    for t in range(3):
        state = networks.root(params, timestep.observation[t])
        prediction = networks.predict(params, state)
        total[0] += jnp.mean(-jnp.sum(targets.weights[t] * jax.nn.log_softmax(prediction.policy), -1))
        total[1] += jnp.mean(bins.cross_entropy(prediction.value, targets.value[t]))
        for k in (1, 2):
            if t + k > 3:
                continue  # beyond the unroll nothing is known, an episode's end included
            state = networks.step(params, state, jax.nn.one_hot(action[t + k - 1], A))
            prediction = networks.predict(params, state)
            if t + k < 3:  # the terminal state has no policy
                total[2] += jnp.mean(-jnp.sum(targets.weights[t + k] * jax.nn.log_softmax(prediction.policy), -1))
            value = targets.value[t + k] if t + k < 3 else jnp.zeros(B)
            total[3] += jnp.mean(bins.cross_entropy(prediction.value, value))
            total[4] += jnp.mean(bins.cross_entropy(networks.reward(params, state), reward[t + k]))
    predictions = np.array([3, 3, 5, 5, 5])  # within the unroll: 3 at k = 1, 2 at k = 2
    names = ("policy_loss", "value_loss", "model_policy_loss", "model_value_loss", "reward_loss")
    np.testing.assert_allclose([metrics[name] for name in names], total / predictions, rtol=1e-4)
    weights = np.array([1, 0.25, 1, 0.25, 1])
    np.testing.assert_allclose(loss, np.sum(weights * total / predictions), rtol=1e-4)


def test_what_lies_beyond_a_termination_is_absorbing():
    agent = make(model_steps=3)
    timestep = timesteps([FIRST, MID, LAST, FIRST, MID, MID, MID], [1, 1, 0, 1, 1, 1, 1])
    train_state, trajectory = unroll(agent, timestep)
    trajectory = relabel(agent, train_state, trajectory)

    def loss(observation, reward):
        moved = timestep.replace(observation=observation, reward=reward)
        fresh = trajectory.replace(timestep=moved)
        return agent.loss(train_state.params, train_state, fresh, None)[1]

    before = jax.jit(loss)(timestep.observation, timestep.reward)
    # The terminal observation and the reward of FIRST are nobody's input or target.
    after = jax.jit(loss)(timestep.observation.at[2].add(5.0), timestep.reward.at[3].add(5.0))
    for name in ("policy_loss", "value_loss", "reward_loss", "model_value_loss"):
        np.testing.assert_allclose(before[name], after[name], rtol=1e-5)


def test_importance_weighs_columns():
    agent = make(importance_exponent=0.5, priority_exponent=1.0)
    train_state, trajectory = unroll(agent, timesteps([MID] * 7))
    trajectory = relabel(agent, train_state, trajectory)
    importance = jnp.array([4.0, 0.0, 1.0, 9.0])
    loss = lambda column, weight: agent.loss(  # noqa: E731
        train_state.params,
        train_state,
        jax.tree.map(lambda x: x[:, column] if x.ndim > 1 else x, trajectory).replace(
            actor_state=jax.tree.map(lambda x: x[column], trajectory.actor_state), importance=weight
        ),
        None,
    )[0]
    whole = loss(slice(None), importance)
    parts = [jnp.sqrt(w) * loss(slice(i, i + 1), jnp.ones(1)) for i, w in enumerate(importance)]
    np.testing.assert_allclose(whole, np.mean(parts), rtol=1e-4)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_reanalysis_searches_the_last_columns_again_with_the_target_network(share):
    agent = make(reanalyze_share=share)
    train_state, trajectory = unroll(agent, timesteps([MID] * 7))
    stale = relabel(make(), train_state, trajectory).targets
    shifted = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(3), x.shape), train_state.params)
    fresh = relabel(agent, train_state.replace(target_params=shifted), trajectory).targets
    kept = B - round(share * B)
    np.testing.assert_array_equal(stale.weights[:-1, :kept], fresh.weights[:-1, :kept])
    assert np.all(np.any(stale.weights[:-1, kept:] != fresh.weights[:-1, kept:], axis=-1))
    np.testing.assert_array_equal(fresh.searched[-1], [0] * kept + [1] * (B - kept))


def test_actors_learn_the_temperature_and_how_far_the_game_is():
    settings = {"temperatures": (1.0, 0.5), "temperature_updates": (10,), "temperature_moves": 3}
    agent = make(search=SearchConfig(kind="puct", num_simulations=6), **settings)
    moves = jnp.arange(5)
    np.testing.assert_array_equal(agent._temperature(jnp.int32(9), moves), [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(agent._temperature(jnp.int32(10), moves), [0.5, 0.5, 0.5, 0, 0])
    train_state, timestep = agent.init(jax.random.key(0)), timesteps([FIRST, MID, LAST, FIRST])
    state = agent.initial_actor_state(B)
    for t, expected in enumerate((1, 2, 3, 1)):
        now = jax.tree.map(lambda x, t=t: x[t], timestep)
        _, state = acting(agent)(agent.actor_params(train_state), state, now, jax.random.split(jax.random.key(t), B))
        np.testing.assert_array_equal(state.num_moves, expected)


@pytest.mark.parametrize("targets", ["search", "one_step"])
@pytest.mark.parametrize("behaviour", ["search", "prior"])
def test_variants_act_and_learn_as_they_say(behaviour, targets):
    agent = make(acting=behaviour, targets=targets, search=SearchConfig(kind="puct", num_simulations=20))
    full = make(search=SearchConfig(kind="puct", num_simulations=20))
    shallow = make(search=SearchConfig(kind="puct", num_simulations=20, max_depth=1))
    train_state, now = agent.init(jax.random.key(0)), jax.tree.map(lambda x: x[0], timesteps([MID]))
    params, keys = agent.actor_params(train_state), jax.random.split(jax.random.key(1), B)
    output, _ = acting(agent)(params, agent.initial_actor_state(B), now, keys)
    expected, _ = acting(full if targets == "search" else shallow)(params, agent.initial_actor_state(B), now, keys)
    np.testing.assert_allclose(output.search_weights, expected.search_weights, rtol=1e-5)
    prior = jax.nn.log_softmax(agent._predict(params.params, now.observation)[0])
    exact = jnp.take_along_axis(prior, output.action[:, None], -1)[:, 0]
    assert np.allclose(output.log_prob, exact, atol=1e-5) == (behaviour == "prior")


@pytest.mark.parametrize("kind", ["gumbel", "puct", "bfs"])
def test_evaluation_is_free_of_noise(kind):
    agent = make(evaluation=EvaluationConfig(kind=kind, num_simulations=10))
    train_state, now = agent.init(jax.random.key(0)), jax.tree.map(lambda x: x[0], timesteps([MID]))
    act = acting(agent, Mode.EVALUATE)
    params, state = agent.actor_params(train_state), agent.initial_actor_state(B)
    one, two = (act(params, state, now, jax.random.split(jax.random.key(seed), B))[0] for seed in (1, 2))
    np.testing.assert_array_equal(one.action, two.action)
    np.testing.assert_allclose(one.search_weights, two.search_weights, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"history": HistoryConfig(length=3, actions=True), "acting": "prior"},
        {"search": SearchConfig(num_simulations=6, num_sampled_actions=4), "reanalyze_share": 0.5},
    ],
)
def test_update_with_histories_and_with_sampled_continuous_actions(changes):
    agent = make("search" in changes, **changes)
    timestep = timesteps([MID, MID, LAST, FIRST, MID, MID, MID], [1, 1, 0, 1, 1, 1, 1])
    train_state, trajectory = unroll(agent, timestep)
    before = jax.device_get(train_state.params)
    keys = jax.random.split(jax.random.key(0), B)
    update = jax.jit(jax.vmap(agent.update, in_axes=(None, None, None, None), axis_name="d", axis_size=1), static_argnums=3)
    after, metrics = update(train_state, trajectory, keys, "d")
    assert np.isfinite(metrics["loss"]).all()
    moved = jax.tree.map(lambda x, y: bool(np.any(x != y[0])), before, jax.device_get(after.params))
    assert all(jax.tree.leaves(moved))


def test_observations_of_the_loss_are_those_of_acting():
    agent = make(history=HistoryConfig(length=3, actions=True), acting="prior")
    timestep = timesteps([MID, MID, LAST, FIRST, MID, MID, MID], [1, 1, 0, 1, 1, 1, 1])
    train_state, trajectory = unroll(agent, timestep)
    stacked = agent._stacked(trajectory)
    assert stacked.shape[-1] > 4
    # The log-probability of what was played tells what acting saw.
    policy = jax.vmap(lambda x: agent._predict(train_state.params, x)[0])(stacked)
    log_prob = jnp.take_along_axis(jax.nn.log_softmax(policy[:-1]), trajectory.actor_output.action[..., None], -1)[..., 0]
    np.testing.assert_allclose(log_prob, trajectory.actor_output.log_prob, rtol=1e-4, atol=1e-5)


def test_the_target_network_is_a_copy_from_time_to_time():
    agent = make(target_period=3)
    old, new = {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}
    for num_updates, expected in ((1, 0), (2, 0), (3, 1), (4, 0), (6, 1)):
        np.testing.assert_array_equal(agent.update_target(new, old, jnp.int32(num_updates))["w"], expected)


def test_what_cannot_be_is_refused_in_one_line():
    with pytest.raises(ValueError, match="num_sampled_actions=20"):
        make(continuous=True)
    with pytest.raises(ValueError, match="temperatures need"):
        make(temperatures=(1.0, 0.5))
    with pytest.raises(ValueError, match="comes without its simulator"):
        make(model="simulator")
