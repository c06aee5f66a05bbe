"""R2D2's sequences: targets against a loop in numpy across all ends of episodes; epsilons and exploration."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer.ops import episodes, sequence_q
from podracer.types import FIRST, LAST, MID, TimeStep

pytestmark = pytest.mark.quick

T, A, GAMMA = 14, 3, 0.9
# Two whole episodes and a third that does not end: a termination, then a truncation; the second has one transition.
STEP_TYPES = [MID, MID, MID, LAST, FIRST, LAST, FIRST, MID, MID, MID, MID, LAST, FIRST, MID, MID]
DISCOUNTS = [1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]


def stream(seed=0):
    """A time step stream `[T+1]` and values `[T+1, A]` of two networks, large enough for rescaling to matter."""
    rng = np.random.default_rng(seed)
    first = np.array(STEP_TYPES) == FIRST
    timestep = TimeStep(
        step_type=np.array(STEP_TYPES, np.int32),
        reward=np.where(first, 0.0, rng.normal(scale=10, size=T + 1)).astype(np.float32),
        discount=np.array(DISCOUNTS, np.float32),
        observation=(),
    )
    return timestep, *(rng.normal(scale=5, size=(T + 1, A)).astype(np.float32) for _ in range(2))


def h(x):
    return np.sign(x) * (np.sqrt(abs(x) + 1) - 1) + 1e-3 * x


def h_inverse(y):
    """By bisection: independent of the closed form."""
    low, high = -1e6, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if h(middle) < y else (low, middle)
    return low


def reference(timestep, selector, target, num_steps, rescale):
    """`[T]`: walks on from every step until n rewards are counted, the episode ends, or the sequence does."""
    forward, inverse = (h, h_inverse) if rescale else (lambda x: x, lambda x: x)
    result = np.zeros(T)
    for t in range(T):
        if timestep.step_type[t] == LAST:
            continue
        total, weight, s = 0.0, 1.0, t
        while True:
            s += 1
            total += weight * timestep.reward[s]
            weight *= GAMMA * timestep.discount[s]
            if s == t + num_steps or timestep.step_type[s] == LAST or s == T:
                break
        result[t] = forward(total + weight * inverse(target[s][np.argmax(selector[s])]))
    return result


@functools.partial(jax.jit, static_argnums=(3, 4))
def compute(timestep, selector, target, num_steps, rescale):
    steps = episodes.transitions(timestep, GAMMA)
    return sequence_q.double_q_targets(steps, selector[1:], target[1:], num_steps, rescale)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("num_steps", [1, 3, 5, 20])
def test_targets_are_those_of_the_loop(num_steps, rescale):
    timestep, selector, target = stream()
    got = compute(timestep, selector, target, num_steps, rescale)
    np.testing.assert_allclose(got, reference(timestep, selector, target, num_steps, rescale), rtol=1e-3, atol=1e-3)
    assert got[3] == got[5] == got[11] == 0


def test_a_truncation_bootstraps_from_its_own_observation_and_nothing_crosses_an_episode():
    timestep, selector, target = stream()
    base = np.asarray(compute(timestep, selector, target, 5, True))

    def touched(step):
        moved = target.copy()
        moved[step] += 100.0
        return set(np.flatnonzero(np.asarray(compute(timestep, selector, moved, 5, True)) != base))

    assert touched(3) == set()  # a termination
    assert touched(5) == {4}  # truncations
    assert touched(11) == {6, 7, 8, 9, 10}
    assert touched(4) == touched(6) == touched(12) == set()  # FIRST
    assert touched(14) == {12, 13}  # the end of the sequence


def test_the_online_network_chooses_and_the_target_network_values():
    timestep = stream()[0]
    steps = episodes.transitions(timestep, GAMMA)
    q_t, chosen = jnp.array([[1.0, 5.0, 2.0]] * T), jnp.array([[0.0, 0.0, 1.0]] * T)
    got = sequence_q.double_q_targets(steps, chosen, q_t, 1, rescale=False)
    np.testing.assert_allclose(got, steps.mask_tm1 * (steps.r_t + 2.0 * steps.discount_t), rtol=1e-6)


def test_errors_are_masked_and_gradients_flow_into_q_alone():
    timestep, selector, target = stream()
    mask = episodes.transitions(timestep, GAMMA).mask_tm1
    action = jnp.arange(T) % A

    def total(q, target):
        targets = compute(timestep, q, target, 3, True)
        return jnp.sum(sequence_q.td_errors(q[:-1], action, targets, mask))

    error = sequence_q.td_errors(selector[:-1], action, target[:-1, 0], mask)
    np.testing.assert_allclose(error, mask * (target[:-1, 0] - selector[np.arange(T), action]), rtol=1e-6)
    of_q, of_target = jax.grad(total, argnums=(0, 1))(jnp.asarray(selector), jnp.asarray(target))
    expected = np.zeros((T + 1, A))
    expected[np.arange(T), action] = -mask
    np.testing.assert_array_equal(of_q, expected)
    np.testing.assert_array_equal(of_target, 0)


def test_epsilons_are_drawn_at_the_start_of_an_episode_and_kept():
    keys = jax.random.split(jax.random.key(0), 4000)
    old, first = jnp.full(4000, 0.123), jnp.arange(4000) % 2 == 0
    drawn = np.asarray(sequence_q.episode_epsilon(old, first, keys, base=0.4, alpha=7.0))
    assert np.all(drawn[1::2] == np.float32(0.123))
    u = (np.log(drawn[::2]) / np.log(0.4) - 1) / 7  # uniform: compare the quantiles
    np.testing.assert_allclose(np.quantile(u, [0.0, 0.25, 0.5, 0.75, 1.0]), [0, 0.25, 0.5, 0.75, 1], atol=0.03)


def test_epsilon_greedy_never_plays_what_is_illegal():
    q = jnp.array([[1.0, 3.0, 2.0, -1e9], [-1e9, 0.0, 1.0, 2.0]])
    legal = jnp.array([[True, True, True, False], [False, True, True, True]])
    got = jnp.exp(sequence_q.epsilon_greedy(q, legal, jnp.array([0.3, 0.0])))
    np.testing.assert_allclose(got, [[0.1, 0.8, 0.1, 0.0], [0.0, 0.0, 0.0, 1.0]], atol=1e-6)
    everything = jnp.exp(sequence_q.epsilon_greedy(q, None, jnp.array([0.4, 1.0])))
    np.testing.assert_allclose(everything, [[0.1, 0.7, 0.1, 0.1], [0.25] * 4], atol=1e-6)
