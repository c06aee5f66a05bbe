"""Where an agent has been in an episode, as environments on the host tell it: velocity and labels, from one pose a time step.

Imports no jax.
"""

import math
from typing import Any

import numpy as np

from podracer.envs.nav import loop_closure, mazes


class Journey:
    """One episode after another in mazes of the same size. pose: x and y in squares and heading in radians, `[3]` float32."""

    def __init__(self, num_columns: int, max_steps: int):
        """num_columns: of squares in the maze. max_steps: of an episode."""
        self._num_columns, self._max_steps = num_columns, max_steps

    def begin(self, pose: np.ndarray) -> None:
        """An episode starts here."""
        self.steps, self.goals = 0, 0
        self.history = loop_closure.empty(self._max_steps + 1, np)
        self._stand(pose)

    def arrive(self, pose: np.ndarray, respawned: bool = False) -> None:
        """The next time step; respawned: after having reached the goal, at some other place."""
        self.steps += 1
        self.goals += respawned
        if respawned:
            self._stand(pose)
            return
        x, y, turn = pose - self.pose
        cosine, sine = math.cos(self.pose[2]), math.sin(self.pose[2])
        ahead, right = x * cosine + y * sine, y * cosine - x * sine
        turn = (turn + math.pi) % (2 * math.pi) - math.pi
        self.velocity = np.array([right, ahead, 0, 0, 0, turn], np.float32)
        self._look_back(pose, False)

    def labels(self, depth: np.ndarray) -> dict[str, Any]:
        """What `TimeStep.aux` holds. depth: `[4, 16]` float32 in [0, 1]."""
        return {
            "depth": depth,
            "pose": self.pose,
            "position": mazes.square_at(self.pose[:2], self._num_columns, np),
            "loop_closure": self.closed,
            "goals": np.int32(self.goals),
        }

    def _stand(self, pose: np.ndarray) -> None:
        self.velocity = np.zeros(6, np.float32)
        self._look_back(pose, True)

    def _look_back(self, pose: np.ndarray, respawned: bool) -> None:
        self.pose = pose
        self.history, self.closed = loop_closure.visit(self.history, pose[:2], respawned, np)
