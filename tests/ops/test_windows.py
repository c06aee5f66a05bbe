"""What a model unrolled from every step should predict, with the ends of episodes inside the windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer.ops import windows
from podracer.types import FIRST, LAST, MID, TimeStep

pytestmark = pytest.mark.quick


def _reference(step_type, discount, num_steps):
    """`alive`, `value`, `policy` `[K, T]`, by walking each window step by step."""
    length = len(step_type) - 1
    alive, value, policy = (np.zeros((num_steps, length)) for _ in range(3))
    for t in range(length):
        if step_type[t] == LAST:
            continue
        ended = None
        for k in range(1, num_steps + 1):
            if t + k > length or ended == "truncated":
                break
            value[k - 1, t] = 1
            if ended == "terminated":
                continue
            alive[k - 1, t] = 1
            policy[k - 1, t] = 1
            if step_type[t + k] == LAST:
                ended = "terminated" if discount[t + k] == 0 else "truncated"
                policy[k - 1, t] = ended == "truncated"
    return alive, value, policy


@pytest.mark.parametrize("seed", range(5))
def test_masks_equal_a_walk_through_each_window(seed):
    rng, columns = np.random.default_rng(seed), []
    for _ in range(3):
        stream = [MID] if seed % 2 else [FIRST]
        discount = [1.0]
        while len(stream) < 12:
            stream.append(FIRST if stream[-1] == LAST else rng.choice([MID, LAST], p=[0.6, 0.4]))
            discount.append(float(rng.integers(2)) if stream[-1] == LAST else 1.0)
        columns.append((stream, discount))
    step_type, discount = (np.array([c[i] for c in columns]).T for i in range(2))
    timestep = TimeStep(
        step_type=jnp.array(step_type), reward=jnp.zeros(step_type.shape), discount=jnp.array(discount), observation=()
    )
    got = jax.jit(windows.window_masks, static_argnums=1)(timestep, 4)
    for b in range(3):
        alive, value, policy = _reference(step_type[:, b], discount[:, b], 4)
        np.testing.assert_array_equal(got.alive[..., b], alive)
        np.testing.assert_array_equal(got.value[..., b], value)
        np.testing.assert_array_equal(got.policy[..., b], policy)


def test_windows_are_shifted_copies():
    values = jnp.arange(5.0)
    np.testing.assert_array_equal(windows.windows(values, 3, 1), [[1, 2, 3, 4], [2, 3, 4, 0], [3, 4, 0, 0]])
    np.testing.assert_array_equal(windows.windows(values, 2), [[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]])
