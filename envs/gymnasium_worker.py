"""One gymnasium environment in a worker process. Imports no jax."""

import warnings
from typing import Any

import gymnasium
import numpy as np

from podracer.envs import gymnasium_spaces
from podracer.workers import SingleEnvironment


class GymnasiumEnvironment(SingleEnvironment):
    """A `gymnasium.Env` with whatever wrappers it has. `seed` is given to its first reset."""

    def __init__(self, env: gymnasium.Env, seed: int | None = None):
        self._env, self._seed = env, seed
        self._encode = gymnasium_spaces.encoder(env.observation_space)
        self._decode = gymnasium_spaces.decoder(env.action_space)

    def reset(self) -> Any:
        observation, _ = self._env.reset(seed=self._seed)
        self._seed = None
        return self._encode(observation)

    def step(self, action: Any) -> tuple[Any, float, float, bool]:
        observation, reward, terminated, truncated, _ = self._env.step(self._decode(action))
        return self._encode(observation), float(reward), 0.0 if terminated else 1.0, bool(terminated or truncated)

    def render(self) -> np.ndarray | None:
        if self._env.render_mode != "rgb_array":
            return None
        picture: Any = self._env.render()
        return None if picture is None else np.asarray(picture, np.uint8)

    def close(self) -> None:
        self._env.close()


def build(spec: Any, max_steps: int) -> gymnasium.Env:
    """The environment of an `EnvSpec`, with pictures where it has them. max_steps: time limit; 0 keeps its own."""
    limit = {"max_episode_steps": max_steps} if max_steps else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is a newer version of it, above all
        env = gymnasium.make(spec, disable_env_checker=True, **limit)
        if "rgb_array" in (env.metadata.get("render_modes") or ()) and env.render_mode is None:
            env.close()
            env = gymnasium.make(spec, disable_env_checker=True, render_mode="rgb_array", **limit)
    return env


def make(number: int, seed: int, spec: Any, max_steps: int) -> GymnasiumEnvironment:
    """A `podracer.workers.Factory`, once `spec` and `max_steps` are bound."""
    del number
    return GymnasiumEnvironment(build(spec, max_steps), seed)
