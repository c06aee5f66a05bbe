"""What environments on the host tell an agent of its way through an episode: from one pose a time step, velocity and labels.

Imports no jax.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from podracer.envs.nav import loop_closure, mazes, picture
from podracer.envs.nav.config import NavConfig


class Journey:
    """One episode after another in mazes of the same size. pose: x and y in squares and heading in radians, `[3]` float32."""

    def __init__(self, config: NavConfig, num_columns: int):
        """config: resolved. num_columns: of squares in the maze."""
        self._config, self._num_columns = config, num_columns

    def begin(self, pose: np.ndarray) -> None:
        """An episode starts here."""
        self.steps, self.goals = 0, 0
        self.history = loop_closure.empty(self._config.max_steps + 1, np)
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

    @property
    def ended(self) -> bool:
        """Whether this time step is the last of its episode."""
        return self.steps == self._config.max_steps

    def observation(self, rgb: np.ndarray, depth: Callable[[], np.ndarray]) -> dict[str, Any]:
        """What the agent sees. rgb: `[H, W, 3]` uint8. depth: makes `[H, W]` float32, squares, where that is observed."""
        observation = {"rgb": rgb, "velocity": self.velocity}
        if self._config.depth_input:
            observation["depth"] = self._scaled(depth())[..., None]
        return observation

    def labels(self, depth: np.ndarray) -> dict[str, Any]:
        """What `TimeStep.aux` holds. depth: `[4, 16]` float32, squares."""
        return {
            "depth": self._scaled(depth),
            "pose": self.pose,
            "position": mazes.square_at(self.pose[:2], self._num_columns, np),
            "loop_closure": self.closed,
            "goals": np.int32(self.goals),
        }

    def picture(
        self, view: np.ndarray, depth: np.ndarray, walls: Any, goal: Any, fruit: Any = (), ripe: Any = (), worth: Any = ()
    ) -> np.ndarray:
        """As of `ray_maze`. view: `[H, W, 3]` uint8. depth: as in `labels`. The others: as in `picture.Map`."""
        chart = picture.Map(walls, goal, fruit, ripe, worth, self.pose, self.history)
        return picture.compose(view, self._scaled(depth), chart, self.closed, np)

    def _scaled(self, squares: np.ndarray) -> np.ndarray:
        return np.minimum(squares / np.float32(self._config.max_depth), np.float32(1))

    def _stand(self, pose: np.ndarray) -> None:
        self.velocity = np.zeros(6, np.float32)
        self._look_back(pose, True)

    def _look_back(self, pose: np.ndarray, respawned: bool) -> None:
        self.pose = pose
        self.history, self.closed = loop_closure.visit(self.history, pose[:2], respawned, np)
