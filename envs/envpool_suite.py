"""`envpool/<id>`: any environment of envpool (MuJoCo, classic control, MiniGrid, ...) in its C++ thread pool on the host.

`atari/<game>` is the better way to the ALE. Termination has discount 0 and a time limit keeps 1; an episode that ends by itself
on the very step of its time limit counts as cut off, since envpool does not tell. `gymnasium_spaces.py` says what becomes of
observations and actions.
"""

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from podracer import registry
from podracer.config import one_line, require
from podracer.environment import Environment, Unsupported, VectorEnvironment
from podracer.envs import gymnasium_spaces
from podracer.envs.envpool_host import EnvpoolHost
from podracer.processes import environment_seed, host_only
from podracer.types import EnvironmentSpec


@dataclasses.dataclass(frozen=True)
class EnvpoolConfig:
    """Options of `envpool/<id>`.

    max_steps: time limit in steps; 0 keeps the environment's own.
    num_threads: threads of the pool; 0 is one per core.
    batch_size: how many environments `recv` waits for; 0 is all.
    """

    max_steps: int = 0
    num_threads: int = 0
    batch_size: int = 0

    def __post_init__(self) -> None:
        require(self, "max_steps", "num_threads", "batch_size", at_least=0)


class Envpool(Environment):
    """An environment of envpool. Raises Unsupported for those that it lacks libraries for, and games of several players."""

    def __init__(self, task: str, config: EnvpoolConfig):
        import envpool

        self.task, self.config = task, config
        try:
            theirs = envpool.make_spec(task)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that bounds lose precision
                self.observation_space: Any = theirs.gymnasium_observation_space
                self.action_space: Any = theirs.gymnasium_action_space
            observation = gymnasium_spaces.observation_spec(self.observation_space)
            action = gymnasium_spaces.action_spec(self.action_space)
        except (ImportError, TypeError, RuntimeError) as error:
            raise Unsupported(f"envpool/{task}: {one_line(error)}") from error
        options = theirs.config._asdict()
        if options.get("max_num_players", 1) > 1:
            raise Unsupported(f"envpool/{task} is a game of several players")
        self.spec = EnvironmentSpec(name=f"envpool/{task}", observation=observation, action=action)

    def vectorize(self, num_envs: int, seed: int) -> VectorEnvironment:
        raise host_only(self.spec.name)

    def host(self, num_envs: int, seed: int, first_env: int = 0) -> "EnvpoolSuiteHost":
        return EnvpoolSuiteHost(self, num_envs, seed, first_env)


class EnvpoolSuiteHost(EnvpoolHost):
    """A pool of any kind."""

    def __init__(self, environment: Envpool, num_envs: int, seed: int, first_env: int):
        config = environment.config
        options: dict[str, Any] = {
            "env_type": "gymnasium",
            "num_envs": num_envs,
            "num_threads": config.num_threads,
            "env_seed": [environment_seed(seed, first_env + index) for index in range(num_envs)],
            "render_mode": "rgb_array",
        }
        if config.max_steps:
            options["max_episode_steps"] = config.max_steps
        super().__init__(environment.spec, environment.task, options, first_env, config.batch_size)
        self._encode = gymnasium_spaces.encoder(environment.observation_space)
        self._decode = gymnasium_spaces.decoder(environment.action_space)

    def send(self, action: np.ndarray, env_id: np.ndarray) -> None:
        super().send(self._decode(action), env_id)

    def _observe(self, observation: Any, info: dict[str, Any], first: np.ndarray, env_id: np.ndarray) -> Any:
        return self._encode(observation)


@functools.cache
def tasks() -> Sequence[str]:
    """All ids, sorted. Takes seconds: envpool imports what it has to find out."""
    import envpool

    return tuple(sorted(envpool.list_all_envs()))


SUITE = registry.Suite(
    make=Envpool,
    tasks=tasks,
    config=EnvpoolConfig,
    summary="envpool's C++ environments (MuJoCo, MiniGrid, ViZDoom, ...), on the host",
    package="envpool",
    default_task="CartPole-v1",
)
