"""Surrogate losses: their gradients against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer.ops import policy_gradients

pytestmark = pytest.mark.quick


def _gradient(loss, log_prob, *arguments):
    return float(jax.grad(lambda x: loss(x, *arguments))(jnp.float32(log_prob)))


def test_truncated_ratio_keeps_a_gradient_where_ppo_has_none():
    behaviour, advantage = np.log(0.25), 2.0
    loss = policy_gradients.truncated_policy_gradient_loss
    np.testing.assert_allclose(_gradient(loss, np.log(0.1), behaviour, advantage), -0.4 * 2, rtol=1e-5)
    np.testing.assert_allclose(_gradient(loss, np.log(0.5), behaviour, advantage), -1.0 * 2, rtol=1e-5)
    ppo = policy_gradients.ppo_clip_loss
    np.testing.assert_allclose(_gradient(ppo, np.log(0.26), behaviour, advantage, 0.2), -1.04 * 2, rtol=1e-5)
    assert _gradient(ppo, np.log(0.5), behaviour, advantage, 0.2) == 0
    assert _gradient(ppo, np.log(0.1), behaviour, -advantage, 0.2) == 0
    assert _gradient(ppo, np.log(0.5), behaviour, -advantage, 0.2) != 0


def test_beta_loo_with_full_weight_is_unbiased_and_with_exact_values_has_no_variance():
    logits, behaviour = jnp.array([0.3, -0.5, 0.1]), np.array([0.5, 0.2, 0.3])
    q_true, q_model = np.array([1.0, -2.0, 0.5]), np.array([0.2, -1.0, 3.0])

    def gradient(action, q_values, max_beta):
        def loss(x):
            return policy_gradients.beta_loo_loss(
                jax.nn.log_softmax(x),
                jnp.int32(action),
                jnp.log(behaviour[action]),
                q_true[action],
                jnp.float32(q_values),
                max_beta,
            )

        return np.asarray(jax.grad(loss)(logits))

    exact = np.asarray(jax.grad(lambda x: -jnp.sum(jax.nn.softmax(x) * q_true))(logits))
    mean = sum(behaviour[a] * gradient(a, q_model, 100.0) for a in range(3))
    np.testing.assert_allclose(mean, exact, atol=1e-5)
    for action in range(3):
        np.testing.assert_allclose(gradient(action, q_true, 1.0), exact, atol=1e-5)
