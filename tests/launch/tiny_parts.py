"""The smallest agent and environment that use everything a run has: recurrence, replay, random episode lengths, a picture."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer import registry, types
from podracer.agent import Agent, DataSpec
from podracer.config import Preset
from podracer.environment import HostEnvironment, JaxEnvironment, JaxHost, VectorEnvironment
from podracer.types import ActorOutput, Array, EnvironmentSpec, Key, Metrics, Mode, Params, TimeStep, TrainState, Trajectory


@dataclasses.dataclass(frozen=True)
class TinyConfig:
    """explode_after: updates after which the loss is nan; 0 never."""

    unroll_length: int = 4
    learning_rate: float = 0.05
    replay_share: float = 0.5
    replay_capacity: int = 256
    explode_after: int = 0


class TinyAgent(Agent[TinyConfig]):
    """A linear policy over the observation and a recurrent counter, learned by plain policy gradient."""

    Config = TinyConfig
    presets: ClassVar[Mapping[str, Preset]] = {
        "short": Preset(num_steps=640, overrides={"agent.unroll_length": 2, "anakin.num_envs": 8})
    }

    def __init__(self, spec: EnvironmentSpec, config: TinyConfig):
        super().__init__(spec, config)
        if config.unroll_length > 100:
            raise ValueError("unroll_length above 100 is too long for the tiny agent")

    def init(self, key: Key) -> TrainState:
        return self.train_state({"w": 0.1 * jax.random.normal(key, (3, 2)), "b": jnp.zeros((2,)), "none": jnp.zeros((0,))})

    def initial_actor_state(self, batch_size: int) -> Array:
        return jnp.zeros((batch_size, 1))

    def _logits(self, params: Params, observation: Array, memory: Array) -> Array:
        return jnp.concatenate([observation, 0.1 * memory], axis=-1) @ params["w"] + params["b"]

    def act(self, params: Params, actor_state: Array, timestep: TimeStep, key: Key, mode: Mode) -> tuple[ActorOutput, Array]:
        memory = jnp.where(timestep.first()[:, None], 0.0, actor_state + 1)
        logits = self._logits(params, timestep.observation, memory)
        action = jax.vmap(jax.random.categorical)(key, logits).astype(jnp.int32)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], axis=-1)[:, 0]
        return ActorOutput(action=action, log_prob=log_prob, logits=logits), memory

    def loss(self, params: Params, train_state: TrainState, trajectory: Trajectory, key: Key) -> tuple[Array, Metrics]:
        steps = jax.tree.map(lambda x: x[:-1], trajectory.timestep)
        memory = jnp.zeros((*steps.reward.shape, 1))
        log_probs = jax.nn.log_softmax(self._logits(params, steps.observation, memory))
        chosen = jnp.take_along_axis(log_probs, trajectory.actor_output.action[..., None], axis=-1)[..., 0]
        loss = -jnp.mean(chosen * trajectory.timestep.reward[1:])
        limit = self.config.explode_after
        bad = (train_state.num_updates >= limit) if limit else False
        return loss * jnp.where(bad, jnp.nan, 1.0), {"loss": loss}

    def data_spec(self) -> DataSpec:
        return DataSpec(self.config.unroll_length, self.config.replay_share, self.config.replay_capacity)


@dataclasses.dataclass(frozen=True)
class TinyEnvConfig:
    """longest: episodes take between 1 and `longest` steps; reward: of the right action; endless: never end."""

    longest: int = 5
    reward: float = 1.0
    endless: bool = False


class TinyState(NamedTuple):
    left: Array
    right_action: Array


class TinyEnv(JaxEnvironment):
    """One of two actions is right and shown; episodes have random lengths."""

    def __init__(self, config: TinyEnvConfig):
        self.config = config
        self.spec = EnvironmentSpec(
            name="tiny",
            observation=specs.Array((2,), np.float32),
            action=specs.DiscreteArray(2),
            frames_per_step=4,
        )

    def reset(self, key: Key) -> tuple[TinyState, TimeStep]:
        first, second = jax.random.split(key)
        left = jax.random.randint(first, (), 1, self.config.longest + 1)
        state = TinyState(left=left, right_action=jax.random.randint(second, (), 0, 2))
        return state, types.restart(jax.nn.one_hot(state.right_action, 2))

    def step(self, state: TinyState, action: Array, key: Key) -> tuple[TinyState, TimeStep]:
        reward = self.config.reward * (action == state.right_action)
        state = TinyState(left=state.left - 1, right_action=jax.random.randint(key, (), 0, 2))
        ended = (state.left <= 0) & (not self.config.endless)
        return state, types.transition(reward, jax.nn.one_hot(state.right_action, 2), terminated=ended)

    def render(self, state: TinyState) -> Array:
        return jnp.full((6, 4, 3), 255, jnp.uint8) * (state.right_action == 1)


class OutsideEnv(TinyEnv):
    """The same, but it says that its state lies outside XLA, as the ALE's does."""

    def vectorize(self, num_envs: int, seed: int = 0) -> VectorEnvironment:
        vector = super().vectorize(num_envs, seed)
        vector.pure = False
        return vector


class TinyGame(TinyEnv):
    """A game for two who move in turn; each is paid for its own right actions."""

    def __init__(self, config: TinyEnvConfig):
        super().__init__(config)
        self.spec = self.spec.replace(num_players=2)

    def step(self, state: TinyState, action: Array, key: Key) -> tuple[TinyState, TimeStep]:
        state, timestep = super().step(state, action, key)
        return state, timestep.replace(discount=-timestep.discount)


def always_right(timestep: TimeStep, key: Key) -> Array:
    """The opponent that makes no mistake in `TinyGame`."""
    del key
    return timestep.observation.argmax(axis=-1)


def not_an_action(timestep: TimeStep, key: Key) -> Array:
    del key
    return timestep.observation


class FailingHost(JaxHost):
    """Raises at its 100th step."""

    def recv(self, timeout: float) -> tuple[np.ndarray, TimeStep]:
        if self._count == 100:
            raise RuntimeError("the tiny emulator is gone")
        return super().recv(timeout)


class FailingEnv(TinyEnv):
    """The same on the host, for a while."""

    def host(self, num_envs: int, seed: int, first_env: int = 0) -> HostEnvironment:
        return FailingHost(self, num_envs, seed, first_env)


def _suite(environment: type[TinyEnv] = TinyEnv, **fields: Any) -> registry.Suite:
    return registry.Suite(
        make=lambda task, config: environment(config), tasks=lambda: ("",), config=TinyEnvConfig, summary="tiny", **fields
    )


SUITE = _suite()
OUTSIDE = _suite(OutsideEnv)
FAILING = _suite(FailingEnv)
GAME = _suite(TinyGame, opponents=lambda task: {"right": lambda: always_right})
MISSING = _suite(package="no_such_library", extra="nothing")

TINY = ("--agent", "tiny_parts:TinyAgent", "--env", "tiny_parts:SUITE", "--set", "anakin.num_envs=16")
"""The beginning of a command line."""
