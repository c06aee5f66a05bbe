"""One game of `nav/vizdoom_maze` in a worker process. Imports no jax."""

import math
from typing import Any

import numpy as np

from podracer.envs.nav import camera, mazes
from podracer.envs.nav import config as nav
from podracer.envs.nav.config import ACTIONS, PROTOCOLS, TOUCH, NavConfig
from podracer.envs.nav.doom import Doom, View
from podracer.envs.nav.doom_wad import Kind
from podracer.envs.nav.journey import Journey
from podracer.workers import SingleEnvironment

APPLE, STRAWBERRY = Kind("NavApple", 20001, "RSKU", 0.75), Kind("NavStrawberry", 20002, "YSKU", 0.75)
GOAL = Kind("NavGoal", 20003, "PINV")
"""A red skull, a yellow skull, and a green ball."""
_MAZES_PER_GAME = 32
_GOAL = 0
"""The goal's number among the things of a map; fruit follows."""


class VizdoomMaze(SingleEnvironment):
    """One episode after another; see `podracer.envs.nav.vizdoom_maze`."""

    def __init__(self, seed: int, config: NavConfig):
        """config: resolved."""
        self._config, self._seed, self._rng = config, seed, np.random.default_rng(seed)
        fruit = [APPLE] * config.num_apples + [STRAWBERRY] * config.num_strawberries
        self._kinds = [GOAL, *fruit]
        self._worth = np.array([nav.APPLE] * config.num_apples + [nav.STRAWBERRY] * config.num_strawberries, np.float32)
        self._layouts, self._maze = self._draw(), 0
        self._things = mazes.fixed_things(self._layouts[0], config.maze_seed, len(fruit))
        self._columns = self._layouts[0].walls.shape[1]
        self._view = view(config)
        self._doom = self._play()
        self._journey = Journey(config, self._columns)

    def reset(self) -> Any:
        config, rng, num_fruit = self._config, self._rng, len(self._worth)
        if config.new_maze:
            self._maze += 1
            if self._maze == len(self._layouts):
                self._doom.close()
                self._layouts, self._maze = self._draw(), 0
                self._doom = self._play()
        if config.goal == "random":
            self._things = mazes.place(self._layout, rng.random(1 + num_fruit, np.float32), num_fruit, np)
        self._goal, self._fruit = (mazes.centre(square, self._columns, np) for square in self._things)
        self._ripe = np.ones(num_fruit, bool)
        self._doom.enter(self._maze)
        self._doom.place(_GOAL, self._goal)
        self._spawn(~np.zeros(num_fruit, bool))
        self._journey.begin(self._doom.pose())
        return self._observe()

    def step(self, action: Any) -> tuple[Any, float, float, bool]:
        config, (right, forward, turn) = self._config, ACTIONS[action]
        speed, angle = config.speed, math.radians(config.turn)
        self._doom.act(speed * forward, speed * right, angle * turn, config.action_repeat)
        position = self._doom.pose()[:2]
        eaten = self._ripe & (np.sum((self._fruit - position) ** 2, axis=-1) < TOUCH**2)
        found = bool(np.sum((self._goal - position) ** 2) < TOUCH**2)
        reward = float(np.sum(self._worth[eaten])) + nav.GOAL * found
        self._ripe &= ~eaten
        if found:
            missing, self._ripe = ~self._ripe, np.ones_like(self._ripe)
            self._spawn(missing)
        else:
            for thing in np.flatnonzero(eaten):
                self._doom.place(1 + int(thing), None)
        self._journey.arrive(self._doom.pose(), found)
        return self._observe(), reward, 1.0, self._journey.ended

    def aux(self) -> Any:
        return self._journey.labels(self._depth_of_label())

    def render(self) -> np.ndarray:
        view, depth, walls = self._doom.rgb(), self._depth_of_label(), self._layout.walls
        return self._journey.picture(view, depth, walls, self._goal, self._fruit, self._ripe, self._worth)

    def close(self) -> None:
        self._doom.close()

    @property
    def _layout(self) -> mazes.Layout:
        return self._layouts[self._maze]

    def _draw(self) -> list[mazes.Layout]:
        """The mazes of one game: the fixed one, or as many new ones as go into a file."""
        config = self._config
        if not config.new_maze:
            return [mazes.fixed(config.maze, config.maze_seed, config.loops)]
        rows, columns = PROTOCOLS[config.maze].cells
        noise = self._rng.random((_MAZES_PER_GAME, mazes.num_noise(rows, columns)), np.float32)
        return [mazes.drawn(numbers, rows, columns, config.loops, np) for numbers in noise]

    def _play(self) -> Doom:
        return Doom([layout.walls for layout in self._layouts], self._kinds, self._view, self._seed)

    def _spawn(self, missing: np.ndarray) -> None:
        """Puts the agent on some square but the goal's, and back the fruit that is missing, `[N]` bool."""
        noise = self._rng.random(2, np.float32)
        square = mazes.choose(mazes.without(self._layout.starts, self._things.goal, np), noise[0], np)
        for thing in np.flatnonzero(missing):
            self._doom.place(1 + int(thing), self._fruit[thing])
        self._doom.place_player(mazes.centre(square, self._columns, np), (2 * float(noise[1]) - 1) * math.pi)
        self._doom.act(0.0, 0.0, 0.0, 1)

    def _observe(self) -> dict[str, Any]:
        return self._journey.observation(self._doom.rgb(), self._doom.depth)

    def _depth_of_label(self) -> np.ndarray:
        return self._doom.depth_at(*camera.of_label(self._config.extent))


def view(config: NavConfig) -> View:
    """What is seen, of resolved settings. Raises ValueError where Doom cannot show it."""
    return View(config.height, config.width, config.fov, config.max_depth)


def make(number: int, seed: int, config: NavConfig) -> VizdoomMaze:
    """A `podracer.workers.Factory`, once config, which is resolved, is bound."""
    del number
    return VizdoomMaze(seed, config)
