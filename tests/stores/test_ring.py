"""The ring against a list of the last `length` unrolls."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer.stores import ring

pytestmark = pytest.mark.quick


def test_holds_the_last_unrolls_and_samples_all_of_them_evenly():
    length, num_envs = 3, 2
    store = ring.init({"x": jax.ShapeDtypeStruct((num_envs, 2), jnp.int32)}, length)
    insert, sample = jax.jit(ring.insert), jax.jit(ring.sample, static_argnums=2)
    expected: collections.deque = collections.deque(maxlen=length)
    for i in range(2 * length + 2):
        unroll = {"x": jnp.array([[i, 10 * i], [100 + i, 1000 + i]])}
        store, slot = insert(store, unroll)
        assert int(store.data["x"][0, slot, 0]) == i
        expected.append(i)
        drawn, index, importance = sample(store, jax.random.split(jax.random.key(i), num_envs), 300)
        drawn = np.asarray(drawn["x"])
        np.testing.assert_array_equal(drawn[1], np.asarray(store.data["x"])[1][np.asarray(index)[1]])
        assert np.all(np.asarray(importance) == 1)
        assert drawn.shape == (num_envs, 300, 2)
        values, counts = np.unique(drawn[0, :, 0], return_counts=True)
        assert list(values) == sorted(expected)
        assert counts.min() > 300 / len(expected) * 0.7
        np.testing.assert_array_equal(drawn[0, :, 1], 10 * drawn[0, :, 0])
        assert set(drawn[1, :, 0]) == {100 + j for j in expected}


def test_the_count_never_overflows():
    store = ring.init({"x": jax.ShapeDtypeStruct((1,), jnp.int32)}, 3)
    for i in range(20):
        store, _ = ring.insert(store, {"x": jnp.array([i])})
    assert int(store.num_inserted) <= 6
    assert sorted(np.asarray(store.data["x"])[0]) == [17, 18, 19]


def test_draws_by_priority():
    """Schaul et al. 2016, equations 1 and section 3.4: P ~ p ** alpha, importance 1 / (N P); new unrolls get the maximum."""
    store = ring.init({"x": jax.ShapeDtypeStruct((2,), jnp.int32)}, 4, prioritized=True)
    for i in range(3):
        store, _ = ring.insert(store, {"x": jnp.array([i, 10 + i])})
    np.testing.assert_array_equal(store.priority, [[1, 1, 1, 0], [1, 1, 1, 0]])
    store = ring.prioritize(store, jnp.array([[0, 2], [1, 1]]), jnp.array([[4.0, 0.0], [9.0, 9.0]]))
    drawn, index, importance = ring.sample(store, jax.random.split(jax.random.key(0), 2), 20_000, 0.5)
    share = np.stack([np.bincount(row, minlength=4) / 20_000 for row in np.asarray(index)])
    expected = np.array([[2, 1, 0, 0], [1, 3, 1, 0]]) / np.array([[3], [5]])
    np.testing.assert_allclose(share, expected, atol=0.015)
    np.testing.assert_array_equal(drawn["x"], np.asarray(store.data["x"])[np.arange(2)[:, None], index])
    np.testing.assert_allclose(importance, 1 / (3 * np.take_along_axis(expected, np.asarray(index), 1)), rtol=1e-5)
    store, slot = ring.insert(store, {"x": jnp.array([7, 17])})
    assert slot == 3
    np.testing.assert_array_equal(store.priority[:, 3], [4, 9])
