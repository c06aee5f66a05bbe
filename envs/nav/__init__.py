"""Mazes seen from within, with labels of depth, pose and loop closure. Mirowski et al. 2017, https://arxiv.org/abs/1611.03673.

* `ray_maze`: textured mazes in a raycaster of our own, in JAX: `ray_maze.py`.
* `vizdoom_maze`: the same in Doom, on the host, for Sebulba: `vizdoom_maze.py`. Needs ViZDoom, an extra.

An agent is rewarded for apples (1), strawberries (2) and the goal (10), which moves it to a random place and brings all fruit
back; an episode lasts a fixed number of steps. Imports no jax.
"""

from typing import Any

from podracer.envs.nav.config import NavConfig
from podracer.registry import Suite


def _make(task: str, config: NavConfig) -> Any:
    if task == "vizdoom_maze":
        from podracer.envs.nav import vizdoom_maze

        return vizdoom_maze.make(f"nav/{task}", config)
    from podracer.envs.nav.ray_maze import make

    return make(f"nav/{task}", config)


SUITE = Suite(
    make=_make,
    tasks=lambda: ("ray_maze", "vizdoom_maze"),
    config=NavConfig,
    summary="mazes seen from within, with depth, pose and loop closure as labels",
    default_task="ray_maze",
)
