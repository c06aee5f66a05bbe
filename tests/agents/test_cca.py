"""cca: the routes of its gradients, what may reach whom, and what it learns. test_cca_theory.py has its estimators."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dm_env import specs

from podracer import config
from podracer.agents.cca import losses
from podracer.agents.cca.agent import Cca
from podracer.agents.cca.config import ESTIMATORS, HINDSIGHT
from podracer.launch import job as jobs
from podracer.ops import episodes, geco
from podracer.runtimes.anakin import Anakin
from podracer.types import FIRST, LAST, MID, ActorOutput, EnvironmentSpec, Mode, TimeStep, Trajectory

# The agent: made-up unrolls through the networks.

A, B = 3, 2
SPEC = EnvironmentSpec(
    name="synthetic",
    observation={"seen": specs.Array((4,), np.float32), "legal_actions": specs.Array((A,), np.bool_)},
    action=specs.DiscreteArray(A),
)
SMALL = {
    "torso.hidden": (8,),
    "core.size": 8,
    "head_hidden": (8,),
    "hindsight.size": 4,
    "hindsight.hidden": 8,
    "hindsight.heads": 2,
}


@functools.cache
def make(**overrides):
    return Cca(SPEC, config.override(Cca.Config(), SMALL | overrides))


def unroll(agent, step_type, discount=None, seed=0):
    """Random data `[T+1, B]` with the given step types `[T+1]` in every column; the last action is illegal at times."""
    rng = np.random.default_rng(seed)
    step_type = np.tile(np.array(step_type, np.int32)[:, None], (1, B))
    length = len(step_type) - 1
    discount = np.ones(step_type.shape) if discount is None else np.tile(np.array(discount)[:, None], (1, B))
    legal = np.ones((length + 1, B, A), bool)
    legal[1::3, :, 2] = False
    action = rng.integers(0, 2, (length, B))
    return Trajectory(
        timestep=TimeStep(
            step_type=jnp.asarray(step_type),
            reward=jnp.asarray(np.where(step_type == FIRST, 0, rng.normal(size=step_type.shape)), jnp.float32),
            discount=jnp.asarray(discount, jnp.float32),
            observation={"seen": jnp.asarray(rng.normal(size=(length + 1, B, 4)), jnp.float32), "legal_actions": legal},
        ),
        actor_output=ActorOutput(action=jnp.asarray(action, jnp.int32), log_prob=jnp.full((length, B), -1.0)),
        actor_state=agent.initial_actor_state(B),
    )


def gradients_apart(agent, state, trajectory):
    """The gradient of every term of the loss alone, by its name."""

    def terms(params):
        return losses.cca_losses(params, agent._networks, agent._policy, agent.config, state, trajectory)[0]

    return jax.jit(jax.jacrev(terms))(state.params)


def sizes(gradient):
    """The greatest entry of each module, by `group/module`."""
    return {
        f"{group}/{module}": max(float(jnp.max(jnp.abs(x))) for x in leaves.values())
        for group, modules in gradient.items()
        for module, leaves in modules.items()
    }


EPISODES = [FIRST, MID, MID, LAST, FIRST, MID, LAST]
ENDS = [1, 1, 1, 0, 1, 1, 1]
ROUTES = {  # of each loss: groups and modules of the actor that it trains
    "policy": {"torso", "core", "policy"},
    "entropy": {"torso", "core", "policy"},
    "hindsight": {"torso", "core", "hindsight", "hindsight_value"},
    "value": {"value"},
    "classifier": {"classifier"},
    "independence": {"hindsight"},
}


def trained(gradient):
    """The rows of ROUTES that `gradient` reaches."""
    rows = set()
    for name, size in sizes(gradient).items():
        group = name.split("/")[0]
        if group == "actor":
            group = "policy" if "/policy" in name else "core" if "gru" in name or "lstm" in name else "torso"
        if size > 0:
            rows.add(group)
    return rows


def fresh(agent):
    """Parameters of random values: heads start near 0, where few gradients flow."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(agent.init, jax.random.key(0)).params
    return jax.tree.map(lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def agent():
    return make(**{"core.kind": "gru"})


@pytest.fixture(scope="module")
def state(agent):
    return agent.train_state(fresh(agent))


def test_every_loss_trains_what_it_should_and_nothing_else(agent, state):
    found = gradients_apart(agent, state, unroll(agent, EPISODES, ENDS))
    assert {loss: trained(gradient) for loss, gradient in found.items()} == ROUTES


def test_the_critic_can_leave_the_state_alone():
    agent = make(critic_trains_state=False)
    state = agent.train_state(fresh(agent))
    trajectory = unroll(agent, EPISODES, ENDS)

    def term(params):
        return losses.cca_losses(params, agent._networks, agent._policy, agent.config, state, trajectory)[0]["hindsight"]

    assert trained(jax.jit(jax.grad(term))(state.params)) == {"hindsight", "hindsight_value"}


@pytest.mark.parametrize(
    ("estimator", "kind"),
    [
        *((estimator, "rnn") for estimator in ("cca_all_action", "hca_state", "hca_return")),
        ("fc", "attention"),
        ("fc_all_action", "mlp"),
    ],
)
def test_losses_are_finite_and_nothing_is_learned_from_the_pair_last_first(estimator, kind):
    agent = make(**{"estimator": estimator, "hindsight.kind": kind})
    params = fresh(agent)
    state = agent.train_state(params)
    trajectory = unroll(agent, EPISODES, ENDS)
    output, timestep = trajectory.actor_output, trajectory.timestep
    changed = trajectory.replace(
        actor_output=output.replace(
            action=output.action.at[3].set(1 - output.action[3]), log_prob=output.log_prob.at[3].set(-9)
        ),
        timestep=timestep.replace(reward=timestep.reward.at[4].set(100), discount=timestep.discount.at[4].set(0.3)),
    )
    total = jax.jit(jax.grad(agent.loss, has_aux=True))
    before, _ = total(params, state, trajectory, None)
    after, metrics = total(params, state, changed, None)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), before, after)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((before, metrics)))
    assert all(np.any(np.asarray(x) != 0) for x in jax.tree.leaves(before))  # every part of the networks learns


@pytest.mark.parametrize("kind", ["rnn", "attention", "mlp"])
def test_the_statistic_sees_the_rest_of_the_episode_and_not_the_action(kind):
    agent = make(**{"hindsight.kind": kind, "core.kind": "gru"})
    params = fresh(agent)["hindsight"]
    trajectory = unroll(agent, [FIRST, MID, MID, MID, LAST, FIRST, MID])
    timestep, action = trajectory.timestep, trajectory.actor_output.action
    x = jnp.asarray(np.random.default_rng(1).normal(size=(7, B, 8)), jnp.float32)
    phi = jax.jit(agent._networks.hindsight)
    base = phi(params, timestep, action, x)

    def moved(timestep=timestep, action=action, x=x):
        change = np.max(np.abs(phi(params, timestep, action, x) - base), axis=(1, 2))
        return {t for t in range(6) if change[t] > 1e-6} - {4}  # what is at LAST means nothing

    reward = lambda t: timestep.replace(reward=timestep.reward.at[t].add(1.0))  # noqa: E731
    seen = {**timestep.observation, "seen": timestep.observation["seen"].at[3].add(1.0)}
    one_step = kind == "mlp"
    assert moved(reward(3)) == ({2} if one_step else {0, 1, 2})
    assert moved(timestep.replace(observation=seen)) == ({2} if one_step else {0, 1, 2})
    assert moved(action=action.at[2].add(1) % A) == ({1} if one_step else {0, 1})
    assert moved(x=x.at[2].add(1.0)) == ({1, 2} if one_step else {0, 1, 2})
    assert moved(reward(6)) == {5}  # another episode's
    assert moved(action=action.at[4].add(1) % A) == set()  # chosen at LAST, it leads nowhere


def test_a_constant_statistic_is_advantage_actor_critic():
    agent = make(**{"core.kind": "gru"})
    critic = make(**{"core.kind": "gru", "estimator": "actor_critic"})
    params = fresh(agent)
    # Phi = 0, and the same head for V(X, 0) as for V(X).
    params["hindsight"] = params["hindsight"] | {"phi": jax.tree.map(jnp.zeros_like, params["hindsight"]["phi"])}
    first, *_ = [name for name in params["value"] if params["value"][name]["w"].shape[0] == 8 and "mlp" in name]
    params["value"] = jax.tree.map(lambda x: x, params["hindsight_value"])
    params["value"][first] = params["value"][first] | {"w": params["hindsight_value"][first]["w"][:8]}
    trajectory = unroll(agent, [FIRST, MID, LAST, FIRST, MID, LAST], [1, 1, 0, 1, 1, 0])
    parts = [{name: params[name] for name in group} for group in (params, ("actor", "value"))]
    grads = [
        jax.jit(jax.grad(a.loss, has_aux=True))(p, a.train_state(p), trajectory, None)[0]["actor"]
        for a, p in zip((agent, critic), parts, strict=True)
    ]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), *grads)
    assert max(sizes({"actor": grads[0]}).values()) > 1e-3


def test_returns_end_with_their_episode_and_bootstrap_where_it_goes_on():
    trajectory = unroll(make(), [MID, LAST, FIRST, MID, LAST, FIRST, MID], [1, 0, 1, 1, 1, 1, 1])
    steps = episodes.transitions(trajectory.timestep, 0.9)
    values = jnp.arange(7.0)[:, None] + jnp.zeros((7, B))
    r = np.asarray(trajectory.timestep.reward)
    g = losses.returns_to_go(steps, steps.r_t, values)
    np.testing.assert_allclose(g[0], r[1], rtol=1e-6)  # terminated
    np.testing.assert_allclose(g[3], r[4] + 0.9 * 4.0, rtol=1e-5)  # truncated
    np.testing.assert_allclose(g[2], r[3] + 0.9 * np.asarray(g[3]), rtol=1e-5)
    np.testing.assert_allclose(g[5], r[6] + 0.9 * 6.0, rtol=1e-5)  # goes on after the unroll


@pytest.mark.parametrize("kind", ["none", "lstm"])
def test_acting_step_by_step_is_the_unroll(kind):
    agent = make(**{"core.kind": kind})
    params = fresh(agent)["actor"]
    trajectory = unroll(agent, EPISODES)
    _, logits = agent._networks.unroll(params, trajectory.timestep, trajectory.actor_output.action, trajectory.actor_state)
    memory, act = trajectory.actor_state, jax.jit(agent.act, static_argnums=4)
    for t, taken in enumerate(trajectory.actor_output.action):
        timestep = jax.tree.map(lambda x, t=t: x[t], trajectory.timestep)
        output, memory = act(params, memory, timestep, jax.random.split(jax.random.key(t), B), Mode.TRAIN)
        log_policy = jax.nn.log_softmax(logits[t])
        np.testing.assert_allclose(output.log_prob, log_policy[jnp.arange(B), output.action], atol=1e-5)
        memory = agent.played(memory, taken)
    if kind != "none":
        np.testing.assert_array_equal(memory.action, trajectory.actor_output.action[-1])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_nothing_that_looks_back_travels_to_actors(estimator):
    agent = make(**{"estimator": estimator, "core.kind": "lstm"})
    state = jax.eval_shape(agent.init, jax.random.key(0))
    learned = {"value", *(("hindsight", "hindsight_value", "classifier") if estimator in HINDSIGHT else ())}
    assert learned <= set(state.params)
    travelling = set(agent.actor_params(state))
    assert {name.split("/")[0] for name in travelling} == {"mlp", "lstm", "policy"}
    # And it is all that acting asks for.
    timestep = SPEC.example((B,))
    keys = jax.random.split(jax.random.key(0), B)
    jax.eval_shape(lambda p: agent.act(p, agent.initial_actor_state(B), timestep, keys, Mode.TRAIN), agent.actor_params(state))


def test_a_constraint_finds_its_weight_the_same_on_all_devices():
    agent = make(**{"independence.bound": 0.02, "independence.weight": 3.0})
    state = agent.train_state(fresh(agent), extra=geco.init_geco(3.0 * 0.02))
    both = [unroll(agent, EPISODES, ENDS, seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *both)
    keys = jax.random.split(jax.random.key(0), (2, B))
    update = jax.jit(jax.vmap(lambda t, k: agent.update(state, t, k, "devices"), axis_name="devices"))
    new, metrics = update(stacked, keys)
    for leaf in jax.tree.leaves((new, metrics)):
        np.testing.assert_array_equal(leaf[0], leaf[1])
    assert metrics["independence"][0] > 0.02
    assert new.extra.log_multiplier[0] > state.extra.log_multiplier
    # One device with both unrolls as its columns is the same.
    joined = jax.tree.map(
        lambda *x: jnp.concatenate(x, axis=1), both[0].replace(actor_state=()), both[1].replace(actor_state=())
    )
    one = jax.jit(jax.vmap(lambda t, k: agent.update(state, t, k, "devices"), axis_name="devices"))
    whole, more = one(jax.tree.map(lambda x: x[None], joined), keys.reshape(1, -1))
    np.testing.assert_allclose(more["independence"][0], metrics["independence"][0], rtol=1e-5)
    np.testing.assert_allclose(whole.extra.log_multiplier[0], new.extra.log_multiplier[0], rtol=1e-5)


def test_classifier_steps_move_the_classifier_alone_and_it_gains():
    agent = make(classifier_steps=5, learning_rate=0.0, classifier_learning_rate=0.01)
    state, trajectory = agent.train_state(fresh(agent)), unroll(agent, EPISODES, ENDS)
    one = jax.jit(jax.vmap(lambda s, t: agent._train_classifier(s, t, "devices"), axis_name="devices"))
    after = jax.tree.map(lambda x: x[0], one(*jax.tree.map(lambda x: jnp.asarray(x)[None], (state, trajectory))))
    for name, params in state.params.items():
        same = all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (params, after.params[name])), strict=True))
        assert same == (name != "classifier")
    metrics = [agent.loss(s.params, s, trajectory, None)[1] for s in (state, after)]
    assert metrics[1]["classifier_loss"] < metrics[0]["classifier_loss"] - 1e-3
    counts = [x for x in jax.tree.leaves(after.opt_state) if x.shape == () and x.dtype == jnp.int32]
    assert sorted(int(x) for x in counts) == [0, 5]  # its own Adam has moved, the other has not


def test_continuous_actions_are_refused_in_one_line():
    with pytest.raises(TypeError, match="continuous actions; this agent needs discrete ones"):
        Cca(
            EnvironmentSpec(name="line", observation=specs.Array((1,), np.float32), action=specs.Array((1,), np.float32)),
            Cca.Config(),
        )


# What only learning shows, through the real runtime, on a bandit of five arms.

BANDIT = {
    "env.largest": 2,
    "env.num_feedback": 16,
    "env.noise": 10.0,
    "agent.reward_scale": 0.2,
    "agent.entropy_cost": 0.2,
    "agent.decay_updates": 0,
    "agent.torso.hidden": (32,),
    "agent.head_hidden": (64, 64),
    "agent.hindsight.hidden": 32,
    "agent.hindsight.size": 4,
    "agent.learning_rate": 2e-3,
    "agent.classifier_learning_rate": 4e-3,
    "agent.classifier_steps": 8,
}


@functools.cache
def trained_bandit(num_updates, *settings):
    """The agent, its TrainState after `num_updates`, the environment, and metrics of the last fifth."""
    job, _ = jobs.new_job(jobs.Request("anakin", "cca", "credit/feedback_bandit", steps=64 * num_updates))
    parts = jobs.build(config.override(job, BANDIT | dict(settings)))
    runtime = Anakin(parts.agent, parts.environment, parts.plan)
    state, _ = runtime.run(runtime.init(), num_updates * 4 // 5)
    state, metrics = runtime.run(state, num_updates // 5)
    return parts.agent, runtime.train_state(state), parts.environment, metrics


def fresh_information(agent, params, environment, num=20_000, num_steps=1500):
    """`E log h(A|X, Phi) - log pi(A|X)` of a classifier that never met `Phi`, on episodes it has not seen, in nats."""
    keys = jax.random.split(jax.random.key(5), num)
    env_state, first = jax.vmap(environment.reset)(keys)
    output, _ = agent.act(params["actor"], (), first, keys, Mode.TRAIN)
    _, last = jax.vmap(environment.step)(env_state, output.action, jax.random.split(jax.random.key(6), num))
    timestep = jax.tree.map(lambda a, b: jnp.stack([a, b]), first, last)
    x, logits = agent._networks.unroll(params["actor"], timestep, output.action[None], ())
    phi = agent._networks.hindsight(params["hindsight"], timestep, output.action[None], x)[0]
    phi = (phi - phi.mean(axis=0)) / (phi.std(axis=0) + 1e-6)
    inputs = jnp.concatenate([first.observation[:, :5], phi], axis=-1)
    target, log_pi = jax.nn.one_hot(output.action, 5), jax.nn.log_softmax(logits[0])
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP((64, 64, 5))(x)))
    optimizer = optax.adam(1e-3)

    def log_h(weights, of):
        # As a correction to the policy: at its start it knows nothing, and says so.
        return jax.nn.log_softmax(log_pi[of] + net.apply(weights, inputs[of]))

    def step(carry, index):
        weights, opt_state = carry
        loss = lambda w: -jnp.mean(jnp.sum(target[index] * log_h(w, index), axis=-1))  # noqa: E731
        updates, opt_state = optimizer.update(jax.grad(loss)(weights), opt_state)
        return (optax.apply_updates(weights, updates), opt_state), None

    weights = net.init(jax.random.key(7), inputs)
    batches = jax.random.randint(jax.random.key(8), (num_steps, 256), 0, num // 2)
    (weights, _), _ = jax.lax.scan(step, (weights, optimizer.init(weights)), batches)
    unseen = jnp.arange(num // 2, num)
    return jnp.mean(jnp.sum(target[unseen] * (log_h(weights, unseen) - log_pi[unseen]), axis=-1))


@pytest.mark.slow
def test_a_fresh_classifier_finds_little_of_the_action_in_an_independent_statistic():
    # Not nothing: a classifier that chases a moving Phi stays behind one that may study it at rest. README.md has the figures.
    found = {}
    for weight in (1000.0, 0.0):
        agent, state, environment, metrics = trained_bandit(3000, ("agent.independence.weight", weight))
        assert metrics["entropy"] > 0.8  # there is something to tell
        found[weight] = jax.jit(lambda p, a=agent, e=environment: fresh_information(a, p, e))(state.params)
    assert found[1000.0] < 0.5
    assert found[0.0] > 1.2  # the control


@pytest.mark.slow
def test_hindsight_explains_the_noise_away_and_the_bandit_is_solved():
    _, _, _, metrics = trained_bandit(3000, ("agent.independence.weight", 30.0))
    assert metrics["hindsight_error"] / metrics["value_error"] < 0.1
    assert metrics["episode_return"] > -1.0
    *_, leaking = trained_bandit(3000, ("agent.independence.weight", 0.0))
    assert leaking["episode_return"] < -3.0  # the control: learned helplessness; a random policy earns -4


@pytest.mark.slow
def test_a_constraint_is_kept_from_a_weight_that_is_far_too_small():
    weak = (("env.noise", 1.0), ("agent.independence.weight", 0.01))
    _, _, _, metrics = trained_bandit(3000, *weak, ("agent.independence.bound", 0.1))
    assert 0.02 < metrics["independence"] < 0.15
    assert metrics["independence_weight"] > 1
    *_, fixed = trained_bandit(3000, *weak)
    assert fixed["independence"] > 1  # the control: without the bound
