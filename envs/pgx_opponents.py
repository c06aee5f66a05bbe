"""Opponents for pgx's games that need no training. They read what an agent reads: the observation."""

import functools

import jax.numpy as jnp
import numpy as np

from podracer.match import uniform
from podracer.types import Array, Key, TimeStep

_LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
_POWERS = 3 ** np.arange(9)


def perfect_tic_tac_toe(timestep: TimeStep, key: Key) -> Array:
    """Plays tic-tac-toe without a mistake: one of the moves that minimax finds best, each as likely as the others.

    It wins whenever a win can be forced, though not always by the shortest way: all moves that keep the win are best.

    Args:
      timestep: `[B]`, of `pgx/tic_tac_toe`. key: `[B]`.

    Returns:
      `[B]` int32; any move on a finished board.
    """
    stones = timestep.observation["board"].reshape(-1, 9, 2) > 0  # the mover's own, then the other's
    code = jnp.sum((stones[..., 0] + 2 * stones[..., 1]) * jnp.asarray(_POWERS, jnp.int32), axis=-1)
    _, best = solve_tic_tac_toe()
    return uniform(jnp.asarray(best)[code], key)


@functools.cache
def solve_tic_tac_toe() -> tuple[np.ndarray, np.ndarray]:
    """Exact minimax over all boards, from the fullest to the empty one.

    A board's code is `sum(cell * 3 ** i)` over the cells i, row by row: 0 is empty, 1 the mover's, 2 the other's. Boards that
    no game reaches have a row too, without meaning.

    Returns:
      value: `[3**9]` int8, for the mover: 1 a win, 0 a draw, -1 a loss.
      best: `[3**9, 9]` bool, the moves that keep this value; none on a finished board.
    """
    codes = np.arange(3**9)
    cells = codes[:, None] // _POWERS % 3
    empty = cells == 0
    # After a move on cell i the other is to move: colours swap, and the new stone is the other's.
    after = np.where(empty, np.array([0, 2, 1])[cells] @ _POWERS[:, None] + 2 * _POWERS, 0)
    lost = (cells[:, np.array(_LINES)] == 2).all(axis=-1).any(axis=-1)
    value, best = np.where(lost, -1, 0).astype(np.int8), np.zeros((3**9, 9), np.bool_)
    for num_empty in range(1, 10):
        now = codes[(empty.sum(axis=-1) == num_empty) & ~lost]
        outcome = np.where(empty[now], -value[after[now]], -2)
        value[now] = outcome.max(axis=-1)
        best[now] = outcome == value[now][:, None]
    return value, best
