"""CMPO: the paper's bounds, and the sampled estimator against the exact one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from podracer.ops import cmpo

pytestmark = pytest.mark.quick

CASES = st.tuples(st.integers(2, 8), st.floats(0.1, 3.0), st.floats(-3, 3), st.integers(0, 10_000))


def _draw(num_actions, log_scale, seed):
    rng = np.random.default_rng(seed)
    prior = rng.dirichlet(np.full(num_actions, rng.uniform(0.1, 2)))
    prior = (prior + 1e-6) / (prior + 1e-6).sum()
    return prior, rng.normal(size=num_actions) * 10.0**log_scale


def _kl(p, q):
    return float(np.sum(np.where(p > 0, p * (np.log(np.maximum(p, 1e-300)) - np.log(q)), 0.0)))


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_policy_is_numpys_and_keeps_the_bounds_of_theorem_4_1(case):
    num_actions, clip, log_scale, seed = case
    prior, advantages = _draw(num_actions, log_scale, seed)
    with jax.numpy_rank_promotion("raise"):
        policy = np.asarray(cmpo.cmpo_policy(jnp.float32(prior), jnp.float32(advantages), clip), np.float64)
    expected = prior * np.exp(np.clip(advantages, -clip, clip))
    np.testing.assert_allclose(policy, expected / expected.sum(), atol=1e-5)
    assert abs(policy.sum() - 1) < 1e-5
    assert 0.5 * np.abs(policy - prior).sum() <= np.tanh(clip / 2) + 1e-5
    assert _kl(policy, prior) + _kl(prior, np.maximum(policy, 1e-30)) <= 2 * clip * np.tanh(clip / 2) + 1e-4


def test_bounds_are_reached_and_no_kl_exceeds_the_papers():
    largest = {"distance": 0.0, "forward": 0.0, "backward": 0.0}
    for p in np.linspace(0.01, 0.99, 99):
        prior = np.array([p, 1 - p])
        policy = np.asarray(cmpo.cmpo_policy(jnp.float32(prior), jnp.array([1e6, -1e6])), np.float64)
        largest["distance"] = max(largest["distance"], 0.5 * np.abs(policy - prior).sum())
        largest["forward"] = max(largest["forward"], _kl(policy, prior))
        largest["backward"] = max(largest["backward"], _kl(prior, policy))
    assert largest["distance"] == pytest.approx(np.tanh(0.5), abs=1e-3)
    assert 0.473 < largest["forward"] <= 0.47448
    assert 0.473 < largest["backward"] <= 0.47448


def test_constant_or_saturated_advantages_do_not_matter():
    prior = jnp.array([0.2, 0.5, 0.3])
    for constant in (0.0, 0.4, -17.0, 1e6):
        np.testing.assert_allclose(cmpo.cmpo_policy(prior, jnp.full(3, constant)), prior, atol=1e-6)
    advantages = jnp.array([2.0, -3.0, 5.0])
    np.testing.assert_allclose(cmpo.cmpo_policy(prior, 1e4 * advantages), cmpo.cmpo_policy(prior, advantages), atol=1e-6)


def test_without_a_clip_the_policy_follows_the_advantages_however_large():
    policy = cmpo.cmpo_policy(jnp.array([0.9, 0.1]), jnp.array([0.0, 1e4]), clip=None)
    np.testing.assert_allclose(policy, [0.0, 1.0], atol=1e-6)


def test_illegal_actions_stay_impossible_and_no_gradient_flows():
    policy = cmpo.cmpo_policy(jnp.array([0.5, 0.0, 0.5]), jnp.array([0.0, 100.0, 0.5]))
    assert policy[1] == 0
    assert np.all(np.isfinite(policy))
    grad = jax.grad(lambda a: cmpo.cmpo_policy(jnp.array([0.5, 0.5]), a)[0])(jnp.array([0.1, 0.2]))
    np.testing.assert_array_equal(grad, 0)
    grad = jax.grad(lambda a: jnp.sum(cmpo.sampled_cmpo_weights(a)))(jnp.array([0.1, 0.2]))
    np.testing.assert_array_equal(grad, 0)


def _exact_and_setup():
    prior, advantages = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.3, -0.9, 4.0, 0.1])
    logits = jnp.array([0.5, -0.2, 0.1, 0.3])
    policy = np.asarray(cmpo.cmpo_policy(jnp.float32(prior), jnp.float32(advantages)))
    # d/dlogits of -sum_a w_a log softmax(logits)_a
    exact = np.asarray(jax.nn.softmax(logits)) * policy.sum() - policy
    return prior, jnp.float32(advantages), np.asarray(jax.nn.softmax(logits)), exact


def _gradient(weights, actions, probs):
    """Of `-mean_i w_i log pi(a_i)` with respect to the logits; weights, actions `[M, N]`."""
    one_hot = np.eye(4)[actions]
    return np.mean(weights[..., None] * (probs - one_hot), axis=1)


def test_sampled_gradient_tends_to_the_exact_one():
    prior, advantages, probs, exact = _exact_and_setup()
    actions = np.random.default_rng(0).choice(4, p=prior, size=(200, 4096))
    weights = np.asarray(cmpo.sampled_cmpo_weights(advantages[actions]))
    mean = _gradient(weights, actions, probs).mean(axis=0)
    assert np.linalg.norm(mean - exact) < 0.05 * np.linalg.norm(exact)


def test_one_sample_with_the_true_normaliser_is_unbiased():
    prior, advantages, probs, exact = _exact_and_setup()
    normalizer = np.sum(prior * np.exp(np.clip(advantages, -1, 1)))
    actions = np.arange(4)[:, None]  # every set of one sample, with its probability
    weights = np.asarray(cmpo.sampled_cmpo_weights(advantages[actions], normalizer=jnp.full(4, normalizer, jnp.float32)))
    mean = np.sum(prior[:, None] * _gradient(weights, actions, probs), axis=0)
    np.testing.assert_allclose(mean, exact, atol=1e-6)


def test_weights_by_hand_and_by_counts():
    advantages = np.array([0.5, -2.0, 3.0])
    e = np.exp(np.clip(advantages, -1, 1))
    expected = [e[i] / ((1 + e.sum() - e[i]) / 3) for i in range(3)]
    np.testing.assert_allclose(cmpo.sampled_cmpo_weights(jnp.float32(advantages)), expected, rtol=1e-5)
    drawn = np.array([0, 0, 1, 1, 1])
    one_by_one = np.asarray(cmpo.sampled_cmpo_weights(jnp.float32(advantages[drawn]), clip=None, z_init=0.5))
    counted = cmpo.sampled_cmpo_weights(jnp.float32(advantages), clip=None, z_init=0.5, counts=jnp.array([2.0, 3.0, 0.0]))
    np.testing.assert_allclose(counted[:2], one_by_one[[0, 2]], rtol=1e-5)
    chex.assert_tree_all_finite(cmpo.sampled_cmpo_weights(jnp.array([1e4, -1e4, 3e4]), clip=None))
