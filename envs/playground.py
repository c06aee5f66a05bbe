"""MuJoCo Playground (https://github.com/google-deepmind/mujoco_playground): the DeepMind Control Suite on MJX.

Its locomotion and manipulation tasks are left out: their robot models are downloaded from another repository when made.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer import registry, types
from podracer.config import ConfigError
from podracer.environment import JaxEnvironment, TimeLimit
from podracer.types import Array, EnvironmentSpec, Key, TimeStep

TASKS = (
    "CartpoleBalance",
    "AcrobotSwingup",
    "AcrobotSwingupSparse",
    "BallInCup",
    "CartpoleBalanceSparse",
    "CartpoleSwingup",
    "CartpoleSwingupSparse",
    "CheetahRun",
    "FingerSpin",
    "FingerTurnEasy",
    "FingerTurnHard",
    "FishSwim",
    "HopperHop",
    "HopperStand",
    "HumanoidRun",
    "HumanoidStand",
    "HumanoidWalk",
    "PendulumSwingup",
    "PointMass",
    "ReacherEasy",
    "ReacherHard",
    "SwimmerSwimmer6",
    "WalkerRun",
    "WalkerStand",
    "WalkerWalk",
)


@dataclasses.dataclass(frozen=True)
class PlaygroundConfig:
    """implementation: of MJX; `jax` runs everywhere, `warp` needs an NVIDIA GPU. max_steps: 0 for the task's own (1000)."""

    implementation: Literal["jax", "warp"] = "jax"
    max_steps: int = 0

    def __post_init__(self) -> None:
        if self.max_steps < 0:
            raise ConfigError(f"max_steps must be 0 (the task's own limit) or more, not {self.max_steps}")


class Playground(JaxEnvironment):
    """A control-suite task without its time limit. Observation: `[n]` float32; actions `[m]` float32 in [-1, 1]."""

    def __init__(self, task: str, environment: Any):
        self._env = environment
        self.spec = EnvironmentSpec(
            name=f"playground/{task}",
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


def _make(task: str, config: PlaygroundConfig) -> JaxEnvironment:
    from mujoco_playground import registry as playground

    environment = playground.load(task, config_overrides={"impl": config.implementation})
    limit = config.max_steps or int(playground.get_default_config(task).episode_length)
    return TimeLimit(Playground(task, environment), limit)


SUITE = registry.Suite(
    make=_make,
    tasks=lambda: TASKS,
    config=PlaygroundConfig,
    summary="the DeepMind Control Suite on MJX (CartpoleBalance, CheetahRun, WalkerWalk, ...)",
    package="mujoco_playground",
    extra="playground",
    default_task="CartpoleBalance",
)
