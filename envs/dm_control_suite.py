"""`dm_control/<domain>_<task>`: the DeepMind Control Suite in worker processes on the host, from states, pixels or depth.

Its time limit is LAST with discount 1, as its authors have it (Tassa et al. 2018): almost no task terminates.

`dm_control/maze_static_goal` and `maze_random_goal` are navigation with continuous actions, in dm_control's maze arenas, with
what `nav/ray_maze` observes, labels and gives for a goal: `dm_control_maze.py`. They have no fruit.
"""

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from dm_env import specs

from podracer import dm, registry
from podracer.environment import Unsupported
from podracer.envs import dm_control_maze, dm_control_worker
from podracer.envs.dm_control_worker import DmControlConfig
from podracer.envs.nav.config import NavConfig
from podracer.processes import ProcessEnvironment
from podracer.types import EnvironmentSpec

MAZES: dict[str, Literal["static", "random"]] = {"maze_random_goal": "random", "maze_static_goal": "static"}


def tasks() -> Sequence[str]:
    """All tasks of the Control Suite and the mazes, sorted."""
    return tuple(sorted([*_pairs(), *MAZES]))


def make(task: str, config: DmControlConfig) -> ProcessEnvironment:
    """The environment. Rendering is first tried in the workers. Raises Unsupported for settings that a maze cannot serve."""
    if task in MAZES:
        return _make_maze(task, config)
    domain, name = _pairs()[task]
    env = dm_control_worker.load(domain, name)
    depth = specs.BoundedArray((config.height, config.width, 1), np.float32, 0.0, config.far, name="depth")
    spec = EnvironmentSpec(
        name=f"dm_control/{task}",
        observation=depth if config.observation == "depth" else _observation_spec(env.observation_spec(), config),
        action=dm.action_spec(env.action_spec()).replace(name="action"),
        aux={"depth": depth} if config.depth_label else (),
        frames_per_step=config.action_repeat,
    )
    env.close()
    factory = functools.partial(dm_control_worker.make, domain=domain, task=name, config=config)
    return ProcessEnvironment(spec, factory, config.num_workers)


def _make_maze(task: str, config: DmControlConfig) -> ProcessEnvironment:
    from podracer.envs.nav.ray_maze import RayMaze

    if config.observation != "states":
        raise Unsupported(
            f"dm_control/{task} observes rgb and velocity, and depth with env.depth_input=true: leave env.observation"
        )
    settings = NavConfig(
        maze=config.maze,
        maze_seed=config.maze_seed,
        goal=MAZES[task],
        num_apples=0,
        num_strawberries=0,
        height=config.height,
        width=config.width,
        depth_input=config.depth_input,
        action_repeat=config.action_repeat,
        max_steps=config.max_steps,
    ).resolved()
    action = specs.BoundedArray((2,), np.float32, -1.0, 1.0, name="action")
    spec = RayMaze(f"dm_control/{task}", settings).spec.replace(action=action)
    return ProcessEnvironment(spec, functools.partial(dm_control_maze.make, config=settings), config.num_workers)


def _observation_spec(theirs: Any, config: DmControlConfig) -> Any:
    if config.observation == "pixels":
        return specs.BoundedArray((config.height, config.width, 3), np.uint8, 0, 255, name="pixels")
    if config.observation == "dict":
        return {name: specs.Array(spec.shape, np.float32, name=name) for name, spec in theirs.items()}
    size = sum(math.prod(spec.shape) for spec in theirs.values())
    return specs.Array((size,), np.float32, name="states")


@functools.cache
def _pairs() -> dict[str, tuple[str, str]]:
    """Domain and task by our name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no display
        from dm_control import suite
    return {f"{domain}_{task}": (domain, task) for domain, task in suite.ALL_TASKS}


SUITE = registry.Suite(
    make=make,
    tasks=tasks,
    config=DmControlConfig,
    summary="the DeepMind Control Suite (cartpole_swingup, ...) and maze arenas, on the host",
    package="dm_control",
    default_task="cartpole_swingup",
)
