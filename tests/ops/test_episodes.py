"""Masks, rewards and discounts of unrolls that hold the ends of episodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from podracer.ops import episodes
from podracer.types import FIRST, LAST, MID, TimeStep

pytestmark = pytest.mark.quick

GAMMA = 0.9


def _timestep(step_type, reward, discount):
    return TimeStep(
        step_type=jnp.asarray(step_type, jnp.int32),
        reward=jnp.asarray(reward, jnp.float32),
        discount=jnp.asarray(discount, jnp.float32),
        observation=(),
    )


def _two_episodes(discount_at_end):
    """FIRST MID MID LAST | FIRST MID MID, and the two halves on their own."""
    whole = _timestep([FIRST, MID, MID, LAST, FIRST, MID, MID], [0, 1, 2, 3, 0, 4, 5], [1, 1, 1, discount_at_end, 1, 1, 1])
    return whole, jax.tree.map(lambda x: x[:4], whole), jax.tree.map(lambda x: x[4:], whole)


def _vtrace(timestep, values, rho):
    t = episodes.transitions(timestep, GAMMA)
    out = rlax.vtrace_td_error_and_advantage(values[:-1], values[1:], t.r_t, t.discount_t, rho * t.mask_tm1)
    return np.asarray(out.errors), np.asarray(out.pg_advantage)


def test_transitions_by_hand():
    whole, _, _ = _two_episodes(0.0)
    t = jax.jit(episodes.transitions, static_argnums=1)(whole, GAMMA)
    np.testing.assert_allclose(t.r_t, [1, 2, 3, 0, 4, 5])
    np.testing.assert_allclose(t.discount_t, np.array([1, 1, 0, 0, 1, 1]) * np.float32(GAMMA))
    np.testing.assert_allclose(t.mask_tm1, [1, 1, 1, 0, 1, 1])


def test_what_fills_an_overlap_is_no_transition():
    filled = _timestep([LAST, LAST, FIRST, MID, LAST], [0, 0, 0, 1, 2], [0, 0, 1, 1, 1])
    np.testing.assert_allclose(episodes.transitions(filled, GAMMA).mask_tm1, [0, 0, 1, 1])


@pytest.mark.parametrize("discount_at_end", [0.0, 1.0])
def test_vtrace_of_two_episodes_is_that_of_the_halves(discount_at_end):
    rng = np.random.default_rng(0)
    values, rho = jnp.asarray(rng.normal(size=7), jnp.float32), jnp.asarray(rng.uniform(0.2, 2, size=6), jnp.float32)
    whole, first, second = _two_episodes(discount_at_end)
    for got, one, two in zip(
        _vtrace(whole, values, rho), _vtrace(first, values[:4], rho[:3]), _vtrace(second, values[4:], rho[4:]), strict=True
    ):
        np.testing.assert_allclose(got, np.concatenate([one, [0.0], two]), atol=1e-5)


@pytest.mark.parametrize(("discount_at_end", "bootstrap"), [(0.0, 0.0), (1.0, 10.0)])
def test_truncation_bootstraps_from_the_last_observation_and_termination_does_not(discount_at_end, bootstrap):
    whole, _, _ = _two_episodes(discount_at_end)
    values = jnp.array([0.0, 0, 0, 10, -100, 0, 0])
    errors, _ = _vtrace(whole, values, jnp.ones(6))
    np.testing.assert_allclose(errors[2], 3 + GAMMA * bootstrap, rtol=1e-6)
    np.testing.assert_allclose(errors[1], 2 + GAMMA * (3 + GAMMA * bootstrap), rtol=1e-6)


def test_means_divide_by_a_constant_or_by_the_global_count():
    values, mask = jnp.array([[1.0, 5.0], [3.0, 7.0]]), jnp.array([[1.0, 1.0], [1.0, 0.0]])
    assert episodes.masked_mean(values, mask) == 9 / 4
    assert episodes.global_masked_mean(values, mask, None) == 3
    per_device = jax.vmap(lambda v, m: episodes.global_masked_mean(v, m, "i"), axis_name="i")(values, mask)
    np.testing.assert_allclose(per_device, [3, 3])
    assert episodes.global_masked_mean(values, jnp.zeros((2, 2)), None) == 0
