"""Sebulba as a runtime: `init` once, then `run` as often as wanted, as with Anakin; the actors live beside it."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from podracer import rng
from podracer.agent import Agent
from podracer.environment import Environment, Unsupported
from podracer.ops import columns
from podracer.plan import Plan
from podracer.runtimes.learner import AXIS, Learner, ReplicaDrift, drift, is_finite
from podracer.runtimes.sebulba.actor import ACTIVITIES, COUNTS, Unroll
from podracer.runtimes.sebulba.crew import Crew, example
from podracer.runtimes.sebulba.parameters import Parameters
from podracer.runtimes.sebulba.supervisor import ActorsFailed, Supervisor
from podracer.stores import ring
from podracer.stores.handover import Handover
from podracer.stores.reverb import ReverbError
from podracer.types import Array, Params, Struct, TrainState, Trajectory

_POLL_SECONDS = 0.2
_STOP_SECONDS = 5.0


class SebulbaState(Struct):
    """What the learner carries, all of it in a checkpoint. Environments start new episodes after a resume.

    train_state: replicated over learner devices. replay: ring, data `[B, length, ...]` sharded, or empty.
    env_index: `[B]` int32, columns of a trajectory. key: `[]`. num_updates: `[]` int32.
    """

    train_state: TrainState
    replay: Any
    env_index: Any
    key: Any
    num_updates: Any


class Sebulba:
    """The runtime."""

    resumes_exactly = False

    def __init__(self, agent: Agent, environment: Environment, plan: Plan, job: bytes = b"", folder: Path | None = None):
        """Compiles nothing and starts nothing yet.

        Args:
          agent, environment, plan: of the job.
          job: what actors that join from other processes are told.
          folder: of the run, for a replay that is not in the state.

        Raises:
          Unsupported: several seeds, for which Anakin is made.
        """
        assert plan.actors is not None
        if plan.num_seeds > 1:
            raise Unsupported("Sebulba trains one seed: use --seeds 1, or Anakin, which vmaps them")
        self.agent, self.environment, self.plan, self.actors = agent, environment, plan, plan.actors
        devices = jax.local_devices()
        self.actor_devices = devices[: self.actors.num_devices]
        learner_devices = devices[self.actors.first_learner :][: plan.num_devices]
        self.mesh = Mesh(np.array(learner_devices), (AXIS,), axis_types=(AxisType.Auto,))
        self.learner = Learner(agent, plan, plan.num_devices)
        self.job, self.folder = job, folder
        self.should_stop: Callable[[], bool] = lambda: False
        whole: Any = P()
        batch: Any = P(AXIS)
        over_time: Any = P(None, AXIS)
        self._external = self.actors.store == "reverb" and plan.replay_per_env > 0
        inside = plan.replay_per_env and not self._external
        replay = ring.Ring(data=batch, num_inserted=whole, priority=batch) if inside else whole
        self._specs = SebulbaState(train_state=whole, replay=replay, env_index=batch, key=whole, num_updates=whole)
        trajectory = Trajectory(timestep=over_time, actor_output=over_time, actor_state=batch)
        draws: Any = P(None, AXIS)  # [updates_per_unroll, columns, ...]
        update = jax.shard_map(
            self._update,
            mesh=self.mesh,
            in_specs=(self._specs, trajectory, draws),
            out_specs=(self._specs, P(), draws),
            check_vma=False,
        )
        check = jax.shard_map(
            lambda params: (is_finite(params), drift(params)), mesh=self.mesh, in_specs=P(), out_specs=P(), check_vma=False
        )
        self._program, self._check = jax.jit(update, donate_argnums=0), jax.jit(check)
        self._parameters = Parameters(self.actor_devices)
        self._handover: Any = Handover(self.actors.max_lag + 1)
        self._own_end: Any = None
        self._replay: Any = None
        self._supervisor: Supervisor | None = None
        self._num_stale = 0
        self._failure: ActorsFailed | None = None

    def init(self) -> SebulbaState:
        """The state before the first update; the train state is the one that Anakin begins with."""
        return jax.jit(self._init, out_shardings=self._shardings())(np.uint32(self.plan.seed))

    def run(self, state: SebulbaState, num_updates: int) -> tuple[SebulbaState, dict[str, np.ndarray]]:
        """Learns from the next `num_updates` unrolls, fewer if `should_stop()` comes to hold.

        Args:
          state: donated, gone afterwards.

        Returns:
          The state, and metrics `[1]` as of `Anakin.run`, and besides: `updates`, those that were made; `lag`, mean number
          of updates between acting and learning, `lag_max`, and `lag_histogram` `[max_lag + 1]`, shares of unrolls;
          `queue`, mean number of unrolls that waited; `stale`, unrolls discarded since the start as older than `max_lag`;
          `restarts` of this process's actors and `server_restarts` since then; `actors`, those whose unrolls came; `actor_*`,
          shares of an actor's time by `ACTIVITIES`; `learner_wait` and `learner_update`, shares of the learner's.

        Raises:
          ReplicaDrift: the parameters of two devices differ.
          ActorsFailed: actors fail too often, or deliver nothing.
        """
        first = int(state.num_updates)
        if self._supervisor is None:
            self._supervisor = self._start(state, first)
        if self._failure is not None:
            raise self._failure
        tally = _Tally()
        sums: Any = None
        for number in range(first, first + num_updates):
            try:
                unroll, ticket = self._next(number, tally)
                drawn = self._draw(tally) if unroll is not None and self._external else None
            except ActorsFailed as error:
                if number == first:
                    raise
                self._failure = error  # at the next call: the caller has to get the state of this one first
                break
            if unroll is None or (self._external and drawn is None):
                break
            state, metrics, priorities = self._program(state, unroll.trajectory, self._to_learner(drawn))
            sums = metrics if sums is None else jax.tree.map(jnp.add, sums, metrics)
            self._publish(number + 1, self.agent.actor_params(state.train_state))
            if drawn is not None and self.plan.priority_exponent:
                self._prioritize(unroll, drawn, *jax.device_get(priorities))
            jax.block_until_ready(state.num_updates)
            self._handover.cancel(ticket)  # learned from: no longer under way
            tally.add(unroll, number - unroll.version, len(self._handover))
        return state, self._metrics(state, sums, tally)

    def train_state(self, state: SebulbaState, seed_index: int = 0) -> TrainState:
        """The TrainState."""
        del seed_index
        return state.train_state

    def actor_params(self, state: SebulbaState, seed_index: int = 0) -> Params:
        """What actors will act with."""
        del seed_index
        return self.agent.actor_params(state.train_state)

    def checkpoint(self, state: SebulbaState) -> Any:
        """What a checkpoint must hold: everything but the environments. A replay outside is saved by now, in `folder`."""
        if self._replay is not None:
            self._handover.save()
        return state

    def restore(self, saved: Any) -> SebulbaState:
        """The state that continues from `checkpoint`."""
        return jax.device_put(saved, self._shardings())

    def memory(self) -> dict[str, int]:
        """Bytes on one learner device, by what they are for; see `Anakin.memory`. unrolls: those that wait for the learner."""
        state, unroll = jax.eval_shape(self.init), _num_bytes(self._example()[0]) / self.plan.num_devices
        return {
            "learner": _num_bytes(state.train_state),
            "replay": _num_bytes(state.replay) // self.plan.num_devices,
            "batch": round(unroll * (1 + self.plan.replay_per_env)),
            "unrolls": round(unroll * (self.actors.max_lag + 1)),
        }

    def close(self) -> None:
        """Ends the actors and their environments, and the server where there is one."""
        if self._supervisor is not None:
            self._supervisor.stop(_STOP_SECONDS)
        for end in (self._own_end, self._replay):
            if end is not None:
                end.close()
        self._handover.close()

    # The learner's side.

    def _init(self, seed: Array) -> SebulbaState:
        key = jax.random.key(seed)
        return SebulbaState(
            train_state=self.agent.init(rng.stream(key, "init")),
            replay=() if self._external else self.learner.init_replay(self._example()[0]),
            env_index=jnp.arange(self.plan.num_envs, dtype=jnp.int32),
            key=rng.stream(key, "run"),
            num_updates=jnp.int32(0),
        )

    def _example(self) -> tuple[Trajectory, Params]:
        return example(self.agent, self.environment, self.plan.num_envs, self.plan.unroll_length)

    def _update(self, state: SebulbaState, trajectory: Trajectory, drawn: Any) -> tuple[SebulbaState, dict[str, Array], Any]:
        key = jax.random.fold_in(state.key, state.num_updates)
        train_state, replay, metrics, priorities = self.learner.update(
            state.train_state, state.replay, trajectory, state.env_index, key, drawn
        )
        state = state.replace(train_state=train_state, replay=replay, num_updates=state.num_updates + 1)
        return state, jax.tree.map(lambda x: jax.lax.pmean(x, AXIS), metrics), priorities

    def _draw(self, tally: "_Tally") -> Any:
        """What the update learns from besides the online unroll, from a replay outside; None to stop."""
        started = time.monotonic()
        while not self.should_stop():
            try:
                self._handover.check()
                drawn = self._replay.get(_POLL_SECONDS)
            except ReverbError as error:
                raise ActorsFailed(f"replay cannot be read any more: {error}") from error
            if drawn is not None:
                tally.waited += time.monotonic() - started
                return drawn
            self._check_patience(time.monotonic() - started)
        return None

    def _to_learner(self, drawn: Any) -> Trajectory | None:
        """A draw on the learner devices."""
        if drawn is None:
            return None
        unrolls = drawn.unrolls.replace(importance=drawn.importance if self.plan.priority_exponent else ())
        return jax.device_put(unrolls, NamedSharding(self.mesh, P(None, AXIS)))

    def _prioritize(self, unroll: Unroll, drawn: Any, online: np.ndarray, replayed: np.ndarray) -> None:
        """Tells the replay outside the priorities `[updates_per_unroll, columns]` of online and of replayed columns."""
        for keys, priorities in zip(drawn.keys, replayed, strict=True):
            self._replay.prioritize(keys, priorities)
        self._replay.prioritize(list(unroll.replay_keys), online[-1])

    def _next(self, number: int, tally: "_Tally") -> tuple[Unroll | None, Any]:
        """The next unroll that is fresh enough for update `number`, and its ticket; None to stop."""
        assert self._supervisor is not None
        started = time.monotonic()
        while not self.should_stop():
            self._supervisor.check()
            try:
                found = self._handover.get(_POLL_SECONDS)
            except ReverbError as error:
                raise ActorsFailed(f"no unrolls arrive any more: {error}") from error
            if found is None:
                self._check_patience(time.monotonic() - started)
                continue
            ticket, unroll = found
            if number - unroll.version <= self.actors.max_lag:
                tally.waited += time.monotonic() - started
                return unroll, ticket
            self._handover.cancel(ticket)
            self._num_stale += 1
        return None, None

    def _check_patience(self, waited: float) -> None:
        assert self._supervisor is not None
        if waited > self.actors.patience:
            own = self._supervisor.waiting_for() or "there are none in this process, and none has joined or all have left"
            raise ActorsFailed(f"the learner waited {waited:.0f} s (sebulba.patience) for an unroll from actors: {own}")

    def _publish(self, number: int, params: Params) -> None:
        self._parameters.publish(number, params)
        if self.actors.store == "reverb":
            self._handover.publish(number, params, wait=self.actors.max_lag == 0)

    def _metrics(self, state: SebulbaState, sums: Any, tally: "_Tally") -> dict[str, np.ndarray]:
        num = len(tally.lags)
        finite, drifted = self._check(state.train_state.params)
        if bool(drifted):
            raise ReplicaDrift
        values: dict[str, Any] = {name: np.asarray(value) / num for name, value in (sums or {}).items()}
        values |= tally.values(self.actors.max_lag)
        values |= {"updates": num, "finite": np.asarray(finite), "stale": self._num_stale}
        values["restarts"] = self._supervisor.num_restarts if self._supervisor else 0
        values["server_restarts"] = self._handover.num_restarts if self.actors.store == "reverb" and self._supervisor else 0
        return {name: np.atleast_1d(np.asarray(value)) for name, value in values.items()}

    # The actors' side.

    def _start(self, state: SebulbaState, num_updates: int) -> Supervisor:
        """Starts the actors of this process, and before them the server where unrolls go through one."""
        params = self.agent.actor_params(state.train_state)
        self._parameters.publish(num_updates, params)
        plan, actors = self.plan, self.actors
        crew = Crew(
            agent=self.agent,
            environment=self.environment,
            num_envs=plan.num_envs,
            unroll_length=plan.unroll_length,
            seed=plan.seed,
            devices=self.actor_devices,
            threads=actors.threads,
            timeout=actors.timeout,
            max_restarts=actors.max_restarts,
        )
        handover: Any = self._handover
        deliver: Callable[[Trajectory], Any] = self._deliver
        if actors.store == "reverb":
            handover, deliver = self._open_exchange(num_updates, params), jax.device_get
        return crew.start(num_updates, lambda device, _: self._parameters.newest(device), handover, deliver)

    def _open_exchange(self, num_updates: int, params: Params) -> Any:
        """Starts the server and returns the end of it for this process's own actors."""
        from podracer.runtimes.sebulba import remote
        from podracer.stores import replay
        from podracer.stores.exchange import Exchange, Remote

        plan, (trajectory, _) = self.plan, self._example()
        one = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), jax.eval_shape(columns.batch_major, trajectory)
        )
        capacity = plan.replay_length * plan.num_envs
        host, _, port = self.actors.listen.rpartition(":")

        def receive(tree: Any) -> Unroll:
            online = tree["trajectory"]
            keys = () if self._replay is None else self._replay.insert(columns.batch_major(online))
            return remote.unpack(tree, self._deliver(online), keys)

        exchange = Exchange(
            unroll=remote.packed_example(trajectory),
            params=params,
            job=self.job,
            max_in_flight=self.actors.max_lag + 1,
            receive=receive,
            timeout=self.actors.timeout,
            host=host,
            port=int(port),
            replay=replay.table(one, capacity, plan.priority_exponent) if capacity else None,
            folder=self.folder / "reverb" if self.folder and capacity else None,
        )
        self._handover = exchange
        if capacity:
            self._replay = replay.Replay(exchange.client, one, plan.updates_per_unroll, plan.num_envs * plan.replay_per_env)
        exchange.start()
        exchange.publish(num_updates, params, wait=True)
        print(f"actors may join: podracer actor --connect {host}:{exchange.server.port}", flush=True)
        self._own_end = Remote(exchange.address)
        self._own_end.expect(remote.packed_example(trajectory), params)
        return remote.Outbox(self._own_end)

    def _deliver(self, trajectory: Trajectory) -> Trajectory:
        """Cuts a trajectory along its batch and moves each piece from the actor device to its learner device."""
        over_time, state = NamedSharding(self.mesh, P(None, AXIS)), NamedSharding(self.mesh, P(AXIS))
        return Trajectory(
            timestep=jax.device_put(trajectory.timestep, over_time),
            actor_output=jax.device_put(trajectory.actor_output, over_time),
            actor_state=jax.device_put(trajectory.actor_state, state),
        )

    def _shardings(self) -> SebulbaState:
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), self._specs, is_leaf=lambda leaf: isinstance(leaf, P))


class _Tally:
    """What one call of `run` adds up."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.waited = 0.0
        self.lags: list[int] = []
        self._actors: set[int] = set()
        self._queue: list[int] = []
        self._counts = dict.fromkeys(COUNTS, 0.0)
        self._seconds = dict.fromkeys(ACTIVITIES, 0.0)

    def add(self, unroll: Unroll, lag: int, queue: int) -> None:
        """Adds an unroll that was learned from."""
        self.lags.append(lag)
        self._actors.add(unroll.actor)
        self._queue.append(queue)
        _add(self._counts, unroll.counts)
        _add(self._seconds, unroll.seconds)

    def values(self, max_lag: int) -> dict[str, Any]:
        """The metrics of it."""
        values: dict[str, Any] = dict(self._counts)
        for name in ("episode_return", "episode_length"):
            values[name] = values[name] / values["episodes"] if values["episodes"] else np.nan
        acted = sum(self._seconds.values())
        for name, seconds in self._seconds.items():
            values[f"actor_{name}"] = seconds / acted if acted else np.nan
        elapsed = max(time.monotonic() - self.started, 1e-9)
        values |= {"learner_wait": self.waited / elapsed, "learner_update": 1 - self.waited / elapsed}
        values["actors"] = len(self._actors)
        values["lag"] = float(np.mean(self.lags)) if self.lags else np.nan
        values["lag_max"] = max(self.lags, default=0)
        values["lag_histogram"] = np.bincount(self.lags, minlength=max_lag + 1) / max(len(self.lags), 1)
        values["queue"] = float(np.mean(self._queue)) if self._queue else np.nan
        return values


def _add(into: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        into[name] += value


def _num_bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


__all__ = ["ActorsFailed", "Sebulba", "SebulbaState"]
