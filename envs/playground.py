"""MuJoCo Playground (https://github.com/google-deepmind/mujoco_playground): the DeepMind Control Suite on MJX.

Its interface is that of brax. Locomotion and manipulation are left out: their robot models are downloaded from another
repository when made.
"""

import dataclasses
from typing import Literal

from podracer import registry
from podracer.config import require
from podracer.environment import JaxEnvironment, TimeLimit
from podracer.envs.brax import Brax

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
        require(self, "max_steps", at_least=0)


def _make(task: str, config: PlaygroundConfig) -> JaxEnvironment:
    from mujoco_playground import registry as playground

    environment = playground.load(task, config_overrides={"impl": config.implementation})
    limit = config.max_steps or int(playground.get_default_config(task).episode_length)
    return TimeLimit(Brax(f"playground/{task}", environment), limit)


SUITE = registry.Suite(
    make=_make,
    tasks=lambda: TASKS,
    config=PlaygroundConfig,
    summary="the DeepMind Control Suite on MJX (CartpoleBalance, CheetahRun, WalkerWalk, ...)",
    package="mujoco_playground",
    extra="playground",
    default_task="CartpoleBalance",
)
