"""What environments on boards of cells share."""

import jax.numpy as jnp
import numpy as np

from podracer.types import Array

MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]], np.int32)
"""Up, right, down, left: rows and columns."""


def at(shape: tuple[int, ...], position: Array) -> Array:
    """Whether each cell lies at `position` `[..., 2]`: `[..., H, W]` bool."""
    rows = jnp.arange(shape[0])[:, None] == position[..., 0, None, None]
    return rows & (jnp.arange(shape[1]) == position[..., 1, None, None])


def among(cells: Array, num_cells: int) -> Array:
    """Which flat cells are among `cells` `[n]`: `[num_cells]` bool. Compared, for a scatter is a loop on a CPU."""
    return jnp.any(jnp.arange(num_cells) == cells[:, None], axis=0)


def pick(score: Array, count: int) -> Array:
    """The `count` cells of highest score, without repetition: `[count]` int32, flat. score: `[cells]`, above -inf."""
    chosen = []
    for _ in range(count):  # `lax.top_k` sorts all of them, which is slower for the few that boards need
        chosen.append(jnp.argmax(score).astype(jnp.int32))
        score = jnp.where(jnp.arange(len(score)) == chosen[-1], -jnp.inf, score)
    return jnp.stack(chosen) if chosen else jnp.zeros((0,), jnp.int32)


def uniform_index(noise: Array, count: int | np.ndarray) -> Array:
    """Integers of 0 to `count - 1`, `[...]` int32. noise: `[...]` float32 in [0, 1), which may round up to `count` itself."""
    return jnp.minimum(jnp.floor(noise * count).astype(jnp.int32), count - 1)
