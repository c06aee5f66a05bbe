"""An environment in one file: the cliff walk of Sutton and Barto. A built-in agent is trained on it.

    python examples/cliff.py

From examples/ the command line takes it too: podracer launch anakin --agent muesli --env cliff:SUITE --set env.width=6
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer import registry, types
from podracer.environment import JaxEnvironment
from podracer.types import EnvironmentSpec

MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])  # up, right, down, left


@dataclasses.dataclass(frozen=True)
class Config:
    """height, width: of the grid. slip: the probability that a move goes somewhere else."""

    height: int = 4
    width: int = 8
    slip: float = 0.0


class Cliff(JaxEnvironment):
    """From the lower left corner to the lower right one, which pays 1. Between them is a cliff, which costs 1. Both are ends.

    Observation `[height, width]` float32: 1 where the walker is. The state is its row and column, `[2]` int32.
    """

    def __init__(self, config: Config):
        self.config = config
        self.spec = EnvironmentSpec(
            name="cliff",
            observation=specs.BoundedArray((config.height, config.width), np.float32, 0.0, 1.0),
            action=specs.DiscreteArray(len(MOVES)),
        )

    def reset(self, key):
        position = jnp.array([self.config.height - 1, 0], jnp.int32)
        return position, types.restart(self._observe(position))

    def step(self, position, action, key):
        slips, elsewhere = jax.random.split(key)
        slipped = jax.random.bernoulli(slips, self.config.slip)
        action = jnp.where(slipped, jax.random.randint(elsewhere, (), 0, len(MOVES)), action)
        limits = jnp.array([self.config.height - 1, self.config.width - 1])
        position = jnp.clip(position + jnp.asarray(MOVES)[action], 0, limits).astype(jnp.int32)
        at_goal = jnp.all(position == limits)
        fallen = (position[0] == limits[0]) & (position[1] > 0) & ~at_goal
        reward = at_goal.astype(jnp.float32) - fallen.astype(jnp.float32)
        return position, types.transition(reward, self._observe(position), terminated=at_goal | fallen)

    def render(self, position):  # optional: `[H, W, 3]` uint8, for films
        board = jnp.full((self.config.height, self.config.width, 3), 220, jnp.uint8).at[-1, 1:-1].set(jnp.uint8(60))
        return board.at[position[0], position[1]].set(jnp.array([200, 30, 30], jnp.uint8)).repeat(16, 0).repeat(16, 1)

    def _observe(self, position):
        return jnp.zeros((self.config.height, self.config.width), jnp.float32).at[position[0], position[1]].set(1.0)


SUITE = registry.Suite(
    make=lambda task, config: Cliff(config), tasks=lambda: ("",), config=Config, summary="the cliff walk of Sutton and Barto"
)


def main() -> None:
    from podracer.launch.job import Request, new_job
    from podracer.launch.train import train

    settings = ("agent.learning_rate=3e-3", "eval_episodes=16")
    job, _ = new_job(Request("anakin", agent="impala", env="cliff:SUITE", steps=300_000, settings=settings))
    train(job, "", Path("runs") / "cliff")


if __name__ == "__main__":
    main()
