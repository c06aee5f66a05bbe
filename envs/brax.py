"""brax (https://github.com/google/brax): rigid-body control in JAX. Actions are float32 in [-1, 1].

brax's own autoreset returns to the first state and drops the terminal observation; only its bare environments are used.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer import registry, types
from podracer.config import require
from podracer.environment import JaxEnvironment, TimeLimit
from podracer.types import Array, EnvironmentSpec, Key, TimeStep

TASKS = (
    "ant",
    "halfcheetah",
    "hopper",
    "humanoid",
    "humanoidstandup",
    "inverted_double_pendulum",
    "inverted_pendulum",
    "pusher",
    "reacher",
    "swimmer",
    "walker2d",
)


@dataclasses.dataclass(frozen=True)
class BraxConfig:
    """backend: brax's physics; `generalized` is exact and slow, `spring` and `positional` are fast.

    max_steps: time limit in steps, a truncation.
    """

    backend: Literal["generalized", "positional", "spring", "mjx"] = "generalized"
    max_steps: int = 1000

    def __post_init__(self) -> None:
        require(self, "max_steps", at_least=1)


class Brax(JaxEnvironment):
    """An environment of brax, or of who kept its interface, without a time limit.

    Observation: `[n]` float32. Actions: `[m]` float32 in [-1, 1].
    """

    def __init__(self, name: str, environment: Any):
        self._env = environment
        self.spec = EnvironmentSpec(
            name=name,
            observation=specs.Array((environment.observation_size,), np.float32, name="observation"),
            action=specs.BoundedArray((environment.action_size,), np.float32, -1.0, 1.0, name="action"),
        )

    def reset(self, key: Key) -> tuple[Any, TimeStep]:
        state = self._env.reset(key)
        return state, types.restart(state.obs.astype(jnp.float32))

    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        del key
        state = self._env.step(state, action)
        return state, types.transition(state.reward, state.obs.astype(jnp.float32), terminated=state.done > 0)


def _make(task: str, config: BraxConfig) -> JaxEnvironment:
    from brax import envs

    return TimeLimit(Brax(f"brax/{task}", envs.get_environment(task, backend=config.backend)), config.max_steps)


SUITE = registry.Suite(
    make=_make,
    tasks=lambda: TASKS,
    config=BraxConfig,
    summary="rigid-body control in JAX (ant, halfcheetah, humanoid, ...)",
    package="brax",
    extra="brax",
    default_task="inverted_pendulum",
)
