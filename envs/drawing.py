"""Pictures of small boards, for `render`."""

import jax.numpy as jnp
import numpy as np

from podracer.types import Array


def enlarge(picture: Array, cell: int = 16) -> Array:
    """`[H, W, 3]` to `[cell H, cell W, 3]` uint8: every cell becomes a square."""
    return jnp.repeat(jnp.repeat(picture.astype(jnp.uint8), cell, axis=0), cell, axis=1)


def paint(layers: Array, colours: np.ndarray) -> Array:
    """Layers `[H, W, C]` bool as a picture `[16 H, 16 W, 3]` uint8; the last one in a cell is seen.

    Args:
      layers: which cells each layer covers.
      colours: `[C + 1, 3]`, the background first.
    """
    top = jnp.max(layers * (jnp.arange(layers.shape[-1]) + 1), axis=-1)
    return enlarge(jnp.asarray(colours, jnp.uint8)[top])


def rainbow(num_colours: int) -> np.ndarray:
    """Black, then `num_colours` hues: `[num_colours + 1, 3]` uint8."""
    hue = np.arange(num_colours)[:, None] / num_colours
    wheel = 0.5 + 0.5 * np.cos(2 * np.pi * (hue - np.array([0.0, 1 / 3, 2 / 3])))
    return np.concatenate([np.zeros((1, 3)), 55 + 200 * wheel]).astype(np.uint8)
