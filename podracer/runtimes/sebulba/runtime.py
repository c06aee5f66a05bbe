"""Sebulba as a runtime: `init` once, then `run` as often as wanted, as with Anakin; the actors live beside it."""

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from podracer import hosts, rng
from podracer.agent import Agent
from podracer.environment import Environment, Unsupported
from podracer.ops import columns
from podracer.plan import Plan
from podracer.runtimes import layout
from podracer.runtimes.learner import AXIS, Learner, ReplicaDrift, drift, is_finite
from podracer.runtimes.sebulba.actor import Acting, Unroll
from podracer.runtimes.sebulba.crew import Crew, example
from podracer.runtimes.sebulba.hub import Hub
from podracer.runtimes.sebulba.parameters import Parameters
from podracer.runtimes.sebulba.supervisor import ActorsFailed, Supervisor
from podracer.runtimes.sebulba.tally import Tally
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

    def __init__(
        self,
        agent: Agent,
        environment: Environment,
        plan: Plan,
        job: bytes = b"",
        folder: Path | None = None,
        devices: Sequence[Any] | None = None,
    ):
        """Compiles nothing and starts nothing yet.

        Of several hosts each has actors and a server of its own, and gives an equal share of the columns of every update. They
        stop between calls of `run` alone, and one that fails ends: whoever started the others ends them too.

        Args:
          agent, environment, plan: of the job.
          job: what actors that join from other processes are told.
          folder: of the run, for a replay that is not in the state.
          devices: as of `Anakin`.

        Raises:
          Unsupported: several seeds, for which Anakin is made.
        """
        assert plan.actors is not None
        if plan.num_seeds > 1:
            raise Unsupported("Sebulba trains one seed: use --seeds 1, or Anakin, which vmaps them")
        self.agent, self.environment, self.plan, self.actors = agent, environment, plan, plan.actors
        self.host = hosts.Hosts(plan.num_hosts, jax.process_index())
        own = jax.local_devices() if devices is None else devices[: len(devices) // plan.num_hosts]
        first = self.actors.first_learner
        self.actor_devices = own[: self.actors.num_devices]
        learners = hosts.devices(plan.num_hosts, lambda own: own[first:][: plan.devices_per_host], devices)
        self.mesh = Mesh(np.array(learners), (AXIS,), axis_types=(AxisType.Auto,))
        self._own_mesh = Mesh(np.array(own[first:][: plan.devices_per_host]), (AXIS,), axis_types=(AxisType.Auto,))
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
        self._begin = jax.jit(self._init, out_shardings=self._shardings())
        self._example = functools.lru_cache(lambda num_envs=plan.envs_per_host: example(agent, environment, num_envs))
        self._parameters = Parameters(self.actor_devices)
        self._handover: Any = Handover(self.actors.max_lag + 1)
        self._hub: Hub | None = None
        self._supervisor: Supervisor | None = None
        self._num_stale = 0
        self._failure: ActorsFailed | None = None

    def init(self) -> SebulbaState:
        """The state before the first update; the train state is the one that Anakin begins with."""
        return self._begin(np.uint32(self.plan.seed))

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
        tally = Tally()
        sums: Any = None
        for number in range(first, first + num_updates):
            try:
                found = self._next(number, tally)
                if found is None:
                    break
                unroll, ticket, drawn = found
                state, metrics, priorities = self._program(state, unroll.trajectory, self._on_learner(drawn))
                sums = metrics if sums is None else jax.tree.map(jnp.add, sums, metrics)
                tally.add(unroll, number - unroll.version, len(self._handover))
                self._publish(number + 1, self.actor_params(state))
                if drawn is not None and self.plan.priority_exponent:
                    assert self._hub is not None
                    self._hub.prioritize(unroll, drawn, *hosts.own_columns(priorities, 1))
                jax.block_until_ready(state.num_updates)
                self._handover.cancel(ticket)  # learned from: no longer under way
            except (ActorsFailed, ReverbError) as error:
                failure = error if isinstance(error, ActorsFailed) else ActorsFailed(f"nothing arrives any more: {error}")
                if not tally.lags or self.plan.num_hosts > 1:
                    raise failure from error
                self._failure = failure  # at the next call: the caller has to get the state of this one first
                break
        return state, self._metrics(state, sums, tally)

    def trace(self) -> dict[str, jax.stages.Traced]:
        """The programs of the learner, `update`, and of one step of acting, `act`, traced for shapes alone, as of `Anakin`."""
        state, unroll = jax.eval_shape(self.init), self._example(self.plan.num_envs)[0]
        drawn = self._drawn(unroll) if self._external else None
        over_time: Any = NamedSharding(self.mesh, P(None, AXIS))
        batch: Any = NamedSharding(self.mesh, P(AXIS))
        sharded = Trajectory(timestep=over_time, actor_output=over_time, actor_state=batch)
        update = self._program.trace(
            layout.placed(state, self._shardings()),
            layout.placed(unroll, sharded),
            None if drawn is None else layout.placed(drawn, over_time),
        )
        acting, device = Acting(self.agent), SingleDeviceSharding(self.actor_devices[0])
        unroll, params = self._example()
        timestep = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), unroll.timestep)
        key = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), self.plan.envs_per_host))
        begun = jax.eval_shape(acting.begin, params, unroll.actor_state, timestep, key)
        number = jax.ShapeDtypeStruct((), jnp.int32)
        arguments = layout.placed((params, unroll.actor_state, begun, timestep, key, number), device)
        return {"update": update, "act": acting.step.trace(*arguments)}

    def train_state(self, state: SebulbaState, seed_index: int = 0) -> TrainState:
        """The TrainState."""
        del seed_index
        return hosts.local(state.train_state)

    def actor_params(self, state: SebulbaState, seed_index: int = 0) -> Params:
        """What actors will act with."""
        return self.agent.actor_params(self.train_state(state, seed_index))

    def checkpoint(self, state: SebulbaState) -> Any:
        """What a checkpoint must hold: everything but the environments. A replay outside is saved by now, in `folder`."""
        if self._hub is not None:
            self._hub.save()
        return state

    def restore(self, saved: Any) -> SebulbaState:
        """The state that continues from `checkpoint`."""
        return hosts.place(saved, self._shardings())

    def memory(self) -> dict[str, int]:
        """Bytes on one learner device, by what they are for; see `Anakin.memory`. unrolls: those that wait for the learner."""
        state = layout.placed(jax.eval_shape(self.init), self._shardings())
        unroll = layout.num_bytes(self._example()[0]) / self.plan.devices_per_host
        return {
            "learner": layout.num_bytes(state.train_state),
            "replay": layout.num_bytes(state.replay),
            "batch": round(unroll * (1 + self.plan.replay_per_env)),
            "unrolls": round(unroll * (self.actors.max_lag + 1)),
        }

    def close(self) -> None:
        """Ends the actors and their environments, and the server where there is one."""
        if self._supervisor is not None:
            self._supervisor.stop(_STOP_SECONDS)
        if self._hub is not None:
            self._hub.close()
        self._handover.close()

    # The learner's side.

    def _init(self, seed: Array) -> SebulbaState:
        key = jax.random.key(seed)
        return SebulbaState(
            train_state=self.agent.init(rng.stream(key, "init")),
            replay=() if self._external else self.learner.init_replay(self._example(self.plan.num_envs)[0]),
            env_index=jnp.arange(self.plan.num_envs, dtype=jnp.int32),
            key=rng.stream(key, "run"),
            num_updates=jnp.int32(0),
        )

    def _drawn(self, unroll: Trajectory) -> Trajectory:
        """Shapes of what comes from a replay outside for an update on `unroll`."""
        rows, num = self.plan.updates_per_unroll, self.plan.num_envs * self.plan.replay_per_env
        stored = jax.eval_shape(columns.batch_major, unroll)
        drawn = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, num, *x.shape[1:]), x.dtype), stored)
        importance = jax.ShapeDtypeStruct((rows, num), jnp.float32) if self.plan.priority_exponent else ()
        return drawn.replace(importance=importance)

    def _update(self, state: SebulbaState, trajectory: Trajectory, drawn: Any) -> tuple[SebulbaState, dict[str, Array], Any]:
        key = jax.random.fold_in(state.key, state.num_updates)
        train_state, replay, metrics, priorities = self.learner.update(
            state.train_state, state.replay, trajectory, state.env_index, key, drawn
        )
        state = state.replace(train_state=train_state, replay=replay, num_updates=state.num_updates + 1)
        return state, jax.tree.map(lambda x: jax.lax.pmean(x, AXIS), metrics), priorities

    def _next(self, number: int, tally: Tally) -> tuple[Unroll, Any, Any] | None:
        """What update `number` learns from: an unroll that is fresh enough, its ticket, and a draw from a replay outside.

        None to stop.
        """
        started = time.monotonic()
        unroll: Unroll | None = None
        ticket: Any = None
        while not self.should_stop():
            assert self._supervisor is not None
            self._supervisor.check()
            if time.monotonic() - started > self.actors.patience:
                raise ActorsFailed(self._impatience(time.monotonic() - started))
            if unroll is None:
                found = self._handover.get(_POLL_SECONDS)
                if found is None:
                    continue
                ticket, unroll = found
                if number - unroll.version > self.actors.max_lag:
                    self._handover.cancel(ticket)
                    self._num_stale += 1
                    unroll = None
                    continue
            drawn = self._hub.draw(_POLL_SECONDS) if self._hub is not None and self._external else None
            if drawn is not None or not self._external:
                tally.waited += time.monotonic() - started
                return unroll, ticket, drawn
        return None

    def _impatience(self, waited: float) -> str:
        assert self._supervisor is not None
        own = self._supervisor.waiting_for() or "there are none in this process, and none has joined or all have left"
        return f"the learner waited {waited:.0f} s (sebulba.patience) for an unroll from actors: {own}"

    def _on_learner(self, drawn: Any) -> Trajectory | None:
        if drawn is None or self._hub is None:
            return None
        return self._to_learner(self._hub.unrolls(drawn), 1)

    def _publish(self, number: int, params: Params) -> None:
        self._parameters.publish(number, params)
        if self._hub is not None:
            self._hub.exchange.publish(number, params, wait=self.actors.max_lag == 0)

    def _metrics(self, state: SebulbaState, sums: Any, tally: Tally) -> dict[str, np.ndarray]:
        num = len(tally.lags)
        finite, drifted = self._check(state.train_state.params)
        if bool(drifted):
            raise ReplicaDrift
        values: dict[str, Any] = {name: np.asarray(value) / num for name, value in (sums or {}).items()}
        values |= tally.values(self.actors.max_lag, self.host)
        restarts = self._supervisor.num_restarts if self._supervisor else 0
        of_server = self._hub.exchange.num_restarts if self._hub else 0
        faults = self.host.sum([self._num_stale, restarts, of_server])
        values |= dict(zip(("stale", "restarts", "server_restarts"), faults, strict=True))
        values |= {"updates": num, "finite": np.asarray(finite)}
        return {name: np.atleast_1d(np.asarray(value)) for name, value in values.items()}

    # The actors' side.

    def _start(self, state: SebulbaState, num_updates: int) -> Supervisor:
        """Starts the actors of this process, and before them the server where unrolls go through one."""
        params = self.actor_params(state)
        self._parameters.publish(num_updates, params)
        plan, actors = self.plan, self.actors
        crew = Crew(
            agent=self.agent,
            environment=self.environment,
            num_envs=plan.envs_per_host,
            seed=plan.seed,
            devices=self.actor_devices,
            threads=actors.threads,
            timeout=actors.timeout,
            max_restarts=actors.max_restarts,
            first_number=self.host.index * actors.num_devices * actors.threads,
        )
        handover: Any = self._handover
        deliver: Callable[[Trajectory], Any] = self._deliver
        if actors.store == "reverb":
            self._hub = Hub(plan, *self._example(), self.job, self._replay_folder(), self._deliver)
            self._handover, handover, deliver = self._hub.exchange, self._hub.outbox, jax.device_get
            self._hub.exchange.publish(num_updates, params, wait=True)
            print(f"actors may join: podracer actor --connect {self._hub.joining}", flush=True)
        return crew.start(num_updates, lambda device, _: self._parameters.newest(device), handover, deliver)

    def _deliver(self, trajectory: Trajectory) -> Trajectory:
        """Cuts a trajectory along its batch and moves each piece from the actor device to its learner device."""
        return Trajectory(
            timestep=self._to_learner(trajectory.timestep, 1),
            actor_output=self._to_learner(trajectory.actor_output, 1),
            actor_state=self._to_learner(trajectory.actor_state, 0),
        )

    def _to_learner(self, tree: Any, axis: int) -> Any:
        spec = P(*(None,) * axis, AXIS)
        return hosts.join_columns(tree, axis, NamedSharding(self._own_mesh, spec), NamedSharding(self.mesh, spec))

    def _replay_folder(self) -> Path | None:
        return self.folder and self.folder / (f"reverb-{self.host.index}" if self.host.index else "reverb")

    def _shardings(self) -> SebulbaState:
        return layout.shardings(self.mesh, self._specs)


__all__ = ["ActorsFailed", "Sebulba", "SebulbaState"]
