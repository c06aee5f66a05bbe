"""Evaluation: the mean over a fixed quota of episodes of each environment.

Taking the first N episodes that end, over all environments, would favour short ones. Here every environment plays its own
share to the end, so no episode is chosen by its length.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from podracer import rng
from podracer.environment import Environment, HostEnvironment, Unsupported, VectorEnvironment
from podracer.metrics.pictures import beside
from podracer.types import ActorOutput, ActorState, Array, Key, Mode, Params, TimeStep

_SECONDS_PER_CALL = 1.0
_MAX_FRAMES = 6000
_HOST_TIMEOUT = 60.0
_FIRST_ENV = 2**20
"""Number of the first environment on the host: far from those of training, whose randomness it must not share."""


class Actor(Protocol):
    """What plays: an `Agent`, of which evaluation needs no more than this, or a pair of players."""

    def initial_actor_state(self, batch_size: int) -> ActorState:
        """As `Agent.initial_actor_state`."""

    def act(
        self, params: Params, actor_state: ActorState, timestep: TimeStep, key: Key, mode: Mode
    ) -> tuple[ActorOutput, ActorState]:
        """As `Agent.act`."""


@dataclasses.dataclass(frozen=True)
class EpisodeStats:
    """returns: `[N]` float64, undiscounted; of the player who moves first where there are two. lengths: `[N]` int64, agent
    steps. frames: `[F, H, W, 3]` uint8 of one of these episodes, or None where nothing was recorded or there is no picture.
    """

    returns: np.ndarray
    lengths: np.ndarray
    frames: np.ndarray | None = None


class _Carry(NamedTuple):
    """total, sign, length, count: `[B]`, of the running episode; returns, lengths: `[B, quota]` of those that ended."""

    env_state: Any
    timestep: TimeStep
    actor_state: Any
    t: Any
    total: Any
    sign: Any
    length: Any
    count: Any
    returns: Any
    lengths: Any


class Evaluator:
    """Plays episodes; compiled once, for any number of parameters."""

    def __init__(
        self,
        agent: Actor,
        environment: Environment,
        num_episodes: int,
        *,
        seed: int = 0,
        mode: Mode = Mode.EVALUATE,
        num_envs: int = 32,
        max_episode_steps: int = 50_000,
    ):
        """Args:
          agent, environment: what plays, and where.
          num_episodes: `N`.
          seed: of all randomness; keys derive from it, the number of the environment and the step.
          mode: how the agent acts.
          num_envs: environments that play side by side; fewer where there are fewer episodes.
          max_episode_steps: an episode that takes more agent steps is an error.

        Raises:
          ValueError: no episodes or no environments.
        """
        if num_episodes < 1 or num_envs < 1:
            raise ValueError(f"evaluation needs at least one episode and one environment, not {num_episodes} and {num_envs}")
        self.agent, self.name, self.mode = agent, environment.spec.name, mode
        self.num_envs = min(num_envs, num_episodes)
        self.max_episode_steps = max_episode_steps
        self.quota = np.full(self.num_envs, num_episodes // self.num_envs)
        self.quota[: num_episodes % self.num_envs] += 1
        self.environment = _open(environment, self.num_envs, seed)
        self._picture_jit = jax.jit(getattr(agent, "picture", lambda *_: None))
        key = rng.stream(jax.random.key(seed), "evaluate")
        index = jnp.arange(self.num_envs)
        self._keys = {name: rng.columns(rng.stream(key, name), index) for name in ("reset", "act", "environment")}
        if isinstance(self.environment, HostEnvironment):
            self._advance: Callable[[Params, _Carry, int], _Carry] = self._advance_on_host
            self._act_jit, self._count_jit = jax.jit(self._act), jax.jit(self._count)
        else:
            self._advance = jax.jit(self._advance_many)

    def run(
        self, params: Params, *, record: bool = False, on_progress: Callable[[int, int], None] | None = None
    ) -> EpisodeStats:
        """Plays the quota.

        Args:
          params: what `Agent.actor_params` returned.
          record: also keep pictures of the first episode of the first environment.
          on_progress: called about every second with the episodes that ended so far and their total.

        Raises:
          Unsupported: an episode that does not end.
        """
        carry = self._start(*self._reset())
        frames: list[np.ndarray] = []
        if record:
            carry = self._record(params, carry, frames)
        total, calls, count = int(self.quota.sum()), 1, np.asarray(carry.count)
        while np.any(count < self.quota):
            started = time.perf_counter()
            carry = self._advance(params, carry, calls)
            count = np.asarray(carry.count)
            seconds = time.perf_counter() - started
            calls = int(np.clip(calls * _SECONDS_PER_CALL / max(seconds, 1e-6), 1, 8 * calls))
            self._check_length(carry)
            if on_progress is not None:
                on_progress(int(np.minimum(count, self.quota).sum()), total)
        mine = np.arange(self.quota.max()) < self.quota[:, None]
        return EpisodeStats(
            returns=np.asarray(carry.returns, np.float64)[mine],
            lengths=np.asarray(carry.lengths, np.int64)[mine],
            frames=np.stack(frames) if frames else None,
        )

    def close(self) -> None:
        """Releases environments that live outside XLA."""
        self.environment.close()

    def _reset(self) -> tuple[Any, TimeStep]:
        environment = self.environment
        if isinstance(environment, HostEnvironment):
            return (), jax.device_put(environment.reset(_HOST_TIMEOUT))
        return (jax.jit(environment.reset) if environment.pure else environment.reset)(self._keys["reset"])

    def _start(self, env_state: Any, timestep: TimeStep) -> _Carry:
        size, longest = self.num_envs, int(self.quota.max())
        return _Carry(
            env_state=env_state,
            timestep=timestep,
            actor_state=self.agent.initial_actor_state(size),
            t=jnp.int32(0),
            total=jnp.zeros((size,), jnp.float32),
            sign=jnp.ones((size,), jnp.float32),
            length=jnp.zeros((size,), jnp.int32),
            count=jnp.zeros((size,), jnp.int32),
            returns=jnp.zeros((size, longest), jnp.float32),
            lengths=jnp.zeros((size, longest), jnp.int32),
        )

    def _advance_many(self, params: Params, carry: _Carry, num_steps: Array) -> _Carry:
        """`num_steps` steps of all environments, or fewer where the quota is full before."""
        stop = carry.t + num_steps
        quota = jnp.asarray(self.quota)

        def unfinished(c: _Carry) -> Array:
            return (c.t < stop) & jnp.any(c.count < quota)

        return jax.lax.while_loop(unfinished, lambda c: self._step(params, c), carry)

    def _step(self, params: Params, carry: _Carry) -> _Carry:
        assert isinstance(self.environment, VectorEnvironment)
        action, actor_state = self._act(params, carry)
        env_key = rng.at(self._keys["environment"], carry.t)
        env_state, timestep = self.environment.step(carry.env_state, action, env_key)
        return self._count(carry, env_state, timestep, actor_state)

    def _advance_on_host(self, params: Params, carry: _Carry, num_steps: int) -> _Carry:
        """As `_advance_many`, from Python."""
        assert isinstance(self.environment, HostEnvironment)
        for _ in range(num_steps):
            if np.all(np.asarray(carry.count) >= self.quota):
                break
            action, actor_state = self._act_jit(params, carry)
            timestep = self.environment.step(np.asarray(action), _HOST_TIMEOUT)
            carry = self._count_jit(carry, (), jax.device_put(timestep), actor_state)
        return carry

    def _act(self, params: Params, carry: _Carry) -> tuple[Any, Any]:
        key = rng.at(self._keys["act"], carry.t)
        output, actor_state = self.agent.act(params, carry.actor_state, carry.timestep.unlabelled(), key, self.mode)
        return output.action, actor_state

    def _count(self, carry: _Carry, env_state: Any, timestep: TimeStep, actor_state: Any) -> _Carry:
        """Adds an arrival to the running totals, and what ended with it to the results."""
        first = timestep.first()
        total = jnp.where(first, 0.0, carry.total + carry.sign * timestep.reward)
        length = jnp.where(first, 0, carry.length + 1)
        sign = whose_turn(carry.sign, timestep)  # later rewards of the second player count against the first
        quota, rows = jnp.asarray(self.quota), jnp.arange(self.num_envs)
        ended = timestep.last() & (carry.count < quota)
        slot = jnp.where(ended, carry.count, quota.max())  # out of range: dropped
        return _Carry(
            env_state=env_state,
            timestep=timestep,
            actor_state=actor_state,
            t=carry.t + 1,
            total=total,
            sign=sign,
            length=length,
            count=carry.count + ended,
            returns=carry.returns.at[rows, slot].set(total, mode="drop"),
            lengths=carry.lengths.at[rows, slot].set(length, mode="drop"),
        )

    def _record(self, params: Params, carry: _Carry, frames: list[np.ndarray]) -> _Carry:
        """Plays step by step until the first environment's first episode ends, and keeps its pictures in `frames`."""
        while int(carry.count[0]) == 0 and len(frames) < _MAX_FRAMES:
            picture = self._picture(params, carry)
            if picture is None:
                return carry
            frames.append(picture)
            carry = self._advance(params, carry, 1)
            self._check_length(carry)
        picture = self._picture(params, carry)
        if picture is not None:
            frames.append(picture)
        return carry

    def _picture(self, params: Params, carry: _Carry) -> np.ndarray | None:
        """Of the first environment, and beside it what the agent makes of it."""
        picture = _picture(self.environment, carry)
        own = None if picture is None else self._picture_jit(params, carry.actor_state, carry.timestep)
        return picture if picture is None or own is None else beside(picture, np.asarray(own[0]))

    def _check_length(self, carry: _Carry) -> None:
        unfinished = np.asarray(carry.count) < self.quota
        longest = int(np.asarray(carry.length)[unfinished].max(initial=0))
        if longest > self.max_episode_steps:
            raise Unsupported(
                f"an evaluation episode of {self.name} did not end within {self.max_episode_steps:,} steps: "
                "give the environment a time limit"
            )


def evaluate(
    agent: Actor,
    environment: Environment,
    params: Params,
    num_episodes: int,
    seed: int = 0,
    mode: Mode = Mode.EVALUATE,
    num_envs: int = 32,
    record: bool = False,
) -> EpisodeStats:
    """Plays `num_episodes` episodes once. See `Evaluator`, which this makes, runs and closes."""
    evaluator = Evaluator(agent, environment, num_episodes, seed=seed, mode=mode, num_envs=num_envs)
    try:
        return evaluator.run(params, record=record)
    finally:
        evaluator.close()


def whose_turn(sign: Array, timestep: TimeStep) -> Array:
    """Who is to move at a time step `[B]`: 1 the player who began the episode, -1 the other, `[B]` float32.

    A negative discount hands the turn over; counting plies would be wrong, since a player may move twice in a row.

    Args:
      sign: `[B]`, of the time step before; any value where `timestep` is FIRST.
    """
    return jnp.where(timestep.first(), 1.0, sign * jnp.where(timestep.discount < 0, -1.0, 1.0))


def _open(environment: Environment, num_envs: int, seed: int) -> VectorEnvironment | HostEnvironment:
    """Inside the program where that can be, else on the host."""
    try:
        return environment.vectorize(num_envs, seed)
    except Unsupported as error:
        try:
            return environment.host(num_envs, seed, _FIRST_ENV)
        except Unsupported:
            raise error from None


def _picture(environment: VectorEnvironment | HostEnvironment, carry: _Carry) -> np.ndarray | None:
    """The first environment as `[H, W, 3]` uint8: its own rendering, else what the agent sees, if that is an image."""
    picture = environment.render() if isinstance(environment, HostEnvironment) else environment.render(carry.env_state)
    if picture is not None:
        return np.asarray(picture, np.uint8)
    for leaf in jax.tree.leaves(carry.timestep.observation):
        if leaf.ndim == 4 and leaf.dtype == jnp.uint8:
            image = np.asarray(leaf[0])
            return image if image.shape[-1] == 3 else np.repeat(image[..., -1:], 3, axis=-1)
    return None
