"""Residual networks: shapes, how actions become planes, gradients everywhere, and samples that do not mix."""

import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer.nets import resnet, torso
from podracer.nets.resnet import Representation, ResnetConfig, SpatialDynamics, SpatialHead, action_planes, scale_hidden

pytestmark = pytest.mark.quick

SMALL = ResnetConfig(channels=4, blocks=1)
ATARI = ResnetConfig(channels=4, blocks=0, downsample="atari")


def _net(make, *inputs):
    """`apply` and parameters of the module that `make` builds. Numpy's: compiling an initialiser costs more than a test."""
    net = hk.without_apply_rng(hk.transform(lambda *x: make()(*x)))
    rng = np.random.default_rng(0)

    def fill(path, shape):
        noise = rng.normal(size=shape.shape) / (np.sqrt(np.prod(shape.shape[:-1])) if len(shape.shape) > 1 else 5)
        return jnp.asarray(noise + (path[-1].key == "scale"), shape.dtype)

    params = jax.tree_util.tree_map_with_path(fill, jax.eval_shape(net.init, jax.random.key(0), *inputs))
    return jax.jit(net.apply), params


def _random(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def _state(*leading):
    return _random(*leading, 5, 5, 4)


def test_representation_keeps_the_resolution_of_a_board():
    board = _random(3, 5, 5, 2)
    apply, params = _net(lambda: Representation(SMALL), board)
    latent = apply(params, board)
    assert latent.shape == (3, 5, 5, 4)
    assert latent.dtype == jnp.float32
    np.testing.assert_allclose(apply(params, board[1]), latent[1], atol=1e-5)  # samples do not mix


def test_representation_of_atari_is_6x6():
    net = hk.transform(lambda x: Representation(ResnetConfig(downsample="atari"))(x))
    frames = jax.ShapeDtypeStruct((2, 96, 96, 128), jnp.uint8)
    params = jax.eval_shape(net.init, jax.random.key(0), frames)
    assert jax.eval_shape(net.apply, params, None, frames).shape == (2, 6, 6, 256)
    small = jax.ShapeDtypeStruct((2, 20, 33, 128), jnp.uint8)
    assert jax.eval_shape(net.apply, params, None, small).shape == (2, 2, 3, 256)  # rounded up
    kernels = [p["w"].shape for name, p in params.items() if "conv" in name]
    assert kernels[0] == (3, 3, 128, 128)
    # Two strided convolutions; 2 blocks of half the channels; 3, 3 and 16 of all; two convolutions a block.
    assert sum(k[-1] == 128 for k in kernels) == 1 + 2 * 2
    assert sum(k[-1] == 256 for k in kernels) == 1 + 2 * (3 + 3 + 16)


def test_bytes_are_scaled():
    frames = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)
    apply, params = _net(lambda: Representation(SMALL), frames)
    latent = apply(params, frames)
    assert latent.shape == (2, 20, 20, 4)
    np.testing.assert_allclose(latent, apply(params, frames.astype(np.float32) / 255), atol=1e-5)


@pytest.mark.parametrize("num_actions", [25, 26])
def test_action_plane_of_a_board(num_actions):
    planes = action_planes(jnp.eye(num_actions), 5, 5)
    assert planes.shape == (num_actions, 5, 5, 1)
    for move in range(25):
        expected = np.zeros((5, 5))
        expected[move // 5, move % 5] = 1
        np.testing.assert_array_equal(planes[move, ..., 0], expected)
    np.testing.assert_array_equal(planes[25:], 0)  # a pass


def test_action_planes_of_atari():
    action = jnp.eye(18)[None]
    constant = np.broadcast_to((np.arange(18) / 18)[:, None, None, None], (18, 6, 6, 1))
    np.testing.assert_allclose(action_planes(action, 6, 6), constant[None], atol=1e-6)
    np.testing.assert_allclose(action_planes(jnp.eye(25), 5, 5, "scalar")[:18, 0, 0, 0] * 25, np.arange(18), atol=1e-5)
    one_hot = action_planes(action, 6, 6, "one_hot")
    np.testing.assert_array_equal(one_hot, np.broadcast_to(np.eye(18)[None, :, None, None], (1, 18, 6, 6, 18)))


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"resnet\.action_planes=board needs 25 or 26 actions"):
        action_planes(jnp.eye(3), 5, 5, "board")
    with pytest.raises(ValueError, match="actions of size 3 got"):
        _net(lambda: SpatialDynamics(SMALL, 3), _state(1), jnp.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"resnet\.channels=1 must be >= 2"):
        _net(lambda: Representation(ResnetConfig(channels=1, downsample="atari")), jnp.zeros((1, 16, 16, 1)))


@pytest.mark.parametrize(("num_actions", "kind"), [(26, "auto"), (3, "auto"), (3, "one_hot")])
def test_dynamics_hears_actions_and_its_leading_dimensions_broadcast(num_actions, kind):
    config = ResnetConfig(channels=4, blocks=1, action_planes=kind)
    state, action = _state(2), jnp.eye(num_actions)
    apply, params = _net(lambda: SpatialDynamics(config, num_actions), state, action[:2])
    every = apply(params, state[:, None], action[None])
    assert every.shape == (2, num_actions, 5, 5, 4)
    assert every.dtype == jnp.float32
    assert jnp.abs(every[:, :1] - every[:, 1:]).max(axis=(-3, -2, -1)).min() > 1e-3

    single = functools.partial(apply, params)
    vmapped = jax.jit(jax.vmap(jax.vmap(single, (None, 0)), (0, None)))(state, action)
    np.testing.assert_allclose(vmapped, every, atol=1e-5)
    np.testing.assert_allclose(single(state[1], action[2]), every[1, 2], atol=1e-5)


def test_head_starts_near_zero():
    net = hk.transform(lambda x: SpatialHead(SMALL, (8,), 7, "value")(x))
    out = jax.jit(lambda key, x: net.apply(net.init(key, x), None, x))(jax.random.key(0), _state(6))
    assert 0 < jnp.abs(out).max() < 0.5


@pytest.mark.parametrize("hidden", [(8,), ()])
def test_head_takes_any_leading_dimensions(hidden):
    state = _state(2, 3)
    apply, params = _net(lambda: SpatialHead(SMALL, hidden, 7, "value"), state)
    out = apply(params, state)
    assert out.shape == (2, 3, 7)
    np.testing.assert_allclose(jax.vmap(functools.partial(apply, params))(state), out, atol=1e-5)
    np.testing.assert_allclose(apply(params, state[1, 2]), out[1, 2], atol=1e-5)


def _assert_gradient_everywhere(loss, *inputs):
    apply, params = _net(lambda: loss, *inputs)
    for path, grad in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(apply))(params, *inputs)):
        assert jnp.isfinite(grad).all(), path
        assert jnp.abs(grad).max() > 1e-5, path


def test_every_parameter_of_a_model_receives_gradient():
    def loss(observation, action):
        state = scale_hidden(Representation(SMALL)(observation), (-3, -2, -1))
        state = scale_hidden(SpatialDynamics(SMALL, 3)(state, action), (-3, -2, -1))
        return -jax.nn.log_softmax(SpatialHead(SMALL, (8,), 5, "policy")(state))[..., 0].mean()

    _assert_gradient_everywhere(loss, _random(4, 5, 5, 2), np.eye(3, dtype=np.float32)[[0, 1, 2, 1]])


def test_every_parameter_of_atari_receives_gradient(monkeypatch):
    # Both forms of a convolution are one (test_torso.py), and this one compiles in less than half the time.
    monkeypatch.setattr(torso, "conv_by_matmul", torso.conv_by_xla)
    _assert_gradient_everywhere(lambda x: (Representation(ATARI)(x) ** 2 * jnp.arange(4)).sum(), _random(2, 32, 32, 2))


@pytest.mark.parametrize(("shape", "axes"), [((3, 2, 7), -1), ((3, 2, 5, 5, 4), (-3, -2, -1)), ((2, 5, 5, 4), [-3, -2, -1])])
def test_scale_hidden(shape, axes):
    x = 100 * _random(*shape)
    scaled = np.asarray(jax.jit(lambda x: scale_hidden(x, axes))(x))
    axes = axes if isinstance(axes, int) else tuple(axes)
    low, high = np.min(x, axis=axes, keepdims=True), np.max(x, axis=axes, keepdims=True)
    np.testing.assert_allclose(scaled, (x - low) / (high - low), rtol=1e-6)
    np.testing.assert_array_equal(scaled.min(axis=axes), 0)
    np.testing.assert_array_equal(scaled.max(axis=axes), 1)


def test_a_constant_state_scales_to_zero_with_finite_gradients():
    x = jnp.full((2, 7), 3.0)
    np.testing.assert_array_equal(scale_hidden(x), 0)
    assert jnp.isfinite(jax.jit(jax.grad(lambda x: (scale_hidden(x) * jnp.arange(7)).sum()))(x)).all()


def test_defaults_are_of_the_paper():
    assert (resnet.ResnetConfig().channels, resnet.ResnetConfig().blocks) == (256, 16)
