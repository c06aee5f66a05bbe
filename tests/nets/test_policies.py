"""Policies: densities, entropies and samples agree with each other, and gradients stay finite where a policy has settled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from podracer.nets import policies
from podracer.types import EnvironmentSpec

LINE = specs.BoundedArray((1,), np.float32, -2.0, 6.0)
BOX = specs.BoundedArray((2, 2), np.float32, [[-2.0, 0.0], [-1.0, 3.0]], [[2.0, 1.0], [1.0, 3.5]])
# Mean and raw standard deviation of one action: near the middle, near a bound, narrow, wide.
SHAPES = [(0.2, -0.3), (2.0, 0.5), (-4.0, -5.0), (0.0, 1.5)]


def make(action):
    return policies.make_policy(EnvironmentSpec(name="test", observation=(), action=action))


def density(policy, parameters, num=200_001):
    """Actions of `LINE` `[num]`, the density there of actions scaled to [-1, 1], and the width of a step between them."""
    u = np.linspace(-9, 9, num)  # dense near the bounds, where the density may be steep
    action = 2 + 4 * np.tanh(u)
    return action, np.exp(np.asarray(policy.log_prob(parameters, jnp.float32(action)[:, None]), np.float64)), np.tanh(u)


@pytest.mark.parametrize("shape", SHAPES)
def test_log_prob_is_the_density_of_samples(shape):
    policy, parameters = make(LINE), jnp.array(shape)
    action, p, scaled = density(policy, parameters)
    assert np.trapezoid(p, scaled) == pytest.approx(1.0, abs=1e-2)
    samples = jax.vmap(policy.sample, in_axes=(None, 0))(parameters, jax.random.split(jax.random.key(0), 20_000))
    assert samples.dtype == jnp.float32
    assert np.all((samples >= -2) & (samples <= 6))
    cumulative = np.concatenate([[0.0], np.cumsum((p[1:] + p[:-1]) / 2 * np.diff(scaled))])
    for quantile in (0.1, 0.5, 0.9):
        point = np.interp(quantile, cumulative, action)
        assert np.mean(np.asarray(samples) <= point) == pytest.approx(quantile, abs=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_entropy_of_a_squashed_gaussian_is_the_mean_surprise(shape):
    policy, parameters = make(LINE), jnp.array(shape)
    _, p, scaled = density(policy, parameters)
    surprise = np.trapezoid(np.where(p > 0, -p * np.log(np.maximum(p, 1e-300)), 0.0), scaled)
    assert float(policy.entropy(parameters)) == pytest.approx(surprise, abs=0.05)
    # Dimensions are independent: of several actions it is the sum.
    both = make(specs.BoundedArray((2,), np.float32, -1.0, 1.0))
    assert float(both.entropy(jnp.repeat(parameters, 2))) == pytest.approx(2 * float(policy.entropy(parameters)), rel=1e-4)


def test_no_policy_has_more_entropy_than_the_uniform_one():
    policy = make(specs.BoundedArray((1,), np.float32, -1.0, 1.0))
    ascend = jax.jit(lambda p: p + 0.1 * jax.grad(lambda q: jnp.sum(policy.entropy(q)))(p))
    parameters = jnp.array([1.5, 2.0])
    for _ in range(300):
        parameters = ascend(parameters)
    assert float(policy.entropy(parameters)) == pytest.approx(np.log(2.0), abs=0.02)


@pytest.mark.parametrize("parameters", [[0.0] * 8, [100.0] * 4 + [-100.0] * 4, [-100.0] * 4 + [50.0] * 4])
def test_gradients_are_finite_at_bounds_and_far_out(parameters):
    policy, parameters = make(BOX), jnp.array(parameters)
    sample = policy.sample(parameters, jax.random.key(0))
    for action in (sample, jnp.float32(BOX.minimum), jnp.float32(BOX.maximum)):
        for function in (lambda p, a=action: policy.log_prob(p, a), policy.entropy, lambda p: policy.kl(p, jnp.zeros(8))):
            value, gradient = jax.value_and_grad(function)(parameters)
            assert np.isfinite(value)
            assert np.all(np.isfinite(gradient))


def test_a_settled_policy_keeps_off_the_bounds():
    # However far training drives the head, not all actions are the bound itself, where no density says which was better.
    policy, parameters = make(LINE), jnp.array([1e3, -1e3])
    samples = jax.vmap(policy.sample, in_axes=(None, 0))(parameters, jax.random.split(jax.random.key(0), 1000))
    assert len(np.unique(samples)) > 100
    unbounded = policies.SquashedGaussian(LINE, mean_limit=np.inf)
    samples = jax.vmap(unbounded.sample, in_axes=(None, 0))(parameters, jax.random.split(jax.random.key(0), 1000))
    assert len(np.unique(samples)) == 1


def test_shapes_and_bounds_of_actions_of_any_rank():
    policy = make(BOX)
    parameters = jax.random.normal(jax.random.key(0), (3, 5, policy.size))
    action = policy.mode(parameters)
    assert action.shape == (3, 5, 2, 2)
    assert np.all((action >= BOX.minimum) & (action <= BOX.maximum))
    assert policy.log_prob(parameters, action).shape == policy.entropy(parameters).shape == (3, 5)
    assert policy.encode(action).shape == (3, 5, policy.encoded_size)


def test_categorical_is_what_it_says_and_leaves_illegal_actions_alone():
    policy = make(specs.DiscreteArray(3))
    logits = policy.mask(jnp.array([0.5, -1.0, 2.0]), {"legal_actions": jnp.array([True, False, True])})
    p = np.exp([0.5, 2.0]) / np.sum(np.exp([0.5, 2.0]))
    np.testing.assert_allclose(np.exp(policy.log_prob(logits, jnp.arange(3)[:, None])).ravel(), [p[0], 0, p[1]], rtol=1e-5)
    assert float(policy.entropy(logits)) == pytest.approx(-np.sum(p * np.log(p)), rel=1e-5)
    samples = jax.vmap(policy.sample, in_axes=(None, 0))(logits, jax.random.split(jax.random.key(0), 2000))
    assert samples.dtype == jnp.int32
    assert np.mean(samples == 2) == pytest.approx(p[1], abs=0.03)
    assert not np.any(samples == 1)
    assert policy.mode(logits) == 2


@pytest.mark.parametrize(
    "action",
    [
        specs.Array((2,), np.float32),
        specs.BoundedArray((2,), np.float32, -np.inf, 1.0),
        specs.BoundedArray((2,), np.int32, 0, 3),
    ],
)
def test_other_actions_are_refused(action):
    with pytest.raises(ValueError, match="discrete, or continuous with finite bounds"):
        make(action)
