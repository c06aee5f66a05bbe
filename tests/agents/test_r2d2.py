"""R2D2: the loss against one computed step by step in numpy; stored states, burn-in, exploration."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from podracer.agents.r2d2.agent import R2D2
from podracer.agents.r2d2.config import R2D2Config
from podracer.nets.recurrent import CoreConfig
from podracer.nets.torso import TorsoConfig
from podracer.ops import sequence_q
from podracer.types import FIRST, LAST, MID, EnvironmentSpec, Mode, TimeStep, Trajectory

A, B, T, GAMMA = 3, 2, 9, 0.9
SMALL = R2D2Config(
    torso=TorsoConfig(hidden=(8,)),
    core=CoreConfig(kind="lstm", size=8),
    head_hidden=(),
    unroll_length=6,
    burn_in=3,
    discount=GAMMA,
    return_steps=3,
    epsilon=0.7,
    epsilon_alpha=2.0,
)
SPEC = EnvironmentSpec(name="synthetic", observation=specs.Array((4,), np.float32), action=specs.DiscreteArray(A))
# Episodes end in the burn-in, by termination at 5 and by truncation at 8; the second column has one that goes on.
STEP_TYPES = np.array([[MID, MID, LAST, FIRST, MID, LAST, FIRST, MID, LAST, FIRST], [MID] * 10]).T
DISCOUNTS = np.array([[1, 1, 1, 1, 1, 0, 1, 1, 1, 1], [1] * 10]).T


@functools.cache
def make(**changes):
    return R2D2(SPEC, dataclasses.replace(SMALL, **changes))


@functools.cache
def train_state(agent):
    """Online and target networks that differ, with outputs far from 0."""
    online, target = (agent.init(jax.random.key(seed)).params for seed in (0, 1))
    large = lambda params: jax.tree.map(lambda x: 3.0 * x, params)  # noqa: E731
    return agent.init(jax.random.key(0)).replace(params=large(online), target_params=large(target))


@functools.cache
def acting(agent, mode=Mode.TRAIN):
    return jax.jit(functools.partial(agent.act, mode=mode))


@functools.cache
def losses(agent):
    return jax.jit(agent.loss)


def loss_of(agent, trajectory):
    state = train_state(agent)
    return losses(agent)(state.params, state, trajectory, jax.random.split(jax.random.key(0), B))


def timesteps(seed=0):
    rng = np.random.default_rng(seed)
    return TimeStep(
        step_type=jnp.asarray(STEP_TYPES, jnp.int32),
        reward=jnp.asarray(np.where(STEP_TYPES == FIRST, 0, rng.normal(scale=3, size=STEP_TYPES.shape)), jnp.float32),
        discount=jnp.asarray(DISCOUNTS, jnp.float32),
        observation=jnp.asarray(rng.normal(size=(*STEP_TYPES.shape, 4)), jnp.float32),
    )


def warm(agent):
    """An actor state in the middle of an episode."""
    rng = np.random.default_rng(7)
    start = agent.initial_actor_state(B)
    core = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), start.core)
    return start.replace(core=core, action=jnp.array([2, 1]), epsilon=jnp.array([0.3, 0.6]))


def played(agent, params):
    """A window of acting, with the actor states before every time step."""
    timestep, state, outputs, states = timesteps(), warm(agent), [], []
    for t in range(T):
        states.append(state)
        now = jax.tree.map(lambda x, t=t: x[t], timestep)
        output, state = acting(agent)(params, state, now, jax.random.split(jax.random.key(t), B))
        outputs.append(output)
    actor_output = jax.tree.map(lambda *x: jnp.stack(x), *outputs)
    return Trajectory(timestep=timestep, actor_output=actor_output, actor_state=states[0]), [*states, state]


@functools.cache
def window(agent):
    return played(agent, train_state(agent).params)


def stepwise_values(agent, params, trajectory):
    """`[T+1, B, A]`, one time step at a time."""
    net, values = jax.jit(agent._net.apply), []
    action, core = trajectory.actor_state.action, trajectory.actor_state.core
    for t in range(T + 1):
        now = jax.tree.map(lambda x, t=t: x[t : t + 1], trajectory.timestep)
        q, core = net(params, now, action[None], core)
        values.append(np.asarray(q[0], np.float64))
        action = trajectory.actor_output.action[min(t, T - 1)]
    return np.stack(values)


def h(x):
    return np.sign(x) * (np.sqrt(abs(x) + 1) - 1) + 1e-3 * x


def h_inverse(y):
    return np.sign(y) * (((np.sqrt(1 + 4e-3 * (abs(y) + 1 + 1e-3)) - 1) / 2e-3) ** 2 - 1)


def reference_errors(agent, trajectory):
    """`[T - burn_in, B]`, by a walk from every step."""
    state, burn_in = train_state(agent), agent.config.burn_in
    online, target = (stepwise_values(agent, params, trajectory) for params in (state.params, state.target_params))
    reward, discount = (np.asarray(x, np.float64) for x in (trajectory.timestep.reward, trajectory.timestep.discount))
    errors = np.zeros((T - burn_in, B))
    for t in range(burn_in, T):
        for b in range(B):
            if STEP_TYPES[t, b] == LAST:
                continue
            total, weight, s = 0.0, 1.0, t
            while s == t or not (s == t + SMALL.return_steps or s == T or STEP_TYPES[s, b] == LAST):
                s += 1
                total, weight = total + weight * reward[s, b], weight * GAMMA * discount[s, b]
            value = h_inverse(target[s, b, np.argmax(online[s, b])])
            errors[t - burn_in, b] = h(total + weight * value) - online[t, b, trajectory.actor_output.action[t, b]]
    return errors


@pytest.mark.parametrize("dueling", [True, False])
def test_loss_and_priorities_are_those_of_the_reference(dueling):
    agent = make(dueling=dueling, importance_exponent=0.5)
    trajectory = window(agent)[0].replace(importance=jnp.array([4.0, 1.0]))
    loss, metrics = loss_of(agent, trajectory)
    errors = reference_errors(agent, trajectory)
    assert np.all(np.max(np.abs(errors), axis=0) > 0.1)
    np.testing.assert_allclose(loss, np.mean([2.0, 1.0] * np.sum(0.5 * errors**2, axis=0)), rtol=1e-3)
    mask = STEP_TYPES[SMALL.burn_in : -1] != LAST
    mean = np.sum(np.abs(errors), axis=0) / np.sum(mask, axis=0)
    np.testing.assert_allclose(metrics["priority"], 0.9 * np.max(np.abs(errors), axis=0) + 0.1 * mean, rtol=1e-3)


@pytest.mark.parametrize("burn_in", [0, 3])
def test_burn_in_and_stored_state_matter_and_carry_no_gradient(burn_in):
    agent = make(burn_in=burn_in)
    trajectory, state = window(agent)[0], train_state(agent)
    inside = trajectory.replace(timestep=trajectory.timestep.replace(step_type=jnp.full((T + 1, B), MID)))

    def loss(core, observation):
        moved = inside.replace(
            timestep=inside.timestep.replace(observation=observation), actor_state=inside.actor_state.replace(core=core)
        )
        return agent.loss(state.params, state, moved, None)[0]

    core, observation = inside.actor_state.core, inside.timestep.observation
    value, (of_core, of_observation) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(core, observation)
    assert not any(np.any(x) for x in jax.tree.leaves(of_core))
    assert not np.any(of_observation[:burn_in])
    assert all(np.any(x) for x in of_observation[burn_in:-1])
    jitted = jax.jit(loss)
    assert abs(jitted(jax.tree.map(lambda x: x + 1, core), observation) - value) > 1e-4
    if burn_in:
        assert abs(jitted(core, observation.at[0].add(1.0)) - value) > 1e-5


@pytest.mark.parametrize("core", ["lstm", "none"])
def test_an_unroll_is_acting_step_by_step(core):
    agent = make(core=CoreConfig(kind=core, size=8))
    params, (trajectory, states) = train_state(agent).params, window(agent)
    actions = jnp.concatenate([states[0].action[None], trajectory.actor_output.action])
    q, last = jax.jit(agent._net.apply)(params, trajectory.timestep, actions, states[0].core)
    for t in range(T):
        now = jax.tree.map(lambda x, t=t: x[t], trajectory.timestep)
        keys = jax.random.split(jax.random.key(99), B)
        greedy, after = acting(agent, Mode.EVALUATE)(params, states[t], now, keys)
        np.testing.assert_array_equal(greedy.action, jnp.argmax(q[t], axis=-1))
        expected = sequence_q.epsilon_greedy(q[t], None, states[t + 1].epsilon)
        expected = jnp.take_along_axis(expected, trajectory.actor_output.action[t][:, None], axis=-1)[:, 0]
        np.testing.assert_allclose(trajectory.actor_output.log_prob[t], expected, atol=1e-6)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), after.core, states[t + 1].core)
    steps = jax.tree.map(lambda x: x[:T], (trajectory.timestep, actions))
    last = jax.jit(agent._net.apply)(params, *steps, states[0].core)[1]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), last, states[-1].core)


def test_nothing_of_an_episode_is_seen_after_it():
    agent = make(burn_in=0)
    trajectory = window(agent)[0]
    cut = trajectory.replace(
        timestep=trajectory.timestep.replace(step_type=trajectory.timestep.step_type.at[:2].set(jnp.array([[LAST], [FIRST]])))
    )
    timestep, output, state = cut.timestep, cut.actor_output, cut.actor_state
    other = cut.replace(  # before the FIRST at 1, and what is no part of it
        timestep=timestep.replace(
            reward=timestep.reward.at[:2].add(5.0),
            discount=timestep.discount.at[:2].set(0.5),
            observation=timestep.observation.at[0].add(1.0),
        ),
        actor_output=output.replace(action=output.action.at[0].set((output.action[0] + 1) % A)),
        actor_state=state.replace(action=(state.action + 1) % A, core=jax.tree.map(lambda x: x + 1, state.core)),
    )
    np.testing.assert_allclose(loss_of(agent, cut)[0], loss_of(agent, other)[0], rtol=1e-6)
    # In the middle of an episode each of these is seen.
    before = loss_of(agent, trajectory)[0]
    for moved in (
        trajectory.replace(actor_state=state.replace(action=(state.action + 1) % A)),
        trajectory.replace(timestep=trajectory.timestep.replace(reward=trajectory.timestep.reward.at[0].add(5.0))),
    ):
        assert abs(loss_of(agent, moved)[0] - before) > 1e-5


def test_an_episode_keeps_its_epsilon_and_evaluation_has_its_own():
    agent, states = make(), window(make())[1]
    epsilon = np.array([state.epsilon for state in states])
    changed = epsilon[1:] != epsilon[:-1]
    np.testing.assert_array_equal(changed, STEP_TYPES[:T] == FIRST)
    assert np.all((epsilon >= 0.7**3 - 1e-6) & (epsilon <= 0.7) | (epsilon == epsilon[0]))
    params, now = train_state(agent).params, jax.tree.map(lambda x: x[3], timesteps())
    keys = jax.random.split(jax.random.key(0), B)
    output, _ = acting(agent, Mode.EVALUATE)(params, warm(agent), now, keys)
    np.testing.assert_array_equal(output.log_prob, 0)
    random = make(evaluation_epsilon=1.0)
    output, _ = acting(random, Mode.EVALUATE)(params, warm(random), now, keys)
    np.testing.assert_allclose(output.log_prob, np.log(1 / A), rtol=1e-6)


def test_what_another_played_is_what_is_remembered():
    agent = make()
    state = agent.played(warm(agent), jnp.array([0, 2]))
    np.testing.assert_array_equal(state.action, [0, 2])
    jax.tree.map(np.testing.assert_array_equal, state.core, warm(agent).core)


def test_illegal_actions_are_neither_played_nor_bootstrapped_from():
    legal = jnp.array([True, False, True])
    spec = dataclasses.replace(SPEC, observation={"x": SPEC.observation, "legal_actions": specs.Array((A,), bool)})
    agent = R2D2(spec, dataclasses.replace(SMALL, burn_in=0, dueling=False, epsilon=1.0, epsilon_alpha=0.0))
    plain = window(make())[0]
    observation = {"x": plain.timestep.observation, "legal_actions": jnp.broadcast_to(legal, (T + 1, B, A))}
    trajectory = plain.replace(
        timestep=plain.timestep.replace(observation=observation),
        actor_output=plain.actor_output.replace(action=plain.actor_output.action // 2 * 2),
    )
    state = train_state(agent)

    def favoured(params):
        bias = params["advantage/linear"]["b"]
        return {**params, "advantage/linear": {**params["advantage/linear"], "b": bias.at[1].add(1e3)}}

    loss, act = jax.jit(lambda *args: agent.loss(*args, None)[0]), jax.jit(agent.act, static_argnums=4)
    moved = state.replace(target_params=favoured(state.target_params))
    before, after = loss(state.params, state, trajectory), loss(favoured(state.params), moved, trajectory)
    np.testing.assert_allclose(after, before, rtol=1e-6)
    now = jax.tree.map(lambda x: jnp.repeat(x[3, :1], 50, axis=0), trajectory.timestep)
    for mode, num_different in ((Mode.TRAIN, 2), (Mode.EVALUATE, 1)):
        keys = jax.random.split(jax.random.key(0), 50)
        output, _ = act(favoured(state.params), agent.initial_actor_state(50), now, keys, mode)
        assert not np.any(output.action == 1)
        assert len(np.unique(output.action)) == num_different


def test_what_cannot_be_is_refused_in_one_line():
    with pytest.raises(TypeError, match="continuous actions"):
        R2D2(dataclasses.replace(SPEC, action=specs.BoundedArray((2,), np.float32, -1.0, 1.0)), SMALL)
    with pytest.raises(ValueError, match="return_steps must be at least 1"):
        dataclasses.replace(SMALL, return_steps=0)
    with pytest.raises(ValueError, match="priority_mix must be at least 0 and at most 1"):
        dataclasses.replace(SMALL, priority_mix=1.5)
