"""MuZero: targets and losses against independent answers, and what each setting of acting does."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from podracer.agents.muzero.agent import MuZero
from podracer.agents.muzero.config import EvaluationConfig, MuZeroConfig
from podracer.agents.muzero.losses import muzero_loss
from podracer.agents.muzero.networks import Prediction
from podracer.agents.muzero.targets import Targets, make_targets
from podracer.nets.dynamics import DynamicsConfig
from podracer.nets.heads import Bins, BinsConfig
from podracer.nets.history import HistoryConfig
from podracer.nets.policies import Categorical
from podracer.nets.torso import TorsoConfig
from podracer.ops import columns
from podracer.search import SearchConfig
from podracer.stores import ring
from podracer.types import FIRST, LAST, MID, ActorOutput, EnvironmentSpec, Mode, TimeStep, Trajectory

A, T, B = 3, 6, 4
SMALL = MuZeroConfig(
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


class Linear:
    """Networks that are matrices, with a model that leaves its state as it is."""

    @staticmethod
    def root(params, observation):
        return observation @ params["root"]

    @staticmethod
    def step(params, state, action):
        return state + action @ params["step"]

    @staticmethod
    def predict(params, state):
        return Prediction(state @ params["policy"], state @ params["value"])

    @staticmethod
    def reward(params, state):
        return state @ params["reward"]


@pytest.mark.parametrize("num_steps", [1, 2, 5])
@pytest.mark.parametrize("dynamics_gradient", [0.5, 0.25])
def test_model_steps_weigh_one_in_k_and_let_half_of_the_gradient_through(num_steps, dynamics_gradient):
    """A model that changes nothing, and constant targets: every prediction has the loss, and the gradient, of the root's."""
    config = dataclasses.replace(
        SMALL, model_steps=num_steps, dynamics_gradient=dynamics_gradient, value_weight=1.0, reward_weight=0.0
    )
    bins, rng, ones = Bins(config.bins), np.random.default_rng(0), jnp.ones((T + 1, B))
    shapes = {"root": (4, 8), "policy": (8, A), "value": (8, bins.num_bins), "reward": (8, bins.num_bins)}
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    params["step"] = jnp.zeros((A, 8))
    observation = jnp.broadcast_to(jnp.asarray(rng.normal(size=4), jnp.float32), (T + 1, B, 4))
    weights = jnp.broadcast_to(jnp.array([0.2, 0.3, 0.5]), (T + 1, B, A))
    trajectory = Trajectory(
        timestep=timesteps([MID] * (T + 1)),
        actor_output=ActorOutput(action=jnp.zeros((T, B), jnp.int32), log_prob=jnp.zeros((T, B))),
        actor_state=(),
        targets=Targets(weights, (), 1.5 * ones, ones, ones, ones, {}),
    )

    def alone(params):
        prediction = Linear.predict(params, Linear.root(params, observation[0, 0]))
        policy_loss = -jnp.sum(weights[0, 0] * jax.nn.log_softmax(prediction.policy))
        return policy_loss + bins.cross_entropy(prediction.value, jnp.float32(1.5))

    def whole(params):
        return muzero_loss(params, Linear, Categorical(A), bins, config, observation, trajectory)[0]

    expected, found = jax.grad(alone)(params), jax.grad(whole)(params)
    # Of the predictions after k steps there are T - k + 1. Together they weigh as much as those at the root.
    steps = np.arange(1, num_steps + 1)
    through = np.average(dynamics_gradient**steps, weights=T - steps + 1)
    np.testing.assert_allclose(whole(params), 2 * alone(params), rtol=1e-5)
    for name, scale in (("policy", 2), ("value", 2), ("root", 1 + through)):
        np.testing.assert_allclose(found[name], scale * expected[name], rtol=1e-4, atol=1e-5)


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


def test_importance_weighs_columns_and_priorities_are_errors_of_real_transitions():
    agent = make(importance_exponent=0.5, priority_exponent=1.0)
    train_state, trajectory = unroll(agent, timesteps([MID, MID, LAST, FIRST, MID, MID, MID]))
    trajectory = relabel(agent, train_state, trajectory)
    error = np.abs(trajectory.targets.search_value - trajectory.targets.value)[:-1]
    priority = agent.loss(train_state.params, train_state, trajectory, None)[1]["priority"]
    np.testing.assert_allclose(priority, np.mean(error[[0, 1, 3, 4, 5]], axis=0), rtol=1e-5)
    assert np.all(priority > 0)
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


def test_importance_makes_prioritised_replay_uniform_in_expectation():
    """With beta = 1 the loss of what is drawn by priority is that of all that is stored, each as often."""
    num, priority = 4000, jnp.array([[8.0, 1.0, 0.5, 4.0]])
    agent = make(priority_exponent=0.7)
    # Where priorities are small most is masked, and the loss is small too.
    timestep, broken = timesteps([MID] * (T + 1)), jnp.array([LAST, FIRST] * (T // 2) + [LAST])
    step_type = timestep.step_type.at[:, 1:3].set(broken[:, None])
    train_state, stored = unroll(agent, timestep.replace(step_type=step_type))
    unrolls = columns.batch_major(stored)
    replay = ring.init(jax.tree.map(lambda x: x[:1], unrolls), B, prioritized=True)
    for i in range(B):
        replay, _ = ring.insert(replay, jax.tree.map(lambda x, i=i: x[i : i + 1], unrolls))
    replay = ring.prioritize(replay, jnp.arange(B)[None], priority)

    @jax.jit
    def loss(unrolls, importance):
        trajectory = columns.batch_major(unrolls).replace(importance=importance)
        keys = jax.random.split(jax.random.key(0), num)
        _, trajectory = agent.relabel(train_state, trajectory, keys, "devices")
        return agent.loss(train_state.params, train_state, trajectory, None)[0]

    drawn, _, importance = ring.sample(replay, jax.random.key(1)[None], num, agent.data_spec().priority_exponent)
    drawn, every = (jax.tree.map(f, t) for f, t in ((lambda x: x[0], drawn), (lambda x: jnp.repeat(x, num // B, 0), unrolls)))
    ones = jnp.ones(num)
    np.testing.assert_allclose(loss(drawn, importance[0]), loss(every, ones), rtol=0.02)
    assert loss(drawn, ones) > 1.2 * loss(every, ones)  # the negative control


@pytest.mark.parametrize("bootstrap", ["search", "target"])
@pytest.mark.parametrize("num_steps", [2, 50])
def test_value_targets_bootstrap_from_stored_searches_or_from_the_target_network(bootstrap, num_steps):
    agent = make(bootstrap=bootstrap, return_steps=num_steps)
    timestep = timesteps([MID, MID, LAST, FIRST, MID, MID, MID])  # with a truncation, which bootstraps too
    train_state, trajectory = unroll(agent, timestep)
    shifted = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(3), x.shape), train_state.params)
    train_state = train_state.replace(target_params=shifted)
    now = jax.vmap(lambda x: agent._predict(shifted, x)[1])(timestep.observation)
    assert np.min(np.abs(now[:-1] - trajectory.actor_output.value)) > 0.01
    value = now if bootstrap == "target" else jnp.concatenate([trajectory.actor_output.value, now[-1:]])
    if bootstrap == "target":  # what the searches found is not looked at
        poison = jnp.full((T, B), jnp.nan)
        trajectory = trajectory.replace(actor_output=trajectory.actor_output.replace(value=poison))
    targets = relabel(agent, train_state, trajectory).targets
    expected = reference_values(timestep, np.asarray(value), SMALL.discount, num_steps)
    np.testing.assert_allclose(targets.value, expected, atol=1e-3)  # float32 cannot invert the bins' transform any better
    np.testing.assert_allclose(targets.search_value, value, atol=1e-3)
    assert jax.tree.all(jax.tree.map(lambda x: bool(np.all(np.isfinite(x))), targets))


def test_reanalysed_columns_bootstrap_from_their_new_searches_in_either_case():
    search, target = (make(bootstrap=name, reanalyze_share=0.5) for name in ("search", "target"))
    train_state, trajectory = unroll(search, timesteps([MID] * (T + 1)))
    one, two = (relabel(agent, train_state, trajectory).targets for agent in (search, target))
    np.testing.assert_array_equal(one.value[:, B // 2 :], two.value[:, B // 2 :])
    assert np.any(one.value[:, : B // 2] != two.value[:, : B // 2])


@pytest.mark.parametrize(
    ("share", "columns"), [(0.0, []), (0.25, [4, 7]), (0.5, [3, 4, 6, 7]), (0.75, [2, 3, 4, 5, 6, 7]), (1.0, range(8))]
)
def test_of_every_environment_as_much_is_reanalysed_on_however_many_devices(share, columns):
    """Online a, b; replayed a, a, a, b, b, b. A device that has one environment alone takes of it what one with both takes."""
    agent = make(reanalyze_share=share)
    assert list(agent._columns_to_reanalyze(8)) == list(columns)
    alone = agent._columns_to_reanalyze(4)
    of_a, of_b = [0, 2, 3, 4], [1, 5, 6, 7]
    assert sorted([of_a[i] for i in alone] + [of_b[i] for i in alone]) == list(columns)


def test_a_share_that_is_no_whole_number_of_columns_is_refused():
    with pytest.raises(ValueError, match="take a multiple of"):
        make(reanalyze_share=0.3)


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


def test_what_cannot_be_is_refused_in_one_line():
    with pytest.raises(ValueError, match="num_sampled_actions=20"):
        make(continuous=True)
    with pytest.raises(ValueError, match="temperatures need"):
        make(temperatures=(1.0, 0.5))
    with pytest.raises(ValueError, match="comes without its simulator"):
        make(model="simulator")
