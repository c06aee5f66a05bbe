"""The ring against a list of the last `length` unrolls."""

import collections

import jax
import jax.numpy as jnp
import numpy as np

from podracer.stores import ring


def test_holds_the_last_unrolls_and_samples_all_of_them_evenly():
    length, num_envs = 3, 2
    store = ring.init({"x": jax.ShapeDtypeStruct((num_envs, 2), jnp.int32)}, length)
    insert, sample = jax.jit(ring.insert), jax.jit(ring.sample, static_argnums=2)
    expected: collections.deque = collections.deque(maxlen=length)
    for i in range(2 * length + 2):
        unroll = {"x": jnp.array([[i, 10 * i], [100 + i, 1000 + i]])}
        store = insert(store, unroll)
        expected.append(i)
        drawn = np.asarray(sample(store, jax.random.split(jax.random.key(i), num_envs), 300)["x"])
        assert drawn.shape == (num_envs, 300, 2)
        values, counts = np.unique(drawn[0, :, 0], return_counts=True)
        assert list(values) == sorted(expected)
        assert counts.min() > 300 / len(expected) * 0.7
        np.testing.assert_array_equal(drawn[0, :, 1], 10 * drawn[0, :, 0])
        assert set(drawn[1, :, 0]) == {100 + j for j in expected}


def test_the_count_never_overflows():
    store = ring.init({"x": jax.ShapeDtypeStruct((1,), jnp.int32)}, 3)
    for i in range(20):
        store = ring.insert(store, {"x": jnp.array([i])})
    assert int(store.num_inserted) <= 6
    assert sorted(np.asarray(store.data["x"])[0]) == [17, 18, 19]
