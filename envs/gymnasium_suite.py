"""`gymnasium/<id>`: any environment that is registered with gymnasium, in worker processes on the host.

`<id>` is as in `gymnasium.make`: `CartPole-v1`, or `my_module:MyEnv-v0`, which imports `my_module` first. Termination has
discount 0, a time limit (gymnasium's `truncated`) keeps 1. `gymnasium_spaces.py` says what becomes of observations and actions.
Pictures of classic control and toy text need pygame, those of MuJoCo a display or MUJOCO_GL=egl.
"""

import functools
import importlib
from typing import Any

import gymnasium

from podracer import registry
from podracer.config import one_line
from podracer.dm import DmConfig
from podracer.environment import Unsupported
from podracer.envs import gymnasium_spaces, gymnasium_worker
from podracer.processes import ProcessEnvironment
from podracer.types import EnvironmentSpec


class _Tasks(tuple[str, ...]):
    """The registered ids. `module:id` counts as one of them: the module registers it once it is imported."""

    def __contains__(self, task: object) -> bool:
        return super().__contains__(task) or (isinstance(task, str) and ":" in task)


def tasks() -> _Tasks:
    """Ids that gymnasium knows now, sorted."""
    return _Tasks(sorted(gymnasium.registry))


def make(task: str, config: DmConfig) -> ProcessEnvironment:
    """The environment.

    Raises:
      NotFound: its module or id is not there. Unsupported: gymnasium cannot make it (a package is missing), or its spaces are
        of kinds that we do not know.
    """
    module, colon, _ = task.rpartition(":")
    try:
        if colon:
            importlib.import_module(module)
        spec: Any = gymnasium.spec(task.removeprefix(module + colon))
    except (ImportError, gymnasium.error.Error) as error:
        raise registry.NotFound(f"gymnasium/{task}: {one_line(error)}") from error
    try:
        env = gymnasium_worker.build(spec, config.max_steps)
        env.close()
        ours = EnvironmentSpec(
            name=f"gymnasium/{task}",
            observation=gymnasium_spaces.observation_spec(env.observation_space),
            action=gymnasium_spaces.action_spec(env.action_space),
        )
    except (ImportError, TypeError, gymnasium.error.Error) as error:
        raise Unsupported(f"gymnasium/{task}: {one_line(error)}") from error
    factory = functools.partial(gymnasium_worker.make, spec=spec, max_steps=config.max_steps)
    return ProcessEnvironment(ours, factory, config.num_workers)


SUITE = registry.Suite(
    make=make,
    tasks=tasks,
    config=DmConfig,
    summary="any id registered with gymnasium (CartPole-v1, ...), on the host",
    package="gymnasium",
    default_task="CartPole-v1",
)
