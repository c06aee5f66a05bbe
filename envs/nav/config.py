"""Settings of the suite `nav`. Imports no jax."""

import dataclasses
import math
from typing import Literal

from podracer.config import ConfigError, filled, require

TOUCH = 0.5
"""Squares between the agent and the centre of a fruit or goal that it takes."""
APPLE, STRAWBERRY, GOAL = 1.0, 2.0, 10.0
"""Rewards."""
ACTIONS = ((0, 0, -1), (0, 0, 1), (0, 1, 0), (0, -1, 0), (-1, 0, 0), (1, 0, 0), (0, 1, -1), (0, 1, 1))
"""Turn left, turn right, forward, back, left, right, forward and left, forward and right: to the right, forward, turn right."""


@dataclasses.dataclass(frozen=True)
class NavConfig:
    """maze: `mini`, 3x5 cells; `small`, 5x10, and `large`, 9x15, of the paper; `i_maze`, 77 squares with four alcoves.
    maze_seed: which maze of that size, and where its goal and fruit are. loops: share of walls that a spanning tree of cells
      leaves and that are opened nevertheless.
    goal: `static`, goal and fruit are where maze_seed has put them; `random`, somewhere else in every episode.
    new_maze: every episode is in another maze, all drawn from its own randomness; only with `goal=random`.
    num_apples, num_strawberries: -1 for the maze's own.

    height, width: of the picture, pixels. fov: its angle from left to right, degrees.
    max_depth: squares at which depth is 1; 0 for the maze's own. depth_input: observe the depth of every pixel too, with which
      it is no longer the task of the paper but its ablation.

    action_repeat: frames of an agent step. max_steps: agent steps of an episode; 0 for the maze's own.
    speed, turn: squares (at most 0.4, for walls are 1 thick) and degrees a frame of an agent as fast as it can be; 0 for the
      maze's own. inertia: share of its velocity that it keeps from one frame to the next (`ray_maze` alone).
    num_workers: processes of `vizdoom_maze`; 0 is one per core.
    """

    maze: Literal["mini", "small", "large", "i_maze"] = "small"
    maze_seed: int = 0
    loops: float = 0.1
    goal: Literal["static", "random"] = "static"
    new_maze: bool = False
    num_apples: int = -1
    num_strawberries: int = -1
    height: int = 84
    width: int = 84
    fov: float = 90.0
    max_depth: float = 0.0
    depth_input: bool = False
    action_repeat: int = 4
    max_steps: int = 0
    speed: float = 0.0
    turn: float = 0.0
    inertia: float = 0.5
    num_workers: int = 0

    def __post_init__(self) -> None:
        if self.maze not in PROTOCOLS:
            raise ConfigError(f"maze must be one of {', '.join(PROTOCOLS)}, not {self.maze!r}")
        if self.goal not in ("static", "random"):
            raise ConfigError(f"goal must be static or random, not {self.goal!r}")
        if self.new_maze and (self.goal == "static" or self.maze == "i_maze"):
            raise ConfigError("new_maze draws a maze for every episode: set goal=random and maze=mini, small or large with it")
        require(self, "num_apples", "num_strawberries", at_least=-1)
        require(self, "maze_seed", "max_depth", "max_steps", "turn", "num_workers", at_least=0)
        require(self, "height", "width", "action_repeat", at_least=1)
        require(self, "loops", at_least=0, at_most=1)
        require(self, "inertia", at_least=0, below=1)
        require(self, "fov", at_least=10, at_most=150)
        require(self, "speed", at_least=0, at_most=0.4)

    @property
    def extent(self) -> float:
        """Tangent of half the angle of the view."""
        return math.tan(math.radians(self.fov) / 2)

    def resolved(self) -> "NavConfig":
        """With the maze's own values in the place of 0 and -1.

        Raises:
          ConfigError: there are more apples and strawberries than a maze of that size has room for.
        """
        own = dataclasses.asdict(PROTOCOLS[self.maze])
        _, room = own.pop("cells"), own.pop("room")
        config = filled(self, own)
        num_fruit = config.num_apples + config.num_strawberries
        if num_fruit > room:
            raise ConfigError(f"maze={self.maze} has room for {room} apples and strawberries, not {num_fruit}")
        return config


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What goes with a maze. cells: rows and columns; `()` where it is not drawn from cells. room: squares that are sure to be
    free for fruit. The others: as in NavConfig."""

    cells: tuple[int, ...]
    room: int
    num_apples: int
    num_strawberries: int
    max_steps: int
    max_depth: float
    speed: float
    turn: float


# A spanning tree of n cells has n + n - 1 free squares; two of them are for the goal and the agent. 900 and 2700 steps of 4
# frames are the paper's 3600 and 10800.
PROTOCOLS = {
    "mini": Protocol((3, 5), 27, 4, 1, 250, 8.0, 0.125, 7.5),
    "small": Protocol((5, 10), 97, 10, 3, 900, 16.0, 0.05, 2.0),
    "large": Protocol((9, 15), 267, 20, 6, 2700, 16.0, 0.05, 2.0),
    "i_maze": Protocol((), 21, 6, 0, 900, 24.0, 0.05, 2.0),
}
