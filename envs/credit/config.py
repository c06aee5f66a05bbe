"""Settings of the suite `credit`."""

import dataclasses
from typing import Literal

from podracer.config import ConfigError, require


@dataclasses.dataclass(frozen=True)
class Config:
    """seed: of what is drawn once and then fixed: the feedback's vectors, the rewarded objects of every task.

    `feedback_bandit`. largest: contexts and actions are -largest to largest. num_feedback: entries of the feedback. noise:
    standard deviation of the reward.

    `key_to_door`, `key_to_door_mini`. variance: apples are worth 1 (`low`), or 1 or 10 by episode (`high`). door_reward: of
    opening the door. respawn: steps after which an eaten apple grows again; 0 for never.

    `interleaving`. task_rewards: of a right answer in each task; their number is that of tasks. num_parallel: questions that
    wait for their answer at a time, at most. num_objects: rewarded objects of a task, of twice as many. length: steps of an
    episode.
    observe_pending: also observe which tasks wait, and which were chosen right; without, that must be remembered.
    """

    seed: int = 0
    largest: int = 10
    num_feedback: int = 64
    noise: float = 10.0
    variance: Literal["low", "high"] = "high"
    door_reward: float = 1.0
    respawn: int = 0
    task_rewards: tuple[float, ...] = (80.0, 4.0, 100.0, 6.0, 2.0, 10.0)
    num_parallel: int = 3
    num_objects: int = 3
    length: int = 60
    observe_pending: bool = False

    def __post_init__(self) -> None:
        require(self, "largest", "num_feedback", "num_parallel", "num_objects", "length", at_least=1)
        require(self, "seed", "noise", "respawn", at_least=0)
        if not self.num_parallel <= len(self.task_rewards):
            raise ConfigError(
                f"num_parallel={self.num_parallel} is more than the {len(self.task_rewards)} tasks of task_rewards"
            )
