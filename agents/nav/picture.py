"""What Nav predicts, beside what is true, as a picture for films."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from podracer.agents.nav.losses import NUM_CLASSES, depth_bands
from podracer.agents.nav.networks import Outputs
from podracer.types import Array

_PIXELS = 8  # of a pixel of depth
_GAP = 4


def draw(outputs: Outputs, labels: Mapping[str, Any], power: float) -> Array | None:
    """From above: true depth, depth as the memory and as the encoder tell it (bands, far is bright), and two fields for loop
    closure, the label and the probability (green is a loop).

    Args:
      outputs: of one time step, `[B, ...]`. labels: its `aux`. power: as of `losses.depth_loss`.

    Returns:
      `[B, H, W, 3]` uint8, or None for an agent that predicts nothing.
    """
    rows: list[Array] = []
    for prediction in (outputs.d2, outputs.d1):
        if not isinstance(prediction, tuple):
            depth = labels["depth"]
            bands = jnp.argmax(prediction, axis=-1) if prediction.ndim > depth.ndim else depth_bands(prediction)
            rows += [] if rows else [_grey(depth_bands(depth**power) / (NUM_CLASSES - 1))]
            rows.append(_grey(bands / (NUM_CLASSES - 1)))
    if not isinstance(outputs.loop_closure, tuple):
        width = rows[0].shape[2] if rows else 16 * _PIXELS
        told = (labels["loop_closure"].astype(jnp.float32), jax.nn.sigmoid(outputs.loop_closure))
        fields = [jnp.broadcast_to(value[:, None, None], (*value.shape, 2 * _PIXELS, width // 2)) for value in told]
        green = jnp.concatenate(fields, axis=2)
        rows.append(jnp.stack([1.0 - green, green, jnp.zeros_like(green)], axis=-1))
    if not rows:
        return None
    apart = [jnp.pad(row, ((0, 0), (0, _GAP), (0, 0), (0, 0)), constant_values=0.5) for row in rows]
    return jnp.round(255 * jnp.concatenate(apart, axis=1)).astype(jnp.uint8)


def _grey(values: Array) -> Array:
    """`[B, H, W]` in [0, 1] as an enlarged image `[B, ..., ..., 3]`."""
    large = values.repeat(_PIXELS, axis=1).repeat(_PIXELS, axis=2)
    return jnp.repeat(large[..., None], 3, axis=-1)
