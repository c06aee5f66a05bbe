"""Whether an agent has come back to where it has been: the label of Mirowski et al. 2017, section 3.2. Imports no jax.

`l_t` is true where a position `p_t'` was within NEAR of `p_t` and, later than that and before now, a position `p_t''` was FAR
or farther from `p_t`: `t' < t'' < t`. For that it is enough to know the first time that was near and the last one that was far,
so a step costs one pass over the positions of the past. Functions of arrays of fixed size, for NumPy and for jax.numpy.
"""

from typing import Any, NamedTuple

import numpy as np

NEAR, FAR = 1.0, 2.0
"""Squares: eta1 and eta2."""


class History(NamedTuple):
    """Where an agent has been since it last (re)spawned.

    x, y: `[capacity]` float32, squares; of the first `count` times. count: `[]` int32.
    """

    x: Any
    y: Any
    count: Any


def empty(capacity: int, xp: Any) -> History:
    """No past. capacity: positions that fit: steps of an episode and 1. xp: `numpy` or `jax.numpy`."""
    return History(x=xp.zeros(capacity, xp.float32), y=xp.zeros(capacity, xp.float32), count=xp.zeros((), xp.int32))


def visit(history: History, position: Any, respawned: Any, xp: Any) -> tuple[History, Any]:
    """Adds a position.

    Args:
      history: of the times before this one; not changed.
      position: `[2]` float32, x and y in squares.
      respawned: `[]` bool; the position does not follow from those before, which are forgotten.
      xp: `numpy` or `jax.numpy`.

    Returns:
      The history with this position, if there was room, and the label, `[]` bool.
    """
    time, capacity = xp.arange(history.x.shape[0], dtype=xp.int32), history.x.shape[0]
    count = xp.where(respawned, 0, history.count).astype(xp.int32)
    x, y = position[0], position[1]
    squared = (history.x - x) ** 2 + (history.y - y) ** 2
    past = time < count
    first_near = xp.min(xp.where(past & (squared <= NEAR**2), time, capacity))
    last_far = xp.max(xp.where(past & (squared >= FAR**2), time, -1))
    added = History(
        x=_put(history.x, count, x, xp), y=_put(history.y, count, y, xp), count=xp.minimum(count + 1, capacity).astype(xp.int32)
    )
    return added, first_near < last_far


def _put(array: Any, index: Any, value: Any, xp: Any) -> Any:
    if xp is not np:
        return array.at[index].set(value, mode="drop")
    array = array.copy()
    array[index : index + 1] = value
    return array
