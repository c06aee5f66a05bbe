"""Craftax (https://github.com/MichaelTMatthews/Craftax): open-ended survival in JAX. It compiles for a minute or more."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer import registry, types
from podracer.config import require
from podracer.environment import JaxEnvironment, TimeLimit
from podracer.types import Array, EnvironmentSpec, Key, TimeStep

TASKS = ("Craftax-Classic-Symbolic-v1", "Craftax-Classic-Pixels-v1", "Craftax-Symbolic-v1", "Craftax-Pixels-v1")
_NO_LIMIT = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class CraftaxConfig:
    """max_steps: time limit, a truncation; 0 for the game's own: 10,000 steps in Classic, 100,000 otherwise."""

    max_steps: int = 0

    def __post_init__(self) -> None:
        require(self, "max_steps", at_least=0)


class Craftax(JaxEnvironment):
    """Craftax without its time limit, which it does not tell from death.

    Observation: symbolic `[n]` float32, or pixels `[H, W, 3]` uint8. Episodes terminate with death or the final victory.
    """

    def __init__(self, task: str, environment: Any):
        self._env = environment
        self._params = environment.default_params.replace(max_timesteps=_NO_LIMIT)
        shape = jax.eval_shape(environment.reset_env, jax.random.key(0), self._params)[0].shape
        self._pixels = len(shape) == 3
        self.spec = EnvironmentSpec(
            name=f"craftax/{task}",
            observation=specs.BoundedArray(shape, np.uint8, 0, 255, name="pixels")
            if self._pixels
            else specs.Array(shape, np.float32, name="symbols"),
            action=specs.DiscreteArray(environment.num_actions, name="action"),
        )

    def reset(self, key: Key) -> tuple[Any, TimeStep]:
        observation, state = self._env.reset_env(key, self._params)
        return state, types.restart(self._observe(observation))

    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        observation, state, reward, terminated, _ = self._env.step_env(key, state, action, self._params)
        return state, types.transition(reward, self._observe(observation), terminated=terminated)

    def render(self, state: Any) -> Array | None:
        """What the agent sees, where it sees pixels; None otherwise."""
        return self._observe(self._env.get_obs(state)) if self._pixels else None

    def _observe(self, observation: Array) -> Array:
        if self._pixels:
            return jnp.round(observation * 255).astype(jnp.uint8)
        return observation.astype(jnp.float32)


def _make(task: str, config: CraftaxConfig) -> JaxEnvironment:
    from craftax.craftax_env import make_craftax_env_from_name

    environment = make_craftax_env_from_name(task, auto_reset=False)
    limit = config.max_steps or environment.default_params.max_timesteps
    return TimeLimit(Craftax(task, environment), limit)


SUITE = registry.Suite(
    make=_make,
    tasks=lambda: TASKS,
    config=CraftaxConfig,
    summary="Craftax and Craftax-Classic: survival and crafting in JAX, symbols or pixels",
    package="craftax",
    extra="craftax",
    default_task="Craftax-Classic-Symbolic-v1",
)
