"""Muesli: targets and losses on synthetic unrolls, against independent answers."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from podracer.agents.muesli import losses, policy
from podracer.agents.muesli.agent import Muesli
from podracer.agents.muesli.config import MuesliConfig
from podracer.nets.dynamics import DynamicsConfig
from podracer.nets.heads import Bins, BinsConfig
from podracer.nets.recurrent import CoreConfig
from podracer.nets.torso import TorsoConfig
from podracer.search import SearchConfig
from podracer.types import FIRST, LAST, MID, ActorOutput, EnvironmentSpec, Mode, TimeStep, Trajectory

A, T, B = 3, 6, 2
SMALL = MuesliConfig(
    torso=TorsoConfig(hidden=(8,)),
    core=CoreConfig(size=8),
    dynamics=DynamicsConfig(size=8),
    bins=BinsConfig(num_bins=11, limit=5.0),
    head_hidden=(),
    unroll_length=T,
    model_steps=2,
    num_kl_samples=0,
    num_q_samples=0,
    discount=0.9,
)
SPEC = EnvironmentSpec(
    name="synthetic", observation=specs.Array((4,), np.float32), action=specs.DiscreteArray(A), aux=(), frames_per_step=1
)
CONTINUOUS = dataclasses.replace(SPEC, action=specs.BoundedArray((2,), np.float32, [-2.0, 0.0], [2.0, 1.0]))


def make(spec=SPEC, **changes):
    return Muesli(spec, dataclasses.replace(SMALL, **changes))


def observations(rng, shape, legal=None):
    board = rng.normal(size=(*shape, 4)).astype(np.float32)
    return jnp.asarray(board) if legal is None else {"board": jnp.asarray(board), "legal_actions": jnp.asarray(legal)}


def unroll(agent, step_type, discount=None, seed=0, legal=None):
    """Random data `[T+1, B]` with the given step types `[T+1]` in every column."""
    rng = np.random.default_rng(seed)
    length, batch = len(step_type), B
    step_type = np.tile(np.array(step_type, np.int32)[:, None], (1, batch))
    reward = np.where(step_type == FIRST, 0, rng.normal(size=step_type.shape)).astype(np.float32)
    discount = np.ones(step_type.shape) if discount is None else np.tile(np.array(discount)[:, None], (1, batch))
    observation = observations(rng, (length, batch), legal)
    parameters = jnp.asarray(rng.normal(size=(length - 1, batch, agent._policy.size)), jnp.float32)
    parameters = agent._policy.mask(parameters, jax.tree.map(lambda x: x[:-1], observation))
    keys = jax.random.split(jax.random.key(seed), (length - 1, batch))
    action = jax.vmap(jax.vmap(agent._policy.sample))(parameters, keys)
    return Trajectory(
        timestep=TimeStep(
            step_type=jnp.asarray(step_type),
            reward=jnp.asarray(reward),
            discount=jnp.asarray(discount, jnp.float32),
            observation=observation,
        ),
        actor_output=ActorOutput(action=action, log_prob=agent._policy.log_prob(parameters, action), logits=parameters),
        actor_state=agent.initial_actor_state(batch),
    )


def cut(trajectory, start, stop):
    """Time steps `start .. stop` (inclusive) and the actions between them."""
    return trajectory.replace(
        timestep=jax.tree.map(lambda x: x[start : stop + 1], trajectory.timestep),
        actor_output=jax.tree.map(lambda x: x[start:stop], trajectory.actor_output),
    )


@functools.cache
def _relabel(agent):
    def one(train_state, trajectory, key):
        return agent.relabel(train_state, trajectory, key, "devices")

    return jax.jit(jax.vmap(one, in_axes=(None, None, 0), axis_name="devices"))


def relabel(agent, train_state, trajectory, seed=7):
    """On one 'device'."""
    keys = jax.random.split(jax.random.key(seed), (1, trajectory.timestep.reward.shape[1]))
    return jax.tree.map(lambda x: x[0], _relabel(agent)(train_state, trajectory, keys))


EPISODES = [MID, LAST, FIRST, MID, LAST, FIRST, MID]


@pytest.fixture(scope="module")
def agent():
    return make(normalize=False)


@pytest.fixture(scope="module")
def state(agent):
    return agent.init(jax.random.key(0))


@pytest.mark.parametrize("ends", [0.0, 1.0])
def test_targets_of_two_episodes_are_those_of_each_one(state, ends):
    # At the last step of an unroll nothing is known of the behaviour, so only without its share are the halves equal.
    agent = make(normalize=False, target_share=1.0, behaviour_share=0.0, uniform_share=0.0)
    whole = unroll(agent, [FIRST, MID, LAST, FIRST, MID, LAST], [1, 1, ends, 1, 1, ends])
    targets = relabel(agent, state, whole)[1].targets
    for start, stop in ((0, 2), (3, 5)):
        part = relabel(agent, state, cut(whole, start, stop))[1].targets
        np.testing.assert_allclose(targets.advantage[start:stop], part.advantage, atol=1e-4)
        np.testing.assert_allclose(targets.value[start : stop + 1], part.value, atol=1e-4)
        np.testing.assert_allclose(targets.cmpo.weights[start:stop], part.cmpo.weights[:-1], atol=1e-4)


def test_a_terminated_step_is_worth_nothing_and_a_truncated_one_its_own_value(agent, state):
    terminated = relabel(agent, state, unroll(agent, EPISODES, [1, 0, 1, 1, 0, 1, 1]))[1].targets
    truncated = relabel(agent, state, unroll(agent, EPISODES, [1, 1, 1, 1, 1, 1, 1]))[1].targets
    np.testing.assert_array_equal(terminated.value[jnp.array([1, 4])], 0)
    assert np.all(np.asarray(truncated.value[jnp.array([1, 4])]) != 0)


def test_second_moment_is_updated_before_it_is_used():
    agent = make()
    train_state = agent.init(jax.random.key(0))
    trajectory = unroll(agent, [FIRST, MID, LAST, FIRST, MID, MID, MID])
    new_state, relabelled = relabel(agent, train_state, trajectory)
    mask = np.array([1, 1, 0, 1, 1, 1])[:, None]
    # With no past, the scale is this batch's own, so real transitions have a mean square of 1.
    advantage = np.asarray(relabelled.targets.advantage)
    np.testing.assert_allclose(np.sum(mask * advantage**2) / (5 * B), 1.0, rtol=1e-4)
    assert float(new_state.extra.decay_product) == pytest.approx(0.99)
    raw = relabel(make(normalize=False, advantage_scale=3.0), train_state, trajectory)[1].targets
    ratio = np.asarray(raw.q) / np.asarray(relabelled.targets.q)
    np.testing.assert_allclose(ratio, np.full_like(ratio, ratio.flat[0]), rtol=1e-2)  # one scale for both uses


def test_every_part_of_the_networks_learns(agent, state):
    trajectory = relabel(agent, state, unroll(agent, [FIRST, MID, LAST, FIRST, MID, MID, MID], [1, 1, 0, 1, 1, 1, 1]))[1]
    gradient = jax.jit(jax.grad(lambda params: agent.loss(params, state, trajectory, None)[0]))(state.params)
    assert all(np.all(np.isfinite(x)) and np.any(np.asarray(x) != 0) for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("spec", [SPEC, CONTINUOUS], ids=["discrete", "continuous"])
def test_policy_losses_are_finite_and_learn(spec):
    samples = {} if spec is SPEC else {"num_q_samples": 3, "num_kl_samples": 4}
    agent = make(spec, **samples)
    trajectory = relabel(agent, agent.init(jax.random.key(0)), unroll(agent, [FIRST] + [MID] * T))[1]
    parameters = jnp.asarray(np.random.default_rng(1).normal(size=(T, B, agent._policy.size)), jnp.float32)
    for kind in ("muesli", "pg", "cmpo", "mpo", "ppo", "trpo"):
        if kind == "mpo" and spec is CONTINUOUS:
            with pytest.raises(ValueError, match="discrete"):
                make(spec, policy_loss=kind, **samples)
            continue
        config = dataclasses.replace(agent.config, policy_loss=kind)

        def total(parameters, config=config):
            gradient, regularizer = losses.policy_losses(parameters, agent._policy, config, trajectory)
            assert gradient.shape == regularizer.shape == (T, B)
            return jnp.sum(gradient + regularizer)

        grad = np.asarray(jax.grad(total)(parameters))
        assert np.all(np.isfinite(grad))
        assert np.any(grad != 0)


@pytest.mark.parametrize(
    "changes", [{"returns": "vtrace"}, {"returns": "model"}, {"value_target": "return"}, {"beta_loo": True}]
)
def test_ablations_change_the_update(agent, state, changes):
    trajectory = unroll(agent, [FIRST] + [MID] * T)
    other = make(normalize=False, **changes)
    base, ablated = relabel(agent, state, trajectory)[1], relabel(other, state, trajectory)[1]
    parameters = trajectory.actor_output.logits + 0.1
    for_base = losses.policy_losses(parameters, agent._policy, agent.config, base)[0]
    for_other = losses.policy_losses(parameters, other._policy, other.config, ablated)[0]
    same_values = np.allclose(base.targets.value, ablated.targets.value, atol=1e-5)
    assert np.all(np.isfinite(for_other))
    assert not (same_values and np.allclose(for_base, for_other, atol=1e-5))


def test_sampled_values_and_cmpo_tend_to_exact_ones(agent, state):
    trajectory = unroll(agent, [FIRST] + [MID] * T)
    exact = relabel(agent, state, trajectory)[1].targets
    sampled = relabel(make(normalize=False, num_q_samples=20_000, num_kl_samples=20_000), state, trajectory)[1].targets
    np.testing.assert_allclose(exact.value, sampled.value, atol=0.02)
    np.testing.assert_allclose(exact.cmpo.weights, sampled.cmpo.weights, atol=0.02)
    np.testing.assert_allclose(jnp.sum(exact.cmpo.weights, -1), 1, atol=1e-5)


def test_actors_get_the_target_network_which_follows_at_its_rate():
    agent = make()
    state = agent.init(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 1.0, state.params)
    target = agent.actor_params(state)
    for _ in range(5):
        target = agent.update_target(params, target, jnp.int32(1))
    for new, old, now in zip(*map(jax.tree.leaves, (params, state.params, target)), strict=True):
        np.testing.assert_allclose(new - now, 0.9**5 * (new - old), rtol=1e-4)
    assert agent.actor_params(state) is state.target_params


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_recurrent_unroll_is_acting_step_by_step(kind):
    agent = make(core=CoreConfig(kind=kind, size=8), dynamics=DynamicsConfig(kind=kind, size=8))
    state = agent.init(jax.random.key(0))
    trajectory = unroll(agent, EPISODES)
    hidden = agent._networks.unroll(
        state.params, trajectory.timestep.observation, trajectory.timestep.first(), trajectory.actor_state
    )
    logits = agent._networks.predict(state.params, hidden).policy
    actor_state, keys = trajectory.actor_state, jax.random.split(jax.random.key(1), B)
    for t in range(len(EPISODES)):
        timestep = jax.tree.map(lambda x, t=t: x[t], trajectory.timestep)
        output, actor_state = agent.act(state.params, actor_state, timestep, keys, Mode.TRAIN)
        np.testing.assert_allclose(output.logits, logits[t], atol=1e-5)
    new_state, relabelled = relabel(agent, state, trajectory)
    assert np.isfinite(agent.loss(state.params, new_state, relabelled, keys)[0])


def test_illegal_actions_have_no_part_in_anything():
    observation = {"board": specs.Array((4,), np.float32), "legal_actions": specs.Array((A,), np.bool_)}
    legal = np.random.default_rng(3).uniform(size=(T + 1, B, A)) < 0.5
    legal[..., 1] = True
    for samples in (0, 16):
        agent = make(dataclasses.replace(SPEC, observation=observation), num_kl_samples=samples, num_q_samples=samples)
        state = agent.init(jax.random.key(0))
        trajectory = unroll(agent, [FIRST] + [MID] * T, legal=legal)
        assert np.all(np.take_along_axis(legal[:-1], np.asarray(trajectory.actor_output.action)[..., None], -1))
        new_state, relabelled = relabel(agent, state, trajectory)
        assert np.all(np.asarray(relabelled.targets.cmpo.weights)[~legal] == 0)
        logits = relabelled.targets.prior
        prior = agent._policy.prior(logits, logits, {"legal_actions": jnp.asarray(legal)})
        assert np.all(np.asarray(prior)[~legal] == 0)
        assert np.all(np.asarray(prior)[legal] >= 0.003 / A)
        assert np.isfinite(agent.loss(state.params, new_state, relabelled, None)[0])


def test_in_a_game_for_two_the_next_value_is_the_opponents():
    assert make()._q_discount == 0.9
    assert make(dataclasses.replace(SPEC, num_players=2))._q_discount == -0.9


class TestContinuous:
    config = dataclasses.replace(SMALL, num_q_samples=64, num_kl_samples=32)

    def test_density_is_that_of_its_samples(self):
        one = dataclasses.replace(SPEC, action=specs.BoundedArray((1,), np.float32, -2.0, 2.0))
        made = policy.make_policy(one, self.config)
        parameters = jnp.array([0.4, -0.3])
        grid = jnp.linspace(-1.9999, 1.9999, 4001)[:, None]
        density = np.exp(np.asarray(made.log_prob(parameters, grid), np.float64)) / 2  # of actions scaled to [-1, 1]
        assert np.trapezoid(density, grid[:, 0]) == pytest.approx(1.0, abs=2e-2)
        samples = jax.vmap(made.sample, in_axes=(None, 0))(parameters, jax.random.split(jax.random.key(0), 4000))
        assert np.mean(samples) == pytest.approx(np.trapezoid(density * grid[:, 0], grid[:, 0]), abs=0.06)
        assert np.all(np.abs(samples) <= 2)

    def test_actions_lie_in_their_bounds_and_survive_the_way_back(self):
        made = policy.make_policy(CONTINUOUS, self.config)
        parameters = jnp.array([[5.0, -5.0, 3.0, 3.0], [0.1, 0.2, -1.0, -1.0]])
        action = jax.vmap(made.sample)(parameters, jax.random.split(jax.random.key(0), 2))
        assert np.all(action >= np.array([-2.0, 0.0])) and np.all(action <= np.array([2.0, 1.0]))  # noqa: PT018
        assert np.all(np.isfinite(made.log_prob(parameters, action)))
        np.testing.assert_allclose(made._decode(made.encode(action)), action, atol=1e-5)
        assert np.all(np.isfinite(made.log_prob(parameters, jnp.array([[-2.0, 0.0], [2.0, 1.0]]))))

    def test_prior_is_the_mixture(self):
        made = policy.make_policy(CONTINUOUS, self.config)
        target, behaviour = jnp.array([0.1, 0.2, 0.3, 0.4]), jnp.array([-0.1, 0.5, 0.0, 0.4])
        action = jnp.array([0.5, 0.5])
        expected = 0.967 * np.exp(made.log_prob(target, action)) + 0.03 * np.exp(made.log_prob(behaviour, action)) + 0.003 / 4
        np.testing.assert_allclose(np.exp(made.prior_log_prob(target, behaviour, None, action)), expected, rtol=1e-4)

    def test_cmpo_raises_the_probability_of_better_actions(self):
        made = policy.make_policy(CONTINUOUS, self.config)
        parameters = jnp.zeros((1, 1, 4))
        drawn = made.candidates(parameters, parameters, None, jax.random.split(jax.random.key(0), 1))
        np.testing.assert_allclose(jnp.sum(drawn.value_weights, -1), 1, rtol=1e-5)
        target = made.cmpo_target(drawn, 5 * drawn.encoded[..., 0])
        np.testing.assert_allclose(jnp.sum(target.weights), 1, atol=0.2)
        grad = jax.grad(lambda p: jnp.sum(made.cross_entropy(p, target)))(parameters)[0, 0]
        assert grad[0] < 0  # a larger first coordinate
        assert abs(grad[1]) < abs(grad[0])


def test_values_survive_the_bins_and_gradients_flow_into_logits_alone():
    bins = Bins(BinsConfig())
    x = jnp.array([-50.0, -1.0, 0.0, 0.3, 7.0, 900.0])
    np.testing.assert_allclose(bins.scalar(jnp.log(bins.probabilities(x) + 1e-20)), x, rtol=1e-2, atol=1e-3)
    assert np.all(np.asarray(jax.grad(lambda y: jnp.sum(bins.cross_entropy(jnp.ones((6, 601)), y)))(x)) == 0)


@pytest.mark.parametrize(
    "changes",
    [{"target_share": 0.5}, {"model_steps": 0}, {"cmpo_clip": -1.0}, {"discount": 1.5}, {"num_q_samples": -1}, {"z_init": 0.0}],
)
def test_impossible_settings_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        dataclasses.replace(MuesliConfig(), **changes)


def test_evaluation_with_a_search_is_one_step_of_the_model_where_that_is_all_it_sees():
    search = SearchConfig(kind="bfs", num_simulations=A, max_depth=1, value_scale=100.0)
    agent = make(evaluation="search", search=search)
    state = agent.init(jax.random.key(0))
    params = jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(5), x.shape), state.params)
    now = SPEC.example((16,)).replace(observation=jax.random.normal(jax.random.key(1), (16, 4)))
    keys = jax.random.split(jax.random.key(2), 16)
    act = jax.jit(functools.partial(agent.act, mode=Mode.EVALUATE))
    action = act(params, agent.initial_actor_state(16), now, keys)[0].action
    hidden, _ = agent._networks.step(params, now.observation, now.first(), agent.initial_actor_state(16))
    root = jnp.expand_dims(agent._networks.root(params, hidden), 1)
    reward, value = agent._networks.model_q(params, agent._networks.model_step(params, root, jnp.eye(A)[None]))
    q = agent._bins.scalar(reward) + SMALL.discount * agent._bins.scalar(value)
    np.testing.assert_array_equal(action, jnp.argmax(q, axis=-1))
    assert len(np.unique(action)) > 1
