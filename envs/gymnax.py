"""gymnax (https://github.com/RobertTLange/gymnax): classic control, MinAtar, bsuite and small puzzles as pure JAX.

Only the bare environments (`reset_env`, `step_env`) are used: gymnax's own `step` computes a reset at every step and replaces
the terminal observation. Termination and the time limit are told apart: the limit is a truncation with discount 1.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer import registry, types
from podracer.config import require
from podracer.environment import JaxEnvironment
from podracer.envs import drawing
from podracer.types import Array, EnvironmentSpec, Key, TimeStep

# Written out because importing gymnax takes seconds. MNISTBandit-bsuite is left out: it downloads its data when made.
TASKS = (
    "CartPole-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Pendulum-v1",
    "Asterix-MinAtar",
    "Breakout-MinAtar",
    "Freeway-MinAtar",
    "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
    "Catch-bsuite",
    "DeepSea-bsuite",
    "DiscountingChain-bsuite",
    "MemoryChain-bsuite",
    "SimpleBandit-bsuite",
    "UmbrellaChain-bsuite",
    "BernoulliBandit-misc",
    "FourRooms-misc",
    "FrozenLake-misc",
    "GaussianBandit-misc",
    "MetaMaze-misc",
    "PointRobot-misc",
    "Pong-misc",
    "Reacher-misc",
    "Swimmer-misc",
)


@dataclasses.dataclass(frozen=True)
class GymnaxConfig:
    """max_steps: time limit in steps; 0 keeps the one of the task."""

    max_steps: int = 0

    def __post_init__(self) -> None:
        require(self, "max_steps", at_least=0)


class Gymnax(JaxEnvironment):
    """A gymnax task.

    Observations: images (MinAtar, Pong) `[H, W, C]` uint8, 0 or 255; a discrete state (FrozenLake) as one-hot `[n]` float32;
    everything else float32 as gymnax has it. Actions: int32, or float32 between the task's bounds.
    """

    def __init__(self, task: str, config: GymnaxConfig):
        import gymnax

        self._env, params = gymnax.make(task)
        self._params = params.replace(max_steps_in_episode=config.max_steps) if config.max_steps else params
        self._task = task
        space, action = self._env.observation_space(self._params), self._env.action_space(self._params)
        self._num_states = 0 if hasattr(space, "low") else int(space.n)
        self._image = len(space.shape) == 3
        self.spec = EnvironmentSpec(
            name=f"gymnax/{task}", observation=self._observation_spec(space), action=_action_spec(action)
        )

    def reset(self, key: Key) -> tuple[Any, TimeStep]:
        observation, state = self._env.reset_env(key, self._params)
        return state, types.restart(self._observe(observation))

    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        observation, state, reward, terminated, _ = self._env.step_env(key, state, action, self._params)
        truncated = self._env.is_truncated(state, self._params)
        timestep = types.transition(reward, self._observe(observation), terminated=terminated, truncated=truncated)
        return state, timestep

    def render(self, state: Any) -> Array | None:
        """CartPole as a drawing, tasks with images as coloured channels; None for the rest."""
        if self._task == "CartPole-v1":
            return _draw_cartpole(state.x, state.theta, self._env.default_params.x_threshold)
        if not self._image:
            return None
        image = self._env.observe(jax.random.key(0), state, None, self._params)
        return drawing.paint(image > 0, drawing.rainbow(image.shape[-1]))

    def _observe(self, observation: Any) -> Array:
        if self._num_states:
            return jax.nn.one_hot(observation, self._num_states, dtype=jnp.float32)
        if self._image:
            return jnp.where(observation > 0, 255, 0).astype(jnp.uint8)
        return observation.astype(jnp.float32)

    def _observation_spec(self, space: Any) -> specs.Array:
        if self._num_states:
            return specs.BoundedArray((self._num_states,), np.float32, 0.0, 1.0, name="state")
        if self._image:
            return specs.BoundedArray(space.shape, np.uint8, 0, 255, name="image")
        return specs.Array(space.shape, np.float32, name="observation")  # the bounds that gymnax states are not always kept


def _action_spec(space: Any) -> specs.Array:
    if hasattr(space, "n"):
        return specs.DiscreteArray(int(space.n), name="action")
    return specs.BoundedArray(space.shape, np.float32, np.asarray(space.low), np.asarray(space.high), name="action")


def _draw_cartpole(x: Array, theta: Array, x_threshold: float) -> Array:
    """`[128, 192, 3]` uint8: track, cart and pole to scale (the pole is 1 unit long)."""
    scale, ground = 192 / (2 * x_threshold), 104.0
    rows, columns = jnp.mgrid[:128, :192].astype(jnp.float32)
    right, up = columns - (x / x_threshold + 1) * 96, ground - rows
    along = right * jnp.sin(theta) + up * jnp.cos(theta)
    across = right * jnp.cos(theta) - up * jnp.sin(theta)
    picture = jnp.full((128, 192, 3), 255, jnp.uint8)
    picture = jnp.where((jnp.abs(up) < 1)[..., None], jnp.uint8(0), picture)
    cart = (jnp.abs(right) < 12) & (jnp.abs(up) < 6)
    picture = jnp.where(cart[..., None], jnp.array([60, 60, 60], jnp.uint8), picture)
    pole = (along > 0) & (along < scale) & (jnp.abs(across) < 2.5)
    return jnp.where(pole[..., None], jnp.array([202, 152, 101], jnp.uint8), picture)


SUITE = registry.Suite(
    make=Gymnax,
    tasks=lambda: TASKS,
    config=GymnaxConfig,
    summary="classic control (CartPole-v1, ...), MinAtar (Breakout-MinAtar, ...), bsuite and puzzles, in JAX",
    package="gymnax",
    default_task="CartPole-v1",
)
