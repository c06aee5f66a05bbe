"""Muesli on problems small enough to enumerate: where its losses must point, and where they must end."""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dm_env import specs

from podracer.agents.muesli import losses, policy
from podracer.agents.muesli.agent import Muesli
from podracer.agents.muesli.config import MuesliConfig
from podracer.agents.muesli.networks import ModelPrediction, Prediction
from podracer.agents.muesli.targets import compute_targets
from podracer.nets.dynamics import DynamicsConfig
from podracer.nets.heads import Bins, BinsConfig
from podracer.nets.torso import TorsoConfig
from podracer.ops import columns, moments
from podracer.types import FIRST, LAST, MID, ActorOutput, EnvironmentSpec, Mode, TimeStep, Trajectory

pytestmark = pytest.mark.quick

EXACT = MuesliConfig(
    torso=TorsoConfig(hidden=(8,)),
    dynamics=DynamicsConfig(size=8),
    bins=BinsConfig(num_bins=101, limit=3.0),
    head_hidden=(),
    discount=1.0,
    num_kl_samples=0,
    num_q_samples=0,
    target_share=1.0,
    behaviour_share=0.0,
    uniform_share=0.0,
)

# The aliased MDP of figure 2: s1 leads up (+1) to s2 and down (0) to s3; in s2 up gives -1 and down +1, in s3 the reverse.
# All three look the same. With p = p(up), J = p + p (1 - 2p) + (1 - p)(2p - 1) = 5p - 4p^2 - 1.
UP, DOWN = 0, 1
BEST = 5 / 8
UPDATES = 600
ONE_STEP = 3 / 4  # where r + v(s') leads, whose v is the same everywhere: the gradient is 3 - 4p


def objective(p):
    return 5 * p - 4 * p**2 - 1


@functools.cache
def aliased_agent(**changes):
    spec = EnvironmentSpec(name="aliased", observation=specs.Array((1,), np.float32), action=specs.DiscreteArray(2))
    config = dataclasses.replace(EXACT, unroll_length=2, model_steps=1, learning_rate=0.02, decay_updates=UPDATES, **changes)
    return Muesli(spec, config)


def all_episodes(agent, train_state):
    """The four episodes as columns, and the probability of each `[4]`, under the policy that acts."""
    first, second = np.array([UP, UP, DOWN, DOWN]), np.array([UP, DOWN, UP, DOWN])
    rewards = np.stack([np.zeros(4), first == UP, np.where(first == second, -1, 1)])
    timestep = TimeStep(
        step_type=jnp.tile(jnp.array([[FIRST], [MID], [LAST]], jnp.int32), (1, 4)),
        reward=jnp.asarray(rewards, jnp.float32),
        discount=jnp.tile(jnp.array([[1.0], [1.0], [0.0]]), (1, 4)),
        observation=jnp.ones((3, 4, 1)),
    )
    one = jax.tree.map(lambda x: x[0, :1], timestep)
    acted = agent.act(agent.actor_params(train_state), (), one, jax.random.split(jax.random.key(0), 1), Mode.TRAIN)[0]
    logits = jnp.broadcast_to(acted.logits, (2, 4, 2))
    action = jnp.stack([jnp.asarray(first), jnp.asarray(second)])
    log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], axis=-1)[..., 0]
    output = ActorOutput(action=action, log_prob=log_prob, logits=logits)
    return Trajectory(timestep=timestep, actor_output=output, actor_state=()), jnp.exp(jnp.sum(log_prob, axis=0))


def relabel(agent, train_state, trajectory):
    keys = jax.random.split(jax.random.key(0), (1, trajectory.timestep.reward.shape[1]))
    one = jax.vmap(lambda key: agent.relabel(train_state, trajectory, key, "devices"), axis_name="devices")
    return jax.tree.map(lambda x: x[0], one(keys))


@functools.partial(jax.jit, static_argnums=0)
def train(agent, train_state):
    """Follows the expected gradient of the agent's loss. Returns the state and p(up) after every update."""

    def update(train_state, _):
        trajectory, probability = all_episodes(agent, train_state)
        train_state, trajectory = relabel(agent, train_state, trajectory)
        gradient = jax.vmap(
            lambda episode: jax.grad(lambda params: agent.loss(params, train_state, episode, None)[0])(train_state.params)
        )(columns.split(trajectory, 4))
        gradient = jax.tree.map(lambda g: jnp.tensordot(probability, g, 1), gradient)
        updates, opt_state = agent.optimizer().update(gradient, train_state.opt_state, train_state.params)
        params = optax.apply_updates(train_state.params, updates)
        target_params = agent.update_target(params, train_state.target_params, train_state.num_updates)
        return train_state.replace(params=params, opt_state=opt_state, target_params=target_params), probability[:2].sum()

    return jax.lax.scan(update, train_state, length=UPDATES)


def start(agent, p):
    """A fresh state whose policy goes up with probability `p`."""
    params = jax.jit(agent.init)(jax.random.key(0)).params
    head = params["policy/linear"]
    params = {**params, "policy/linear": {"w": 0 * head["w"], "b": jnp.log(jnp.array([p, 1 - p]))}}
    return agent.train_state(params, target_params=jax.tree.map(jnp.copy, params), extra=moments.init_second_moment())


@functools.partial(jax.jit, static_argnums=0)
def action_values(agent, train_state):
    """`[2]`: mean over an episode's steps of the agent's own multi-step advantages, by action."""
    trajectory, probability = all_episodes(agent, train_state)
    advantage = relabel(agent, train_state, trajectory)[1].targets.advantage
    taken = jax.nn.one_hot(trajectory.actor_output.action, 2) * probability[None, :, None]
    return jnp.sum(taken * advantage[..., None], axis=(0, 1)) / jnp.sum(taken, axis=(0, 1))


@pytest.mark.parametrize("p", [0.1, 0.95])
@pytest.mark.parametrize(
    ("changes", "limit"),
    [({"retrace_lambda": 1.0}, BEST), ({"retrace_lambda": 0.0}, ONE_STEP)],
    ids=["monte-carlo", "one-step"],
)
def test_the_policy_gradient_finds_the_best_stochastic_policy_of_an_aliased_mdp(p, changes, limit):
    agent = aliased_agent(policy_loss="pg", returns="vtrace", **changes)
    state, history = train(agent, start(agent, p))
    assert history[0] == pytest.approx(p, abs=1e-3)
    assert history[-1] == pytest.approx(limit, abs=0.02)
    if limit == BEST:
        assert objective(history[-1]) == pytest.approx(9 / 16, abs=0.01)
        up, down = action_values(agent, state)
        assert abs(up - down) < 0.02  # both are worth 1/4


@pytest.mark.slow
def test_muesli_as_a_whole_stays_by_the_best_policy_of_an_aliased_mdp():
    agent = aliased_agent()
    assert train(agent, start(agent, 0.1))[1][-1] == pytest.approx(BEST, abs=0.02)


def test_greedy_improvement_cannot_solve_the_aliased_mdp():
    agent, epsilon, p = aliased_agent(policy_loss="pg", returns="vtrace"), 0.02, 0.5
    visited = []
    for _ in range(6):
        up, down = action_values(agent, start(agent, p))
        p = 1 - epsilon if up > down else epsilon
        visited.append(p)
    assert set(visited[1:]) == {epsilon, 1 - epsilon}  # it turns about for ever
    assert max(objective(q) for q in visited) < 0.1


# Three steps through three states, three actions, all chances positive: 3 (3 * 3)^3 = 2187 episodes.
STEPS, STATES, ACTIONS = 3, 3, 3
KINDS = ("muesli", "pg", "cmpo", "mpo", "ppo", "trpo")


class Mdp(NamedTuple):
    """A finite-horizon MDP and a policy. States are one-hot `[STEPS * STATES + 1]`; the last is the end.

    rewards: `[STEPS, STATES, ACTIONS]`. moves: `[STEPS, STATES, ACTIONS, STATES]`. start: `[STATES]`.
    logits: `[STEPS * STATES + 1, ACTIONS]`.
    """

    rewards: Any
    moves: Any
    start: Any
    logits: Any


def random_mdp(seed):
    rng = np.random.default_rng(seed)
    mdp = Mdp(
        rewards=rng.normal(size=(STEPS, STATES, ACTIONS)),
        moves=rng.dirichlet(np.ones(STATES), size=(STEPS, STATES, ACTIONS)),
        start=rng.dirichlet(np.ones(STATES)),
        logits=rng.normal(size=(STEPS * STATES + 1, ACTIONS)),
    )
    return jax.tree.map(lambda x: x.astype(np.float32), mdp)


def solve(mdp, logits):
    """J, `q` `[STEPS, STATES, ACTIONS]` and `v` `[STEPS, STATES]` of the policy, by dynamic programming."""
    pi = jax.nn.softmax(logits[:-1].reshape(STEPS, STATES, ACTIONS))
    values, qs = [jnp.zeros(STATES)], []
    for t in reversed(range(STEPS)):
        qs.insert(0, mdp.rewards[t] + mdp.moves[t] @ values[0])
        values.insert(0, jnp.sum(pi[t] * qs[0], axis=-1))
    return mdp.start @ values[0], jnp.stack(qs), jnp.stack(values[:-1])


def episodes_of(mdp):
    """All episodes as columns, played by the MDP's policy, and the probability of each."""
    states = np.array(list(itertools.product(range(STATES), repeat=STEPS))).T
    actions = np.array(list(itertools.product(range(ACTIONS), repeat=STEPS))).T
    states, actions = np.repeat(states, actions.shape[1], axis=1), np.tile(actions, (1, states.shape[1]))
    num, steps = states.shape[1], np.arange(STEPS)[:, None]
    index = np.concatenate([steps * STATES + states, np.full((1, num), STEPS * STATES)])
    step_type = np.repeat([[FIRST]] + [[MID]] * (STEPS - 1) + [[LAST]], num, axis=1).astype(np.int32)
    timestep = TimeStep(
        step_type=step_type,
        reward=np.concatenate([np.zeros((1, num), np.float32), mdp.rewards[steps, states, actions]]),
        discount=np.where(step_type == LAST, 0, 1).astype(np.float32),
        observation=np.eye(STEPS * STATES + 1, dtype=np.float32)[index],
    )
    logits = mdp.logits[index[:-1]]
    log_policy = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    log_prob = np.take_along_axis(log_policy, actions[..., None], axis=-1)[..., 0]
    chance = mdp.start[states[0]] * np.prod(mdp.moves[steps[:-1], states[:-1], actions[:-1], states[1:]], axis=0)
    output = ActorOutput(action=actions.astype(np.int32), log_prob=log_prob, logits=logits)
    return Trajectory(timestep=timestep, actor_output=output, actor_state=()), chance * np.exp(log_prob.sum(axis=0))


class ExactNetworks:
    """What Muesli's networks would say if they knew an MDP and the values of its policy; only policy logits can learn."""

    def __init__(self, mdp, bins):
        _, q, v = solve(mdp, mdp.logits)
        end = jnp.zeros(ACTIONS)
        tables = (jnp.append(v, 0.0), jnp.append(mdp.rewards, end), jnp.append(q - mdp.rewards, end))
        self._values, self._rewards, self._next_values = (jnp.log(bins.probabilities(x) + 1e-20) for x in tables)

    def unroll(self, params, observation, first, state):
        return observation

    def predict(self, params, hidden):
        return Prediction(hidden @ params, hidden @ self._values)

    def root(self, params, hidden):
        return jnp.repeat(hidden, ACTIONS, axis=-1)  # an action makes it one-hot over pairs of state and action

    def model_step(self, params, state, action):
        return state * jnp.tile(action, STEPS * STATES + 1)

    def model_q(self, params, state):
        return state @ self._rewards, state @ self._next_values

    def model_predict(self, params, state):
        return ModelPrediction(jnp.zeros((*state.shape[:-1], ACTIONS)), *reversed(self.model_q(params, state)))


@jax.jit
def cosines(advantage_scale, mdp, trajectory, probability):
    """Between minus the expected gradient of the loss of each kind, at pi = pi_prior, and the gradient of J."""
    config = dataclasses.replace(EXACT, bins=BinsConfig(num_bins=601, limit=5.0), model_steps=1)
    config = dataclasses.replace(config, advantage_scale=advantage_scale)
    bins, actions = Bins(config.bins), policy.Discrete(ACTIONS, config)
    networks, keys = ExactNetworks(mdp, bins), jax.random.split(jax.random.key(0), probability.size)
    targets, _ = compute_targets(
        mdp.logits, networks, actions, bins, config, 1.0, moments.init_second_moment(), trajectory, keys, None
    )
    episodes = columns.split(trajectory.replace(targets=targets), probability.size)
    uphill = jax.grad(lambda logits: solve(mdp, logits)[0])(mdp.logits)

    def cosine(kind):
        own = dataclasses.replace(config, policy_loss=kind)

        def gradient(episode):
            return jax.grad(lambda logits: losses.muesli_loss(logits, networks, actions, bins, own, episode)[0])(mdp.logits)

        downhill = -jnp.tensordot(probability, jax.vmap(gradient)(episodes), 1)
        return jnp.sum(downhill * uphill) / jnp.linalg.norm(downhill) / jnp.linalg.norm(uphill)

    return {kind: cosine(kind) for kind in KINDS}


@pytest.mark.parametrize("seed", range(5))
def test_with_an_exact_model_every_loss_falls_where_the_objective_rises(seed):
    mdp = random_mdp(seed)
    trajectory, probability = episodes_of(mdp)
    assert probability.sum() == pytest.approx(1, abs=1e-5)
    right, wrong = (cosines(scale, mdp, trajectory, probability) for scale in (1.0, -1.0))
    for kind in KINDS:
        assert right[kind] > 0.8
        assert wrong[kind] < -0.8  # the negative control: advantages of the wrong sign
    for kind in ("pg", "mpo", "ppo", "trpo"):  # on-policy these are the policy gradient itself
        assert right[kind] > 0.9999


def test_sampled_cmpo_of_a_continuous_policy_tends_to_the_integral():
    spec = EnvironmentSpec(name="line", observation=(), action=specs.BoundedArray((1,), np.float32, -1.0, 1.0))
    made = policy.make_policy(spec, dataclasses.replace(MuesliConfig(), num_kl_samples=4096, num_q_samples=16))
    prior, behaviour, online = jnp.array([0.2, 0.1]), jnp.array([-0.5, 0.5]), jnp.array([-0.1, 0.4])

    def advantage(action):
        return 2 * jnp.sin(3 * action[..., 0])

    @jax.jit
    def sampled_gradient(key):
        """The mean of 64 gradients of the loss."""
        drawn = made.candidates(jnp.tile(prior, (64, 1, 1)), jnp.tile(behaviour, (64, 1, 1)), None, key)
        target = made.cmpo_target(drawn, advantage(drawn.encoded))
        return jax.grad(lambda p: jnp.mean(made.cross_entropy(jnp.tile(p, (64, 1, 1)), target)))(online)

    @jax.jit
    def exact_gradient():
        """By quadrature."""
        grid = jnp.linspace(-1, 1, 20_002)[1:-1, None]
        tile = lambda x: jnp.tile(x, (len(grid), 1))  # noqa: E731
        weights = jnp.exp(made.prior_log_prob(tile(prior), tile(behaviour), None, grid) + jnp.clip(advantage(grid), -1, 1))
        return jax.grad(lambda p: -jnp.sum(weights / weights.sum() * made.log_prob(tile(p), grid)))(online)

    exact = exact_gradient()
    error = jnp.linalg.norm(sampled_gradient(jax.random.split(jax.random.key(0), 1)) - exact)
    assert error < 0.02 * jnp.linalg.norm(exact)
