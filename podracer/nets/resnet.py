"""Residual networks over planes: the representation, dynamics and prediction of MuZero (Schrittwieser et al. 2020).

Appendix "Network Architecture": all is as in AlphaZero, with 16 residual blocks in place of 20. A block is AlphaZero's, post-
activation (He et al. 2015): convolution, normalise, relu, convolution, normalise, add the input, relu. Convolutions are 3x3.

Deviation: where the paper has batch normalisation there is layer normalisation of each sample over all of (h, w, c), with a
scale and an offset for each channel. Agents are pure functions and state has one home; running moments would be a second one,
and would make the model that a search unrolls another one than the model that is trained.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import haiku as hk
import jax
import jax.numpy as jnp

from podracer.nets.heads import Head
from podracer.nets.torso import Conv, as_float
from podracer.types import Array

_PLANES = (-3, -2, -1)
ActionPlanes = Literal["auto", "board", "scalar", "one_hot"]


@dataclasses.dataclass(frozen=True)
class ResnetConfig:
    """The defaults are the paper's for boards; `downsample="atari"` with `action_planes="one_hot"` is the paper's for Atari.

    channels: planes of the latent state and of every convolution that is not in a head.
    blocks: residual blocks of the representation (after it has downsampled) and of the dynamics, each.
    downsample: `none` keeps the resolution; `atari` divides it by 16, 96x96 to 6x6.
    action_planes: how the dynamics sees an action, see `action_planes`.
    head_channels: planes that a head keeps of a latent state (of AlphaGo Zero: 2 for policies, 1 for values).
    """

    channels: int = 256
    blocks: int = 16
    downsample: Literal["none", "atari"] = "none"
    action_planes: ActionPlanes = "auto"
    head_channels: int = 2


class Representation(hk.Module):
    """From observations to the latent states of a model, which are NOT scaled: see `scale_hidden`."""

    def __init__(self, config: ResnetConfig, name: str = "representation"):
        super().__init__(name=name)
        self.config = config

    def __call__(self, observation: Array) -> Array:
        """`[..., H, W, C]` to `[..., h, w, channels]` float32.

        uint8 is scaled from [0, 255] to [0, 1]; everything else is cast. `(h, w)` is `(H, W)`, or of `downsample="atari"`
        `(H, W) / 16`, rounded up.

        Raises:
          ValueError: one channel cannot be halved for `downsample="atari"`.
        """
        channels = self.config.channels
        x = observation.reshape(-1, *observation.shape[-3:])
        if self.config.downsample == "atari":
            if channels < 2:
                raise ValueError(
                    f"resnet.downsample=atari starts with half the channels: resnet.channels={channels} must be >= 2"
                )
            x = _blocks(_convolve(x, channels // 2, stride=2), 2)
            x = _blocks(_convolve(x, channels, stride=2), 3)
            x = _average_pool(_blocks(_average_pool(x), 3))
        else:
            x = _convolve(x, channels)
        x = _blocks(x, self.config.blocks)
        return x.reshape(*observation.shape[:-3], *x.shape[1:])


class SpatialDynamics(hk.Module):
    """From a latent state and an action to the next latent state, which is NOT scaled: see `scale_hidden`."""

    def __init__(self, config: ResnetConfig, num_actions: int, name: str = "dynamics"):
        """num_actions: size `E` of an encoded action, the number of actions where they are discrete."""
        super().__init__(name=name)
        self.config, self.num_actions = config, num_actions

    def __call__(self, state: Array, action: Array) -> Array:
        """`[..., h, w, channels]` and encoded actions `[..., E]` to `[..., h, w, channels]`, all float32.

        Leading dimensions broadcast: `[N, 1, h, w, c]` and `[1, A, A]` give every action from every state.

        Raises:
          ValueError: the state or the action has another size than configured.
        """
        if action.shape[-1] != self.num_actions or state.shape[-1] != self.config.channels:
            raise ValueError(
                f"dynamics of {self.config.channels} channels and actions of size {self.num_actions} got a state "
                f"{state.shape} and an action {action.shape}"
            )
        height, width = state.shape[-3:-1]
        planes = action_planes(action, height, width, self.config.action_planes)
        leading = jnp.broadcast_shapes(state.shape[:-3], action.shape[:-1])
        x = jnp.concatenate([jnp.broadcast_to(x, (*leading, *x.shape[-3:])) for x in (state, planes)], axis=-1)
        x = _blocks(_convolve(x.reshape(-1, *x.shape[-3:]), self.config.channels), self.config.blocks)
        return x.reshape(*leading, *x.shape[1:])


class SpatialHead(hk.Module):
    """From latent states to what is predicted of them: a few planes by a 1x1 convolution, then an MLP (AlphaZero's heads)."""

    def __init__(self, config: ResnetConfig, hidden: tuple[int, ...], output_size: int, name: str):
        """hidden: widths of the MLP before its last layer, which starts near 0 as in `heads.Head`."""
        super().__init__(name=name)
        self.config, self.hidden, self.output_size = config, hidden, output_size

    def __call__(self, state: Array) -> Array:
        """`[..., h, w, c]` to `[..., output_size]` float32."""
        x = _convolve(state.reshape(-1, *state.shape[-3:]), self.config.head_channels, kernel=1)
        return Head(self.hidden, self.output_size, "mlp")(x.reshape(*state.shape[:-3], math.prod(x.shape[1:])))


def action_planes(action: Array, height: int, width: int, kind: ActionPlanes = "auto") -> Array:
    """An action as planes of the latent state's resolution (Schrittwieser et al. 2020, appendix "Network Input").

    Args:
      action: encoded, `[..., E]`; of discrete actions one-hot, `E = A`.
      height: of the latent state.
      width: of the latent state.
      kind: `board`: one plane, zero but for a one where the stone is played, where `E` is `height * width`, or one more for
        a pass, which is the zero plane. `scalar`: one constant plane `a / A`, as the paper encodes past actions of Atari in
        an observation. `one_hot`: `E` constant planes, as the paper encodes the action of a step of the model in Atari, and
        the one kind that loses nothing of continuous actions. `auto`: `board` where `E` fits, else `scalar`.

    Returns:
      `[..., height, width, P]` float32.

    Raises:
      ValueError: `board` does not fit `E`.
    """
    size, squares, action = action.shape[-1], height * width, as_float(action)
    fits = size in (squares, squares + 1)
    if kind == "board" and not fits:
        raise ValueError(f"resnet.action_planes=board needs {squares} or {squares + 1} actions on {height}x{width}, not {size}")
    if kind == "board" or (kind == "auto" and fits):
        return action[..., :squares].reshape(*action.shape[:-1], height, width, 1)
    if kind != "one_hot":
        action = (action * (jnp.arange(size) / size)).sum(axis=-1, keepdims=True)
    return jnp.broadcast_to(action[..., None, None, :], (*action.shape[:-1], height, width, action.shape[-1]))


def scale_hidden(x: Array, axes: int | Sequence[int] = -1, epsilon: float = 1e-5) -> Array:
    """Latent states scaled to [0, 1], the range of encoded actions (Schrittwieser et al. 2020, appendix G).

    Gradients flow through the minimum and the maximum too. A state whose values all lie within `epsilon` is divided by
    `epsilon`, so a constant one becomes 0, with finite gradients.

    Args:
      x: `[..., size]` float32, or `[..., h, w, c]`.
      axes: the axes of one sample, over which its minimum and maximum are taken jointly: -1 for vectors, (-3, -2, -1) for
        planes. (The paper's appendix has one minimum and maximum for a latent state, not one for each plane.)
      epsilon: the smallest range.
    """
    axes = axes if isinstance(axes, int) else tuple(axes)
    low, high = x.min(axis=axes, keepdims=True), x.max(axis=axes, keepdims=True)
    return (x - low) / jnp.maximum(high - low, epsilon)


def _convolve(x: Array, channels: int, kernel: int = 3, stride: int = 1) -> Array:
    return jax.nn.relu(_normalise(Conv(channels, kernel, stride, "SAME")(x)))


def _blocks(x: Array, count: int) -> Array:
    for _ in range(count):
        y = _convolve(x, x.shape[-1])
        x = jax.nn.relu(x + _normalise(Conv(x.shape[-1], 3, padding="SAME")(y)))
    return x


def _normalise(x: Array) -> Array:
    return hk.LayerNorm(_PLANES, create_scale=True, create_offset=True, param_axis=-1)(x)


def _average_pool(x: Array) -> Array:
    """3x3 mean with stride 2, SAME: of what lies inside the image alone."""
    return hk.avg_pool(x, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
