"""Torsos: the two forms of a convolution are one, and observations reach the network scaled and unmasked."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from podracer.nets import torso
from podracer.types import EnvironmentSpec


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("kernel", "stride", "size"), [(8, 4, 30), (4, 2, 13), (3, 1, 9), (3, 2, 10), (1, 1, 4), (2, 2, 7)])
def test_conv_by_matmul_is_the_convolution(kernel, stride, size, padding):
    x = jax.random.normal(jax.random.key(0), (3, size, size + 2, 5))
    w = jax.random.normal(jax.random.key(1), (kernel, kernel, 5, 7)) / kernel

    def value_and_grads(form):
        out = form(x, w, stride, padding)
        weight = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return out, jax.grad(lambda x, w: jnp.sum(form(x, w, stride, padding) * weight), argnums=(0, 1))(x, w)

    ours, reference = value_and_grads(torso.conv_by_matmul), value_and_grads(torso.conv_by_xla)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), ours, reference)


@pytest.mark.parametrize("dtype", [np.uint8, bool])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(8, 4, "VALID"), (3, 1, "SAME")])
def test_images_are_scaled_in_both_forms(kernel, stride, padding, dtype):
    x = jax.random.randint(jax.random.key(0), (3, 20, 20, 4), 0, 256).astype(dtype)
    w = jax.random.normal(jax.random.key(1), (kernel, kernel, 4, 7)) / kernel
    expected = torso.conv_by_xla(torso.as_float(x), w, stride, padding)
    for form in (torso.conv_by_matmul, torso.conv_by_xla):
        out = form(x, w, stride, padding)
        assert out.dtype == jnp.float32
        np.testing.assert_allclose(out, expected, atol=1e-5)


def _spec(observation):
    return EnvironmentSpec(name="test", observation=observation, action=specs.DiscreteArray(3))


def _apply(spec, config, observation):
    net = hk.without_apply_rng(hk.transform(lambda x: torso.make_torso(spec, config)(x)))
    return net.apply(net.init(jax.random.key(0), observation), observation), net.init(jax.random.key(0), observation)


@pytest.mark.parametrize("kind", ["auto", "mlp", "nature", "a3c", "impala"])
def test_pixels(kind):
    spec = _spec(specs.BoundedArray((84, 84, 4), np.uint8, 0, 255))
    config = torso.TorsoConfig(kind=kind, hidden=(32,))
    features, params = _apply(spec, config, jnp.full((2, 84, 84, 4), 255, jnp.uint8))
    assert features.shape == (2, 32)
    assert features.dtype == jnp.float32
    assert any("conv" in name for name in params) == (kind != "mlp")


def test_legal_actions_are_no_feature_and_are_masked():
    spec = _spec({"board": specs.Array((3, 3), np.float32), "legal_actions": specs.Array((3,), bool)})
    legal = jnp.array([[True, False, True], [True, True, True]])
    observation = {"board": jnp.ones((2, 3, 3)), "legal_actions": legal}
    features, _ = _apply(spec, torso.TorsoConfig(), observation)
    np.testing.assert_array_equal(features[0], features[1])
    probabilities = jax.nn.softmax(torso.mask_logits(jnp.zeros((2, 3)), observation))
    np.testing.assert_allclose(probabilities, [[0.5, 0, 0.5], [1 / 3] * 3], atol=1e-6)


def test_a_network_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"set torso\.kind=mlp"):
        torso.make_torso(_spec(specs.Array((4,), np.float32)), torso.TorsoConfig(kind="nature"))
    with pytest.raises(ValueError, match=r"torso\.hidden"):
        torso.make_torso(_spec(specs.Array((4,), np.float32)), torso.TorsoConfig(hidden=()))
