"""GECO on problems whose answers are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer.ops import geco

pytestmark = pytest.mark.quick


@functools.partial(jax.jit, static_argnames=("num_steps", "rate"))
def solve(bound, scale=1.0, num_steps=4000, rate=0.01):
    """`min (x - 3)^2` subject to `scale * x <= scale * bound`, by gradient descent. The path of x, and the last state."""

    def step(carry, _):
        x, state = carry

        def violation(x):
            return geco.relative_violation(scale * x, scale * bound)

        gradient = jax.grad(lambda x: (x - 3.0) ** 2 + geco.penalty(state, violation(x), decay=0.9))(x)
        x = x - 0.02 * gradient
        return (x, geco.dual_step(state, violation(x), rate=rate, decay=0.9)), x

    (_, state), path = jax.lax.scan(step, (jnp.float32(0), geco.init_geco()), None, num_steps)
    return path, state


def test_an_active_constraint_is_met_at_the_multiplier_of_the_lagrangian():
    path, state = solve(1.0)
    assert path[-1] == pytest.approx(1.0, abs=1e-2)
    assert jnp.exp(state.log_multiplier) == pytest.approx(4.0, abs=1e-2)  # d(x - 3)^2/dx = -4 at x = 1


def test_the_multiplier_of_an_inactive_constraint_falls_to_its_floor():
    path, state = solve(5.0)
    assert path[-1] == pytest.approx(3.0, abs=1e-3)
    assert jnp.exp(state.log_multiplier) == pytest.approx(1e-6, rel=1e-3)


def test_an_infeasible_constraint_drives_the_multiplier_to_its_cap():
    state = geco.init_geco()
    for _ in range(3):
        state = geco.dual_step(state, jnp.float32(1.0), rate=10.0)
    assert jnp.exp(state.log_multiplier) == pytest.approx(1e6, rel=1e-3)


def test_the_scale_of_the_constraint_changes_nothing():
    np.testing.assert_allclose(solve(1.0)[0], solve(1.0, 1000.0)[0], atol=1e-3)


def test_a_penalty_has_the_value_of_the_average_and_the_gradient_of_the_batch():
    state = geco.dual_step(geco.init_geco(2.0), jnp.float32(0.5), rate=0.0)
    value, gradient = jax.value_and_grad(lambda v: geco.penalty(state, v, decay=0.9))(jnp.float32(1.5))
    assert value == pytest.approx(2.0 * (0.9 * 0.5 + 0.1 * 1.5))
    assert gradient == pytest.approx(2.0)
    no_data = geco.init_geco(2.0)
    assert geco.penalty(no_data, jnp.float32(1.5)) == pytest.approx(3.0)  # nothing of the start is left in the average
    assert geco.dual_step(no_data, jnp.float32(1.5)).average == 1.5
    zero = jax.grad(lambda s: geco.penalty(state._replace(log_multiplier=s), jnp.float32(1.5)))(jnp.float32(0))
    assert zero == 0


def test_all_devices_keep_the_same_multiplier():
    step = jax.vmap(lambda v: geco.dual_step(geco.init_geco(), v, axis_name="devices"), axis_name="devices")
    state = step(jnp.array([0.0, 1.0, 5.0]))
    alone = geco.dual_step(geco.init_geco(), jnp.float32(2.0))
    for parallel, expected in zip(state, alone, strict=True):
        np.testing.assert_allclose(parallel, np.full(3, expected), rtol=1e-6)
