"""The model as a loss unrolls it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer.nets.dynamics import unroll_model

pytestmark = pytest.mark.quick

K, SIZE = 4, 3
RNG = np.random.default_rng(0)
STATE, ACTIONS, TRANSITION, CONTROL = (
    jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((SIZE,), (K, 2), (SIZE, SIZE), (2, SIZE))
)


def unroll(state, transitions, gradient):
    """A linear model with a transition matrix of its own for each step, `[K, SIZE, SIZE]`."""

    def step(state, inputs):
        return state @ inputs[2:].reshape(SIZE, SIZE) + inputs[:2] @ CONTROL

    return unroll_model(step, state, jnp.concatenate([ACTIONS, transitions.reshape(K, -1)], axis=-1), gradient)


@pytest.mark.parametrize("gradient", [0.0, 0.5, 1.0])
def test_each_step_scales_the_gradient_and_no_value(gradient):
    """`d s_k / d s_0` is scaled k times; that by the parameters of step j, as often as steps follow it, k - j times."""
    transitions = jnp.tile(TRANSITION, (K, 1, 1))
    state, expected = np.asarray(STATE), []
    for k in range(K):
        state = state @ np.asarray(TRANSITION) + np.asarray(ACTIONS[k] @ CONTROL)
        expected.append(state)
    np.testing.assert_allclose(unroll(STATE, transitions, gradient), expected, rtol=1e-5)

    by_state, by_transitions = jax.jacrev(unroll, (0, 1))(STATE, transitions, gradient)
    for k in range(K):
        power = np.linalg.matrix_power(np.asarray(TRANSITION, np.float64), k + 1)
        np.testing.assert_allclose(by_state[k].T, gradient ** (k + 1) * power, rtol=1e-4, atol=1e-5)
    # Central differences, of a map that is linear in each step's matrix.
    for j in range(K):
        direction = RNG.normal(size=(SIZE, SIZE)).astype(np.float32)
        plus, minus = (unroll(STATE, transitions.at[j].add(sign * direction), 1.0) for sign in (1, -1))
        for k in range(K):
            found = np.sum(by_transitions[k, :, j] * direction, axis=(-2, -1))
            scale = gradient ** (k - j) if k >= j else 0.0
            np.testing.assert_allclose(found, scale * (plus - minus)[k] / 2, rtol=1e-4, atol=1e-4)
