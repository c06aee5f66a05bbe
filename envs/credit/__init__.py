"""Problems of credit assignment in which luck drowns what an action brought about. Mesnard et al. 2021, section 4 and appendix,
https://arxiv.org/abs/2011.09464.

* `feedback_bandit`: one action, a reward with noise, and a vector of feedback that holds the noise.
* `key_to_door`, `key_to_door_mini`: a key, then apples, then a door that only the key opens. With `variance=high` an apple is
  worth 1 or 10, the same in all of an episode, and one door is worth 1.
* `interleaving`: questions whose answers come later, between those of other tasks, with rewards of very different sizes.

All are drawn from the settings alone, `seed` among them: every run of the same settings plays the same problem.
"""

from typing import Any

from podracer.envs.credit.config import Config
from podracer.registry import Suite


def _make(task: str, config: Config) -> Any:
    from podracer.envs.credit.bandit import FeedbackBandit
    from podracer.envs.credit.interleaving import Interleaving
    from podracer.envs.credit.key_to_door import MINI, PAPER, KeyToDoor

    if task == "feedback_bandit":
        return FeedbackBandit(config)
    if task == "interleaving":
        return Interleaving(config)
    return KeyToDoor(task, MINI if task == "key_to_door_mini" else PAPER, config)


SUITE = Suite(
    make=_make,
    tasks=lambda: ("feedback_bandit", "interleaving", "key_to_door", "key_to_door_mini"),
    config=Config,
    summary="credit assignment: a bandit with feedback, Key-to-Door, interleaved tasks",
    default_task="key_to_door_mini",
)
