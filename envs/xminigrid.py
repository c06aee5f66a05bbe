"""XLand-MiniGrid (https://github.com/corl-team/xland-minigrid): the MiniGrid tasks in JAX, seen from the agent's own view.

The `XLand-*` environments are left out: their rule sets come from benchmark files that the library downloads.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer import registry, types
from podracer.config import ConfigError, require
from podracer.environment import JaxEnvironment
from podracer.types import Array, EnvironmentSpec, Key, TimeStep

TASKS = (
    *(f"MiniGrid-Empty-{n}x{n}" for n in (5, 6, 8, 16)),
    *(f"MiniGrid-EmptyRandom-{n}x{n}" for n in (5, 6, 8, 16)),
    *(f"MiniGrid-DoorKey-{n}x{n}" for n in (5, 6, 8, 16)),
    *(f"MiniGrid-MemoryS{n}" for n in (8, 16, 32, 64, 128)),
    "MiniGrid-BlockedUnlockPickUp",
    "MiniGrid-FourRooms",
    "MiniGrid-LockedRoom",
    "MiniGrid-Playground",
    "MiniGrid-Unlock",
    "MiniGrid-UnlockPickUp",
)


@dataclasses.dataclass(frozen=True)
class XMiniGridConfig:
    """view_size: side of the square that the agent sees, odd. max_steps: time limit, a truncation; 0 for the task's own."""

    view_size: int = 7
    max_steps: int = 0

    def __post_init__(self) -> None:
        require(self, "view_size", at_least=3)
        require(self, "max_steps", at_least=0)
        if self.view_size % 2 == 0:
            raise ConfigError(f"view_size must be odd, not {self.view_size}")


class XMiniGrid(JaxEnvironment):
    """A MiniGrid task. Actions: forward, turn right, turn left, pick up, put down, toggle.

    Observation: `[view_size, view_size, kinds + colours]` uint8, 0 or 255: what each cell holds and its colour, one-hot
    (xminigrid gives their numbers, whose order means nothing). The reward at the goal shrinks with the steps taken.
    """

    def __init__(self, task: str, config: XMiniGridConfig):
        import xminigrid
        from xminigrid.core.constants import NUM_COLORS, NUM_TILES

        overrides = {"max_steps": config.max_steps} if config.max_steps else {}
        self._env, self._params = xminigrid.make(task, view_size=config.view_size, **overrides)
        self._num_tiles, self._num_colours = NUM_TILES, NUM_COLORS
        shape = (config.view_size, config.view_size, NUM_TILES + NUM_COLORS)
        self.spec = EnvironmentSpec(
            name=f"xminigrid/{task}",
            observation=specs.BoundedArray(shape, np.uint8, 0, 255, name="view"),
            action=specs.DiscreteArray(self._env.num_actions(self._params), name="action"),
        )

    def reset(self, key: Key) -> tuple[Any, TimeStep]:
        timestep = self._env.reset(self._params, key)
        return timestep, types.restart(self._observe(timestep.observation))

    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        del key
        timestep = self._env.step(self._params, state, action)
        finished = timestep.last()
        terminated = finished & (timestep.discount == 0)
        return timestep, types.transition(
            timestep.reward, self._observe(timestep.observation), terminated=terminated, truncated=finished
        )

    def _observe(self, observation: Any) -> Array:
        tiles = jax.nn.one_hot(observation[..., 0], self._num_tiles, dtype=jnp.uint8)
        colours = jax.nn.one_hot(observation[..., 1], self._num_colours, dtype=jnp.uint8)
        return jnp.concatenate([tiles, colours], axis=-1) * 255


SUITE = registry.Suite(
    make=XMiniGrid,
    tasks=lambda: TASKS,
    config=XMiniGridConfig,
    summary="MiniGrid tasks in JAX, partially observed (MiniGrid-Empty-8x8, MiniGrid-DoorKey-8x8, ...)",
    package="xminigrid",
    extra="xminigrid",
    default_task="MiniGrid-Empty-8x8",
)
