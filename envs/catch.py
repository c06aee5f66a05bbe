"""Catch: a ball falls, a paddle at the bottom must be under it. The smallest task worth learning; solved is a return of 1.

The task of bsuite (Osband et al. 2020, https://arxiv.org/abs/1908.03568), written anew for XLA.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer import registry, types
from podracer.config import require
from podracer.environment import JaxEnvironment
from podracer.envs import drawing
from podracer.types import Array, EnvironmentSpec, Key, TimeStep

LEFT, STAY, RIGHT = range(3)


@dataclasses.dataclass(frozen=True)
class CatchConfig:
    """rows: height of the board; an episode has `rows - 1` steps. columns: its width."""

    rows: int = 10
    columns: int = 5

    def __post_init__(self) -> None:
        require(self, "rows", at_least=2)
        require(self, "columns", at_least=1)


class CatchState(NamedTuple):
    """ball_row, ball_column, paddle: `[]` int32. The paddle lies in the bottom row."""

    ball_row: Array
    ball_column: Array
    paddle: Array


class Catch(JaxEnvironment):
    """Observation `[rows, columns]` float32: 1 where the ball is and where the paddle is, 0 elsewhere.

    Actions: left, stay, right. The reward is 0 until the ball reaches the bottom row, then 1 if it meets the paddle and
    -1 if not, and the episode terminates.
    """

    def __init__(self, config: CatchConfig):
        self.config = config
        self.spec = EnvironmentSpec(
            name="catch",
            observation=specs.BoundedArray((config.rows, config.columns), np.float32, 0.0, 1.0, name="board"),
            action=specs.DiscreteArray(3, name="action"),
        )

    def reset(self, key: Key) -> tuple[CatchState, TimeStep]:
        # Not randint, which draws twice and splits the key: resets are a large share of this environment's work.
        column = jnp.floor(jax.random.uniform(key) * self.config.columns).astype(jnp.int32)
        state = CatchState(ball_row=jnp.int32(0), ball_column=column, paddle=jnp.int32(self.config.columns // 2))
        return state, types.restart(self._observe(state))

    def step(self, state: CatchState, action: Array, key: Key) -> tuple[CatchState, TimeStep]:
        del key
        paddle = jnp.clip(state.paddle + action - STAY, 0, self.config.columns - 1).astype(jnp.int32)
        state = state._replace(ball_row=state.ball_row + 1, paddle=paddle)
        landed = state.ball_row == self.config.rows - 1
        reward = jnp.where(landed, jnp.where(state.ball_column == paddle, 1.0, -1.0), 0.0)
        return state, types.transition(reward, self._observe(state), terminated=landed)

    def render(self, state: CatchState) -> Array:
        """`[16 rows, 16 columns, 3]` uint8: a white ball and a green paddle."""
        ball, paddle = self._layers(state)
        colours = np.array([[0, 0, 0], [92, 186, 92], [236, 236, 236]])
        return drawing.paint(jnp.stack([paddle, ball], axis=-1), colours)

    def _layers(self, state: CatchState) -> tuple[Array, Array]:
        rows, columns = jnp.arange(self.config.rows)[:, None], jnp.arange(self.config.columns)[None, :]
        ball = (rows == state.ball_row) & (columns == state.ball_column)
        paddle = (rows == self.config.rows - 1) & (columns == state.paddle)
        return ball, paddle

    def _observe(self, state: CatchState) -> Array:
        ball, paddle = self._layers(state)
        return (ball | paddle).astype(jnp.float32)


def _make(task: str, config: CatchConfig) -> Catch:
    del task
    return Catch(config)


SUITE = registry.Suite(
    make=_make,
    tasks=lambda: ("",),
    config=CatchConfig,
    summary="a falling ball and a paddle, 10x5; solved at a return of 1",
)
