"""Retrace: against rlax, Monte Carlo, V-trace, and across the ends of episodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from podracer.ops import episodes, returns
from podracer.types import FIRST, LAST, MID, TimeStep

pytestmark = pytest.mark.quick

T, A, GAMMA = 6, 3, 0.9


def _steps(rewards, discounts, mask=None):
    mask = np.ones(len(rewards)) if mask is None else mask
    return episodes.Transitions(r_t=jnp.float32(rewards), discount_t=jnp.float32(discounts), mask_tm1=jnp.float32(mask))


def _random(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=T), np.full(T, GAMMA), rng.normal(size=(T + 1, A)), rng.integers(A, size=T + 1), rng


def test_equals_rlax_retrace_on_a_single_episode():
    rewards, discounts, q, actions, rng = _random()
    pi, mu = rng.dirichlet(np.ones(A), size=T + 1), rng.uniform(0.2, 0.9, size=T + 1)
    taken = q[np.arange(T + 1), actions]
    rho = pi[np.arange(T + 1), actions] / mu
    got = jax.jit(returns.retrace_returns)(
        _steps(rewards, discounts), jnp.float32(taken), jnp.float32((pi * q).sum(-1)), jnp.float32(rho), 0.7
    )
    inputs = [jnp.asarray(x, jnp.float32) for x in (rewards, discounts, pi[1:], mu[1:])]
    error = rlax.retrace(jnp.float32(q[:-1]), jnp.float32(q[1:]), actions[:-1], actions[1:], *inputs, 0.7)
    np.testing.assert_allclose(got, error + taken[:-1], atol=1e-4)


def test_on_policy_with_q_equal_to_v_it_is_the_monte_carlo_return():
    rewards, discounts, q, _, _ = _random()
    values = q[:, 0]
    got = returns.retrace_returns(_steps(rewards, discounts), jnp.float32(values), jnp.float32(values), jnp.ones(T + 1), 1.0)
    expected, running = np.zeros(T), values[-1]
    for t in reversed(range(T)):
        running = expected[t] = rewards[t] + GAMMA * running
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_lambda_0_is_one_step_and_state_values_make_it_vtrace():
    rewards, discounts, q, _, rng = _random()
    values, rho = jnp.float32(q[:, 0]), jnp.float32(rng.uniform(0.1, 2, size=T + 1))
    steps = _steps(rewards, discounts)
    np.testing.assert_allclose(
        returns.retrace_returns(steps, values, values, rho, 0.0), rewards + GAMMA * values[1:], atol=1e-5
    )
    got = returns.retrace_returns(steps, values, values, rho, 1.0)
    errors = rlax.vtrace(values[:-1], values[1:], steps.r_t, steps.discount_t, rho[:-1])
    corrected = returns.corrected_state_value(values[:-1], values[:-1], got, rho[:-1])
    np.testing.assert_allclose(corrected, errors + values[:-1], atol=1e-4)


@pytest.mark.parametrize("discount_at_end", [0.0, 1.0])
def test_two_episodes_equal_their_halves(discount_at_end):
    rng = np.random.default_rng(1)
    whole = TimeStep(
        step_type=jnp.array([FIRST, MID, LAST, FIRST, MID, LAST, FIRST, MID]),
        reward=jnp.float32(rng.normal(size=8)),
        discount=jnp.array([1, 1, discount_at_end, 1, 1, discount_at_end, 1, 1.0]),
        observation=(),
    )
    q, v, rho = (jnp.float32(rng.normal(size=8)) for _ in range(3))

    def compute(start, stop):
        cut = jax.tree.map(lambda x: x[start:stop], (whole, q, v, jnp.abs(rho)))
        return np.asarray(returns.retrace_returns(episodes.transitions(cut[0], GAMMA), *cut[1:], 0.9))

    expected = np.concatenate([compute(0, 3), [0.0], compute(3, 6), [0.0], compute(6, 8)])
    np.testing.assert_allclose(compute(0, 8), expected, atol=1e-6)
    bootstrap = discount_at_end * GAMMA * v[2]
    np.testing.assert_allclose(compute(0, 8)[1], whole.reward[2] + bootstrap, atol=1e-6)


def test_no_gradient_flows():
    def total(q):
        steps = _steps(np.ones(T), np.full(T, GAMMA))
        return jnp.sum(returns.retrace_returns(steps, q, q, q)) + jnp.sum(returns.corrected_state_value(q, q, q, q))

    np.testing.assert_array_equal(jax.grad(total)(jnp.ones(T + 1)), 0)
