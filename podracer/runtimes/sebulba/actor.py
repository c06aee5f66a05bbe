"""One actor: its environments on the host, and unrolls that grow on its device."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from podracer import rng
from podracer.agent import Agent
from podracer.environment import HostEnvironment
from podracer.ops import overlap
from podracer.processes import check_finite
from podracer.runtimes.sebulba.parameters import Version
from podracer.types import ActorState, Array, Key, Mode, Params, TimeStep, Trajectory


@dataclasses.dataclass(frozen=True)
class Unroll:
    """What an actor hands over.

    trajectory: `[O+T+1, B, ...]`; on the learner devices, sharded over `B`, or on its way there.
    version: of the parameters that acted. actor: its number.
    counts: by `COUNTS`; `episode_return` and `episode_length` are sums over episodes that ended.
    seconds: where the actor's time went, by `ACTIVITIES`.
    replay_keys: of its columns in a replay outside the learner's devices.
    """

    trajectory: Trajectory
    version: int
    actor: int
    counts: dict[str, float]
    seconds: dict[str, float]
    replay_keys: Sequence[int] = ()


ACTIVITIES = ("environment", "inference", "transfer", "queue")
COUNTS = ("agent_steps", "episodes", "episode_return", "episode_length")


class Acting:
    """The programs of acting, compiled once for all actors of a device."""

    def __init__(self, agent: Agent):
        data = agent.data_spec()
        self.agent, self.unroll_length, self.overlap = agent, data.unroll_length, data.overlap
        self.begin = jax.jit(self._begin)
        self.step = jax.jit(self._step, donate_argnums=2)
        self.finish = jax.jit(self._finish, donate_argnums=0)
        self.nothing = jax.jit(lambda unroll: overlap.nothing(unroll, self.overlap))
        self.extend = jax.jit(self._extend)

    def _begin(self, params: Params, actor_state: ActorState, timestep: TimeStep, key: Key) -> Trajectory:
        """An unroll of zeros that begins in `actor_state`. `timestep` `[B]` and `key` `[B]` give shapes alone."""
        output = jax.eval_shape(lambda: self.agent.act(params, actor_state, timestep.unlabelled(), key, Mode.TRAIN)[0])
        length = self.unroll_length
        return Trajectory(
            timestep=jax.tree.map(lambda x: jnp.zeros((length + 1, *x.shape), x.dtype), timestep),
            actor_output=jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), output),
            actor_state=jax.tree.map(jnp.copy, actor_state),
        )

    def _step(
        self, params: Params, actor_state: ActorState, unroll: Trajectory, timestep: TimeStep, key: Key, t: Array
    ) -> tuple[Array, ActorState, Trajectory]:
        """Acts at `timestep` `[B]`, step `t` of the unroll; `key` `[B]` is of the unroll."""
        output, actor_state = self.agent.act(params, actor_state, timestep.unlabelled(), rng.at(key, t), Mode.TRAIN)
        unroll = unroll.replace(
            timestep=_write(unroll.timestep, timestep, t), actor_output=_write(unroll.actor_output, output, t)
        )
        return output.action, actor_state, unroll

    def _finish(self, unroll: Trajectory, timestep: TimeStep, version: Array) -> Trajectory:
        """Adds the last time step, which is the first of the next unroll."""
        versions = jnp.full((self.unroll_length, *timestep.reward.shape), version)
        return unroll.replace(
            timestep=_write(unroll.timestep, timestep, self.unroll_length),
            actor_output=unroll.actor_output.replace(version=versions),
        )

    def _extend(self, before: Trajectory, unroll: Trajectory, late_state: ActorState) -> tuple[Trajectory, Trajectory]:
        """The unroll with what came before, and its own end, which began in `late_state`, for the next one."""
        # A copy: the actor may hold the same buffer, and what is handed over is given away.
        late_state = jax.tree.map(jnp.copy, late_state)
        return overlap.join(before, unroll), overlap.end(unroll, self.overlap, late_state)


def _write(buffer: Any, value: Any, t: Any) -> Any:
    return jax.tree.map(lambda xs, x: xs.at[t].set(x), buffer, value)


class Actor:
    """Collects one unroll after the other. Belongs to one thread."""

    def __init__(
        self,
        acting: Acting,
        environment: HostEnvironment,
        device: Any,
        number: int,
        keys: Callable[[int], Key],
        first_unroll: int,
        deliver: Callable[[Trajectory], Trajectory],
        timeout: float,
    ):
        """Args:
        acting: programs. environment: this actor's own. device: to act on. number: of this actor.
        keys: from the number of an unroll to keys `[B]` of its actions. first_unroll: the number of the first.
        deliver: moves a trajectory to the learner devices.
        timeout: seconds that a step of the environments may take.
        """
        self._acting, self.environment, self._device, self._number = acting, environment, device, number
        self._keys, self._deliver, self._timeout = keys, deliver, timeout
        self._num_unrolls = first_unroll
        self._totals = _Totals(environment.num_envs)
        self.doing, self.since = "environment", time.monotonic()
        self._seconds = dict.fromkeys(ACTIVITIES, 0.0)
        self._timestep = environment.reset(timeout)
        self._actor_state = jax.device_put(acting.agent.initial_actor_state(environment.num_envs), device)
        self._before: Trajectory | None = None

    def note(self, activity: str) -> None:
        """What this actor does from now on; the time so far counts for what it did."""
        now = time.monotonic()
        self._seconds[self.doing] += now - self.since
        self.doing, self.since = activity, now

    def unroll(self, version: Version) -> Unroll:
        """One unroll with the given parameters.

        Raises:
          TimeoutError, EnvironmentFailed: as the environment says.
        """
        self.note("inference")
        key = jax.device_put(self._keys(self._num_unrolls), self._device)
        # Time steps go to the device as arguments of the programs: for small ones a `device_put` costs more than acting does.
        trajectory = self._acting.begin(version.params, self._actor_state, self._timestep, key)
        late_state: ActorState = ()
        for t in range(self._acting.unroll_length):
            if self._acting.overlap and t == self._acting.unroll_length - self._acting.overlap:
                late_state = self._actor_state
            action, self._actor_state, trajectory = self._acting.step(
                version.params, self._actor_state, trajectory, self._timestep, key, np.int32(t)
            )
            action = np.asarray(action)
            self.note("environment")
            self._timestep = self.environment.step(action, self._timeout)
            check_finite(self.environment.spec.name, self._timestep, np.arange(self.environment.num_envs))
            self._totals.add(self._timestep)
            self.note("inference")
        self.note("transfer")
        trajectory = self._acting.finish(trajectory, self._timestep, np.int32(version.number))
        if self._acting.overlap:
            before = self._acting.nothing(trajectory) if self._before is None else self._before
            trajectory, self._before = self._acting.extend(before, trajectory, late_state)
        delivered = self._deliver(trajectory)
        jax.block_until_ready(delivered)
        self.note("queue")
        self._num_unrolls += 1
        seconds, self._seconds = self._seconds, dict.fromkeys(ACTIVITIES, 0.0)
        return Unroll(delivered, version.number, self._number, self._totals.take(), seconds)


class _Totals:
    """Counts of steps and episodes, exact over the borders of unrolls."""

    def __init__(self, num_envs: int):
        self._return, self._length = np.zeros(num_envs, np.float64), np.zeros(num_envs, np.int64)
        self._counts = self._none()

    @staticmethod
    def _none() -> dict[str, float]:
        return dict.fromkeys(COUNTS, 0)

    def add(self, timestep: TimeStep) -> None:
        """Adds an arrival `[B]`."""
        real, last = ~np.asarray(timestep.first()), np.asarray(timestep.last())
        self._return += timestep.reward
        self._length += real
        self._counts["agent_steps"] += int(real.sum())
        self._counts["episodes"] += int(last.sum())
        self._counts["episode_return"] += float(self._return[last].sum())
        self._counts["episode_length"] += int(self._length[last].sum())
        self._return[last], self._length[last] = 0.0, 0

    def take(self) -> dict[str, float]:
        """What came together since the last call."""
        counts, self._counts = self._counts, self._none()
        return counts
