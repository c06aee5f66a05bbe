"""Settings of the suite `nav`. Imports no jax."""

import dataclasses
from typing import Literal

from podracer.config import ConfigError

DEPTH_SHAPE = (4, 16)
"""Rows and columns of the label `depth`."""
DEPTH_BAND = 0.5
"""Share of the view's height that the label `depth` covers, in the middle; it covers all of the width."""
TOUCH = 0.5
"""Squares between the agent and the centre of a fruit or goal that it takes."""
APPLE, STRAWBERRY, GOAL = 1.0, 2.0, 10.0
"""Rewards."""


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
    speed, turn: squares and degrees a frame of an agent that moves as fast as it can; 0 for the maze's own. inertia: share of
      its velocity that it keeps from one frame to the next (`ray_maze` alone).
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
        for name, least in (
            ("maze_seed", 0),
            ("num_apples", -1),
            ("num_strawberries", -1),
            ("height", 1),
            ("width", 1),
            ("max_depth", 0),
            ("action_repeat", 1),
            ("max_steps", 0),
            ("speed", 0),
            ("turn", 0),
            ("num_workers", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not 0 <= self.loops <= 1:
            raise ConfigError(f"loops is a share, 0 to 1, not {self.loops}")
        if not 0 <= self.inertia < 1:
            raise ConfigError(f"inertia is a share, at least 0 and below 1, not {self.inertia}")
        if not 10 <= self.fov <= 150:
            raise ConfigError(f"fov must lie between 10 and 150 degrees, not {self.fov}")
        if self.speed > 0.4:
            raise ConfigError(f"speed must be at most 0.4 squares a frame, for walls are 1 thick, not {self.speed}")

    def resolved(self) -> "NavConfig":
        """With the maze's own values in the place of 0 and -1.

        Raises:
          ConfigError: there are more apples and strawberries than a maze of that size has room for.
        """
        own = dataclasses.asdict(PROTOCOLS[self.maze])
        unset = {name: value for name, value in own.items() if getattr(self, name, None) == (-1 if "num_" in name else 0)}
        config = dataclasses.replace(self, **unset)
        num_fruit, room = config.num_apples + config.num_strawberries, own["room"]
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
