"""Torsos: from an observation to a vector of features.

Images are `[..., H, W, C]` uint8 and are scaled to [0, 1] on the device. On a CPU, XLA's convolutions are slow, above all
their gradients inside a scan, so `Conv` there takes a form of the same sum made of matrix products;
parameters and results are those of the ordinary convolution. There too, learning is fastest on few frames at a time, some
20 to 80, whose columns fit the caches: see `DataSpec.microbatch`.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import haiku as hk
import jax
import jax.numpy as jnp
from dm_env import specs

from podracer.aot import target
from podracer.types import Array, EnvironmentSpec

Torso = Callable[[Any], Array]
_UNSEEN = ("legal_actions", "simulator")  # keys of an observation that no network reads


@dataclasses.dataclass(frozen=True)
class TorsoConfig:
    """kind: `mlp`, `nature` (Mnih et al. 2015), `a3c` (Mnih et al. 2016: its smaller predecessor), `impala` (Espeholt et al.
    2018, deep), `small_conv` (for boards up to about 20x20), or `auto`: `mlp` for vectors, `small_conv` for small images,
    `nature` for others.

    hidden: widths of the fully connected layers at the end. channel_scale: multiplies the channels of convolutions.
    activation: after the fully connected layers; convolutions have ReLU.
    """

    kind: Literal["auto", "mlp", "nature", "a3c", "impala", "small_conv"] = "auto"
    hidden: tuple[int, ...] = (64, 64)
    channel_scale: int = 1
    activation: Literal["relu", "tanh"] = "relu"


def make_torso(spec: EnvironmentSpec, config: TorsoConfig) -> Torso:
    """Builds a torso; call inside `hk.transform`.

    Args:
      spec: the observation is one array, or a dictionary whose keys `legal_actions` and `simulator` are left out and whose
        other entries are flattened and concatenated (`mlp`), or which has a single other entry.
      config: which network.

    Returns:
      A function from observations `[B, ...]` to features `[B, hidden[-1]]` float32.

    Raises:
      ValueError: the network does not fit the observation.
    """
    leaves = jax.tree.leaves(visible(spec.observation), is_leaf=lambda x: isinstance(x, specs.Array))
    image = len(leaves) == 1 and len(leaves[0].shape) == 3
    kind = config.kind
    if kind == "auto":
        kind = "mlp" if not image else "small_conv" if max(leaves[0].shape[:2]) <= 20 else "nature"
    if kind != "mlp" and not image:
        raise ValueError(
            f"torso.kind={kind} needs one image [H, W, C], and {spec.name} observes something else: set torso.kind=mlp"
        )
    if not config.hidden:
        raise ValueError("torso.hidden must name at least one width, for example torso.hidden=(64,)")
    convolve = {
        "mlp": lambda x: x,
        "nature": _nature,
        "a3c": _a3c,
        "impala": _impala,
        "small_conv": _small_conv,
    }[kind]
    activation = {"relu": jax.nn.relu, "tanh": jnp.tanh}[config.activation]

    def torso(observation: Any) -> Array:
        inputs = jax.tree.leaves(visible(observation))
        if kind == "mlp":
            x = jnp.concatenate([as_float(x).reshape(x.shape[0], -1) for x in inputs], axis=-1)
        else:
            x = convolve(inputs[0], config.channel_scale)  # type: ignore[operator]
            x = x.reshape(x.shape[0], -1)
        return hk.nets.MLP(config.hidden, activation=activation, activate_final=True)(x)

    return torso


def as_float(x: Array) -> Array:
    """float32: uint8 is scaled from [0, 255] to [0, 1], everything else is cast."""
    return x.astype(jnp.float32) / 255.0 if x.dtype == jnp.uint8 else x.astype(jnp.float32)


def legal_actions(observation: Any) -> Array | None:
    """`[..., A]` bool, or None where every action is legal."""
    return observation.get("legal_actions") if isinstance(observation, dict) else None


def mask_logits(logits: Array, observation: Any) -> Array:
    """Logits `[..., A]` with illegal actions at a large negative number, finite so that gradients stay so."""
    legal = legal_actions(observation)
    return logits if legal is None else jnp.where(legal, logits, -1e9)


def visible(observation: Any) -> Any:
    """What networks may read of an observation, or of its specs."""
    if isinstance(observation, dict):
        return {name: value for name, value in observation.items() if name not in _UNSEEN}
    return observation


class Conv(hk.Module):
    """2-D convolution over `as_float` of `[B, H, W, C]`, parameters `w` `[K, K, C, O]` and `b` `[O]` as in `hk.Conv2D`."""

    def __init__(
        self, channels: int, kernel: int, stride: int = 1, padding: Literal["SAME", "VALID"] = "VALID", name: str | None = None
    ):
        super().__init__(name=name)
        self.channels, self.kernel, self.stride, self.padding = channels, kernel, stride, padding

    def __call__(self, x: Array) -> Array:
        fan_in = self.kernel**2 * x.shape[-1]
        init = hk.initializers.TruncatedNormal(1.0 / math.sqrt(fan_in))
        w = hk.get_parameter("w", (self.kernel, self.kernel, x.shape[-1], self.channels), jnp.float32, init)
        b = hk.get_parameter("b", (self.channels,), jnp.float32, jnp.zeros)
        form = conv_by_matmul if target.platform() == "cpu" else conv_by_xla
        return form(x, w, self.stride, self.padding) + b


def conv_by_xla(x: Array, w: Array, stride: int, padding: str) -> Array:
    """`as_float` of `[B, H, W, C]` with `[K, K, C, O]`, by XLA's own convolution."""
    return jax.lax.conv_general_dilated(as_float(x), w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def conv_by_matmul(x: Array, w: Array, stride: int, padding: str) -> Array:
    """The same numbers as `conv_by_xla`, as columns and ONE matrix product.

    A kernel whose side is a multiple of its stride is first rearranged: blocks of stride x stride pixels become channels,
    which leaves a stride of 1 and fewer, larger columns. Bytes stay bytes until they lie in their columns: a quarter of the
    memory to move about.
    """
    kernel = w.shape[0]
    if padding == "SAME":
        pads = [_same_padding(size, kernel, stride) for size in x.shape[1:3]]
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    if stride > 1 and kernel % stride == 0:
        x, w = _space_to_depth(x, w, kernel, stride)
        kernel, stride = w.shape[0], 1
    batch, height, width, channels = x.shape
    out_h, out_w = (height - kernel) // stride + 1, (width - kernel) // stride + 1
    columns = [
        jax.lax.slice(
            x,
            (0, i, j, 0),
            (batch, i + (out_h - 1) * stride + 1, j + (out_w - 1) * stride + 1, channels),
            (1, stride, stride, 1),
        )
        for i in range(kernel)
        for j in range(kernel)
    ]
    matrix = as_float(jnp.concatenate(columns, axis=-1)).reshape(batch * out_h * out_w, kernel * kernel * channels)
    # The gradient of a matrix `[O, K]` takes XLA half the time of that of `[K, O]`; without the barrier they become one.
    w_t = jax.lax.optimization_barrier(w.reshape(-1, w.shape[-1]).T)
    return jnp.einsum("pk,ok->po", matrix, w_t).reshape(batch, out_h, out_w, w.shape[-1])


def _space_to_depth(x: Array, w: Array, kernel: int, block: int) -> tuple[Array, Array]:
    batch, height, width, channels = x.shape
    height, width = height // block * block, width // block * block  # VALID never reads an incomplete block
    x = x[:, :height, :width].reshape(batch, height // block, block, width // block, block, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // block, width // block, block * block * channels)
    side = kernel // block
    w = w.reshape(side, block, side, block, channels, -1).transpose(0, 2, 1, 3, 4, 5)
    return x, w.reshape(side, side, block * block * channels, -1)


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _max_pool(x: Array) -> Array:
    """3x3 maximum with stride 2, SAME."""
    return hk.max_pool(x, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")


def _small_conv(x: Array, scale: int) -> Array:
    return jax.nn.relu(Conv(16 * scale, 3)(x))


def _nature(x: Array, scale: int) -> Array:
    for channels, kernel, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
        x = jax.nn.relu(Conv(channels * scale, kernel, stride)(x))
    return x


def _a3c(x: Array, scale: int) -> Array:
    for channels, kernel, stride in ((16, 8, 4), (32, 4, 2)):
        x = jax.nn.relu(Conv(channels * scale, kernel, stride)(x))
    return x


def _impala(x: Array, scale: int, widths: Sequence[int] = (16, 32, 32)) -> Array:
    for channels in widths:
        x = _max_pool(Conv(channels * scale, 3, padding="SAME")(x))
        for _ in range(2):
            y = Conv(channels * scale, 3, padding="SAME")(jax.nn.relu(x))
            x = x + Conv(channels * scale, 3, padding="SAME")(jax.nn.relu(y))
    return jax.nn.relu(x)
