"""Rooms on a grid and the walls between them, of which a spanning tree is opened: the mazes of `minipacman` and of `nav`.

For NumPy and for jax.numpy alike; imports no jax.
"""

import functools
from typing import Any

import numpy as np


@functools.cache
def plan(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a maze of so many rooms, which lie at odd rows and columns of its `2 rows + 1` by `2 columns + 1` squares.

    Returns:
      edges: `[E, 2]`, the rooms on both sides of each wall that may be opened. edge_of: `[2 rows + 1, 2 columns + 1]`, the
        number of the wall at a square, and E where there is none.
    """
    rooms = np.arange(rows * columns).reshape(rows, columns)
    right = np.stack([rooms[:, :-1], rooms[:, 1:]], axis=-1).reshape(-1, 2)
    down = np.stack([rooms[:-1], rooms[1:]], axis=-1).reshape(-1, 2)
    edges = np.concatenate([right, down])
    edge_of = np.full((2 * rows + 1, 2 * columns + 1), len(edges))
    edge_of[1::2, 2:-1:2] = np.arange(len(right)).reshape(rows, columns - 1)
    edge_of[2:-1:2, 1::2] = np.arange(len(right), len(edges)).reshape(rows - 1, columns)
    return edges, edge_of


def tree(weight: Any, rows: int, columns: int, xp: Any) -> Any:
    """Which walls to open, so that there is one way between any two rooms: the heaviest spanning tree, by Prim's algorithm.

    Args:
      weight: `[E]` float32 of each wall of `plan`, in [0, 1): the same numbers give the same tree whatever `xp` is.
      rows, columns: of rooms.
      xp: `numpy` or `jax.numpy`.

    Returns:
      `[E]` bool.
    """
    edges, _ = plan(rows, columns)
    first, second = xp.asarray(edges[:, 0]), xp.asarray(edges[:, 1])
    rooms, walls = xp.arange(rows * columns), xp.arange(len(edges))

    def grow(carry: tuple[Any, Any]) -> tuple[Any, Any]:
        seen, opened = carry
        best = xp.argmax(xp.where(seen[first] != seen[second], weight, -1.0))
        return seen | (rooms == first[best]) | (rooms == second[best]), opened | (walls == best)

    carry = rooms == 0, xp.zeros(len(edges), bool)
    if xp is np:
        for _ in range(rows * columns - 1):
            carry = grow(carry)
        return carry[1]
    import jax  # here, for worker processes do without it

    return jax.lax.fori_loop(0, rows * columns - 1, lambda _, carry: grow(carry), carry)[1]
