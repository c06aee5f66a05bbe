"""`dm_control/maze_<goal>_goal` in a worker process: a ball with a head rolls through a maze arena of dm_control.

`RepeatSingleGoalMaze` and `RollingBallWithHead` of dm_control (Tunyasuvunakool et al. 2020, https://arxiv.org/abs/2006.12983),
in the mazes of the suite `nav`. A square is 2 m wide, walls are as high, the eye is at half of that, and above is the sky.
Imports no jax.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from podracer.dm import DmEnvironment
from podracer.envs.dm_control_worker import that_renders
from podracer.envs.nav import camera, mazes
from podracer.envs.nav.config import GOAL, NavConfig
from podracer.envs.nav.journey import Journey

METRES = 2.0
"""Side of a square."""
_CONTROL, _PHYSICS = 0.1, 0.005
"""Seconds of a control step and of a step of the physics."""
_LABEL_PIXELS = 64
_LOOKS = "ABCDE"
"""Walls of a block of four by four squares are of one letter, and each letter is one of dm_control's styles."""


class DmMaze(DmEnvironment):
    """One episode after another. Actions, as dm_control has them: roll, -1 is forward, and steer, 1 is to the right.

    Observation and aux: those of `podracer.envs.nav.ray_maze`. Reward: 10 at the goal, which moves the walker to a random
    square with a random heading. There is no fruit.
    """

    def __init__(self, seed: int, config: NavConfig):
        """config: resolved, with the default `fov`. Raises RuntimeError where it cannot render."""
        self._config, self._layout = config, mazes.fixed(config.maze, config.maze_seed, config.loops)
        self._num_columns = self._layout.walls.shape[1]
        with _fixed_looks(config.maze_seed):
            super().__init__(that_renders(lambda: _environment(_make_task(self._layout, config), seed)))
        self._task = self.env.task
        self._journey = Journey(config, self._num_columns)

    def reset(self) -> Any:
        with _fixed_looks(self._config.maze_seed):
            self.env.reset()
        self._journey.begin(self._pose())
        return self._observe()

    def step(self, action: Any) -> tuple[Any, float, float, bool]:
        found = 0
        for _ in range(self._config.action_repeat):
            found += self.env.step(np.asarray(action, self._action_dtype)).reward > 0
        self._journey.arrive(self._pose(), found > 0)
        return self._observe(), GOAL * found, 1.0, self._journey.ended

    def aux(self) -> Any:
        return self._journey.labels(self._depth_of_label())

    def render(self) -> np.ndarray:
        goal = mazes.centre(self._task.goal, self._num_columns, np)
        return self._journey.picture(self._look(168, 168), self._depth_of_label(), self._layout.walls, goal)

    def _observe(self) -> dict[str, Any]:
        size = self._config.height, self._config.width
        return self._journey.observation(self._look(*size), lambda: self._look(*size, depth=True) / METRES)

    def _pose(self) -> np.ndarray:
        eye, (rows, columns) = self.env.physics.bind(self._task.eye), self._layout.walls.shape
        across, up = np.asarray(eye.xpos)[:2] / METRES
        ahead = -np.reshape(eye.xmat, (3, 3))[:, 2]
        return np.array([across + columns / 2, rows / 2 - up, math.atan2(-ahead[1], ahead[0])], np.float32)

    def _look(self, height: int, width: int, depth: bool = False) -> np.ndarray:
        physics = self.env.physics
        return physics.render(height, width, camera_id=physics.bind(self._task.eye).element_id, depth=depth)

    def _depth_of_label(self) -> np.ndarray:
        image = self._look(_LABEL_PIXELS, _LABEL_PIXELS, depth=True)
        rows, columns = (np.floor((1 + tangents) * _LABEL_PIXELS / 2).astype(int) for tangents in camera.of_label(1.0))
        return image[rows[:, None], columns] / METRES


def _environment(task: Any, seed: int) -> Any:
    from dm_control import composer

    return composer.Environment(
        task, random_state=seed, recompile_mjcf_every_episode=False, strip_singleton_obs_buffer_dim=True
    )


def _make_task(layout: mazes.Layout, config: NavConfig) -> Any:
    """A task of dm_control. Its `goal` is the number of the goal's square, its `eye` the camera."""
    import labmaze
    from dm_control.locomotion.arenas import labmaze_textures
    from dm_control.locomotion.arenas.mazes import MazeWithTargets
    from dm_control.locomotion.props.target_sphere import TargetSphere
    from dm_control.locomotion.tasks.random_goal_maze import RepeatSingleGoalMaze
    from dm_control.locomotion.walkers.jumping_ball import RollingBallWithHead

    rows, columns = layout.walls.shape

    class Task(RepeatSingleGoalMaze):
        """With goals and starts of ours, and without a new compilation for each episode."""

        goal: Any
        eye: Any

        def initialize_episode(self, physics: Any, random_state: Any) -> None:
            self.goal = mazes.fixed_things(layout, config.maze_seed, 0).goal
            if config.goal == "random":
                self.goal = mazes.choose(layout.goals, random_state.random_sample(), np)
            self._target.set_pose(physics, _metres(self.goal))
            super().initialize_episode(physics, random_state)

        def _respawn(self, physics: Any, random_state: Any) -> None:
            start = mazes.choose(mazes.without(layout.starts, self.goal, np), random_state.random_sample(), np)
            turn = random_state.uniform(-math.pi, math.pi)
            quaternion = [math.cos(turn / 2), 0, 0, math.sin(turn / 2)]
            physics.data.qvel[:] = 0.0  # nothing else moves
            self._walker.set_pose(physics, _metres(start), quaternion)
            physics.forward()  # or the camera would still be where it was

    def _metres(square: Any) -> list[float]:
        x, y = mazes.centre(square, columns, np)
        return [METRES * (float(x) - columns / 2), METRES * (rows / 2 - float(y)), 0.0]

    walls = [
        "".join(_LOOKS[(row // 4 * 3 + column // 4) % len(_LOOKS)] if wall else " " for column, wall in enumerate(line))
        for row, line in enumerate(layout.walls)
    ]
    looks = {letter: labmaze_textures.WallTextures(style=f"style_{n:02d}") for n, letter in enumerate(_LOOKS, start=1)}
    arena = MazeWithTargets(
        labmaze.FixedMazeWithRandomGoals("\n".join(walls) + "\n", num_spawns=1, num_objects=1),
        xy_scale=METRES,
        z_height=METRES,
        skybox_texture=labmaze_textures.SkyBox(style="sky_03"),
        wall_textures={letter: looks[letter] for letter in sorted(set("".join(walls)) - {" "})},
        floor_textures=labmaze_textures.FloorTextures(style="style_01"),
    )
    walker = RollingBallWithHead()
    head = walker.mjcf_model.find("body", "egocentric_camera")
    head.pos, head.zaxis = [0.0, 0.0, METRES / 2 - 0.6], [0.0, -1.0, 0.0]  # the body that it is on is at 0.6
    walker.egocentric_camera.fovy = config.fov
    task = Task(
        walker,
        arena,
        target=TargetSphere(radius=0.6, height_above_ground=METRES / 2),
        max_repeats=np.inf,
        contact_termination=False,
        physics_timestep=_PHYSICS,
        control_timestep=_CONTROL,
    )
    task.eye = walker.egocentric_camera
    for observable in walker.observables.as_dict().values():
        observable.enabled = False
    return task


@contextlib.contextmanager
def _fixed_looks(seed: int) -> Iterator[None]:
    """dm_control draws textures from NumPy's global generator, which else the environments of a process would share."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


def make(number: int, seed: int, config: NavConfig) -> DmMaze:
    """A `podracer.workers.Factory`, once config, which is resolved, is bound."""
    del number
    return DmMaze(seed, config)
