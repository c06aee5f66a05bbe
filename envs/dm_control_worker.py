"""The DeepMind Control Suite in a worker process. Imports no jax."""

import dataclasses
import logging
import os
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from podracer.config import one_line, require
from podracer.dm import DmEnvironment

_NO_RENDERER = "off"


@dataclasses.dataclass(frozen=True)
class DmControlConfig:
    """Options of `dm_control/<domain>_<task>` and, where they say so, of `dm_control/maze_<goal>_goal`.

    observation: `states`, all of the task's observations as one vector `[n]` float32; `dict`, the same by name;
      `pixels`, `[height, width, 3]` uint8; `depth`, `[height, width, 1]` float32 metres from the camera, at most `far`.
    depth_label: depth, as above, in `TimeStep.aux`, whatever is observed.
    height, width, camera: of what is rendered. Through EGL, unless MUJOCO_GL says otherwise.
    far: metres.
    action_repeat: control steps of an agent step; rewards are added.
    max_steps: time limit in agent steps; 0 keeps the task's own.
    num_workers: processes; 0 is one per core.

    Mazes read height, width, action_repeat, max_steps and num_workers, and these. What they observe and label is fixed.

    maze, maze_seed, depth_input: of mazes alone; see `envs/nav/config.py`.
    """

    observation: Literal["states", "dict", "pixels", "depth"] = "states"
    depth_label: bool = False
    height: int = 84
    width: int = 84
    camera: int = 0
    far: float = 10.0
    action_repeat: int = 1
    max_steps: int = 0
    num_workers: int = 0
    maze: Literal["mini", "small", "large", "i_maze"] = "mini"
    maze_seed: int = 0
    depth_input: bool = False

    def __post_init__(self) -> None:
        require(self, "height", "width", "action_repeat", at_least=1)
        require(self, "far", above=0)
        require(self, "camera", at_least=-1)
        require(self, "max_steps", "num_workers", "maze_seed", at_least=0)

    @property
    def renders(self) -> bool:
        """Whether agent steps need pictures."""
        return self.depth_label or self.observation in ("pixels", "depth")


class DmControlEnvironment(DmEnvironment):
    """A task of the Control Suite."""

    def __init__(self, env: Any, config: DmControlConfig):
        super().__init__(env, config.max_steps, config.action_repeat)
        self._config = config
        self._painter: Any = None

    def observe(self, observation: Any) -> Any:
        kind = self._config.observation
        if kind == "pixels":
            return self._render(depth=False)
        if kind == "depth":
            return self._depth()
        if kind == "dict":
            return {name: np.asarray(value, np.float32) for name, value in observation.items()}
        return np.concatenate([np.ravel(value) for value in observation.values()]).astype(np.float32)

    def aux(self) -> Any:
        return {"depth": self._depth()} if self._config.depth_label else ()

    def render(self) -> np.ndarray:
        physics, camera = self.env.physics, self._config.camera
        if os.environ.get("MUJOCO_GL") != _NO_RENDERER:
            return physics.render(240, 320, camera_id=camera)
        if self._painter is None:
            self._painter = _Painter(physics.model.ptr, 240, 320)
        return self._painter.paint(physics.data.ptr, camera)

    def _depth(self) -> np.ndarray:
        return np.minimum(self._render(depth=True), self._config.far)[..., None].astype(np.float32)

    def _render(self, depth: bool) -> np.ndarray:
        config, env = self._config, self.env
        return env.physics.render(config.height, config.width, camera_id=config.camera, depth=depth)


class _Painter:
    """Pictures `[height, width, 3]` uint8 through EGL, opened at the first of them, where dm_control was told not to render."""

    def __init__(self, model: Any, height: int, width: int):
        import mujoco
        from mujoco import egl

        # As `mujoco.Renderer` does, which MUJOCO_GL=off disables.
        self._mujoco, self._model, self._picture = mujoco, model, np.zeros((height, width, 3), np.uint8)
        self._gl = egl.GLContext(width, height)
        self._gl.make_current()
        self._scene, self._camera = mujoco.MjvScene(model, maxgeom=2000), mujoco.MjvCamera()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)

    def paint(self, data: Any, camera: int) -> np.ndarray:
        mujoco, view = self._mujoco, self._mujoco.MjrRect(0, 0, *self._picture.shape[1::-1])
        if camera < self._model.ncam:
            self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED.value, camera
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, mujoco.MjvOption(), None, self._camera, everything, self._scene)
        mujoco.mjr_render(view, self._scene, self._context)
        mujoco.mjr_readPixels(self._picture, None, view, self._context)
        return self._picture[::-1].copy()


def load(domain: str, task: str, seed: int | None = None) -> Any:
    """The bare environment, a `dm_control.rl.control.Environment`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no display
        from dm_control import suite
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)  # some of its models are in an old format, which MuJoCo warns of each time
    try:
        return suite.load(domain, task, task_kwargs={"random": seed})
    finally:
        logger.setLevel(level)


def make(number: int, seed: int, domain: str, task: str, config: DmControlConfig) -> DmControlEnvironment:
    """A `podracer.workers.Factory`, once the rest is bound. Raises RuntimeError where it must render and cannot."""
    del number
    if not config.renders:
        os.environ.setdefault("MUJOCO_GL", _NO_RENDERER)  # else dm_control opens a display, or complains that there is none
        return DmControlEnvironment(load(domain, task, seed), config)
    return DmControlEnvironment(that_renders(lambda: load(domain, task, seed)), config)


def that_renders(build: Callable[[], Any]) -> Any:
    """What `build` makes, an environment of dm_control. Raises RuntimeError where it cannot render."""
    backend = os.environ.setdefault("MUJOCO_GL", "egl")  # before dm_control is imported
    try:
        env = build()
        env.physics.render(8, 8)
    except (ImportError, AttributeError, RuntimeError) as error:  # PyOpenGL lacks an attribute where the library is missing
        hint = "install libegl1, or libosmesa6 and set MUJOCO_GL=osmesa"
        raise RuntimeError(f"cannot render with MUJOCO_GL={backend} ({one_line(error)}): {hint}") from error
    return env
