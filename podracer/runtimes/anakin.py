"""Anakin: environment, acting and learning in one XLA program, replicated over the devices of a mesh.

Hessel et al. 2021, section 2. One call of the program runs many updates; an update scans `T` steps of the environments of
this device, forms the learning batch (with this device's replay), and applies `Agent.update`, whose gradient mean is the
only thing that crosses devices. Environments are numbered globally and keys derive from those numbers, so the same
configuration gives the same result, up to the rounding of one all-reduce, on any number of devices.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from podracer import hosts, rng
from podracer.agent import Agent
from podracer.environment import Environment, Unsupported, environment_keys
from podracer.ops import columns, overlap
from podracer.plan import Plan
from podracer.runtimes import layout
from podracer.runtimes.learner import AXIS, Learner, ReplicaDrift, drift, is_finite
from podracer.stores import ring
from podracer.types import ActorState, Array, Key, Mode, Params, Struct, TimeStep, TrainState, Trajectory

_COUNTS = ("agent_steps", "episodes", "episode_return", "episode_length")


class EpisodeTotals(Struct):
    """Of the running episode of each environment: return `[B]` float32 and length `[B]` int32."""

    episode_return: Any
    episode_length: Any


class AnakinState(Struct):
    """All that the program carries; with `--seeds` every leaf has a leading axis of seeds.

    train_state: replicated. env_state, timestep, actor_state, episode: `[B, ...]`, sharded over devices.
    before: the end of the last unroll where unrolls overlap, batch-major and sharded, or empty.
    replay: ring, data `[B, length, ...]` sharded, or empty. env_index: `[B]` int32, global numbers of the environments.
    env_key: `[B]`, from which those of their steps derive.
    key: `[]`, the root of all randomness after the start. num_updates: `[]` int32, each of `plan.minibatches` gradient steps.
    """

    train_state: TrainState
    env_state: Any
    timestep: TimeStep
    actor_state: ActorState
    episode: EpisodeTotals
    before: Any
    replay: Any
    env_index: Any
    env_key: Any
    key: Any
    num_updates: Any


class Anakin:
    """The runtime. `init` once, then `run` as often as wanted; the state is the caller's to save."""

    def __init__(self, agent: Agent, environment: Environment, plan: Plan, devices: Sequence[Any] | None = None):
        """Compiles nothing yet.

        Args:
          agent, environment, plan: of the job.
          devices: of all hosts, host by host; those of a topology that is not here will do for `trace`. The default is those
            that are here.

        Raises:
          Unsupported: an environment outside XLA with several devices or seeds.
        """
        self.agent, self.plan = agent, plan
        self.learner = Learner(agent, plan, plan.num_devices)
        self.environment = environment.vectorize(plan.num_envs, plan.seed)
        if not self.environment.pure and (plan.num_devices > 1 or plan.num_seeds > 1):
            self.environment.close()
            raise Unsupported(
                f"{environment.spec.name} lives outside XLA: in Anakin it takes --devices 1 and --seeds 1; use Sebulba for more"
            )
        chosen = hosts.devices(plan.num_hosts, lambda own: own[: plan.devices_per_host], devices)
        self.mesh = Mesh(np.array(chosen), (AXIS,), axis_types=(AxisType.Auto,))
        self._specs = self._partition_specs()
        # Jitted so that they are traced once, however often shapes are asked for; inlined, they leave no trace in the program.
        self._collect_once, self._update_once = jax.jit(self._collect, inline=True), jax.jit(self._update, inline=True)
        # check_vma=False: agents scan from constants, which the checker refuses; drift is checked at run time instead.
        sharded = jax.shard_map(
            self._run, mesh=self.mesh, in_specs=(self._specs, P()), out_specs=(self._specs, P()), check_vma=False
        )
        self._program = jax.jit(sharded, donate_argnums=0)
        begin = jax.vmap(self._init_seed) if plan.num_seeds > 1 else lambda seeds: self._init_seed(seeds[0])
        self._begin = jax.jit(begin, out_shardings=self._shardings())

    @property
    def resumes_exactly(self) -> bool:
        """Whether a checkpoint holds the environments too, so that a resumed run is the same run bit for bit."""
        return self.environment.pure

    def init(self) -> AnakinState:
        """The state before the first update. Seed `i` of a population starts as a single run of seed `seed + i` does."""
        seeds = self.plan.seed + np.arange(self.plan.num_seeds, dtype=np.uint32)
        if self.environment.pure:
            return self._begin(seeds)
        key = jax.random.key(seeds[0])
        start = self.environment.reset(environment_keys(key, jnp.arange(self.plan.num_envs))[0])
        return jax.device_put(jax.jit(self._init)(key, start), self._shardings())

    def run(self, state: AnakinState, num_updates: int) -> tuple[AnakinState, dict[str, np.ndarray]]:
        """Runs updates in one call of the program; another `num_updates` does not compile again.

        Args:
          state: donated, gone afterwards.
          num_updates: at least 1; `num_updates * steps_per_update` must stay below 2**31.

        Returns:
          The state, and metrics `[num_seeds]` on the host: counts of `agent_steps` and `episodes` in this call, means of
          `episode_return` and `episode_length` over the episodes that ended in it (nan where none did), whether all
          parameters are `finite`, and means over updates of what the agent's loss reports.

        Raises:
          ReplicaDrift: the parameters of two devices differ.
        """
        if not 1 <= num_updates <= (2**31 - 1) // self.plan.steps_per_update:
            raise ValueError(f"num_updates={num_updates} must be at least 1, and its steps must fit 32 bits")
        state, metrics = self._program(state, np.int32(num_updates))
        host = {name: np.atleast_1d(np.asarray(value)) for name, value in metrics.items()}
        if np.any(host.pop("drift")):
            raise ReplicaDrift
        with np.errstate(invalid="ignore"):
            for name in ("episode_return", "episode_length"):
                host[name] = np.where(host["episodes"] > 0, host[name] / np.maximum(host["episodes"], 1), np.nan)
        return state, host

    def trace(self) -> dict[str, jax.stages.Traced]:
        """The very program of `run`, `updates`, traced for shapes alone: to be counted, or compiled for the mesh."""
        state = layout.placed(jax.eval_shape(self.init), self._shardings())
        return {"updates": self._program.trace(state, jax.ShapeDtypeStruct((), jnp.int32))}

    def train_state(self, state: AnakinState, seed_index: int = 0) -> TrainState:
        """The TrainState of one seed, on this host."""
        own = hosts.local(state.train_state)
        return jax.tree.map(lambda x: x[seed_index], own) if self.plan.num_seeds > 1 else own

    def actor_params(self, state: AnakinState, seed_index: int = 0) -> Params:
        """What one seed acts with."""
        return self.agent.actor_params(self.train_state(state, seed_index))

    def checkpoint(self, state: AnakinState) -> Any:
        """What a checkpoint must hold: everything, or, where environments live outside XLA, everything but those."""
        if self.environment.pure:
            return state
        return state.replace(env_state=(), timestep=(), actor_state=(), episode=(), before=())

    def restore(self, saved: Any) -> AnakinState:
        """The state that continues from `checkpoint`. Environments outside XLA start new episodes."""
        if not self.environment.pure:
            fresh = self.init()
            lost = ("env_state", "timestep", "actor_state", "episode", "before")
            saved = saved.replace(**{name: getattr(fresh, name) for name in lost})
        return hosts.place(saved, self._shardings())

    def memory(self) -> dict[str, int]:
        """Bytes on one device, by what they are for; nothing is allocated to find out.

        learner: parameters, their copies and the optimizer's state. environments: states and newest time steps. replay: the
        ring. batch: of one update, online and replayed. What the gradient keeps, and temporaries, come on top.
        """
        state = jax.eval_shape(self.init)
        local = layout.placed(state, self._shardings())
        one_seed = state
        if self.plan.num_seeds > 1:
            one_seed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state)
        unroll = jax.eval_shape(self._collect_once, one_seed.replace(replay=()))[1]
        share = self.plan.num_seeds * (1 + self.plan.replay_per_env) / self.plan.num_devices
        environments = (local.env_state, local.timestep, local.actor_state, local.episode, local.before)
        return {
            "learner": layout.num_bytes(local.train_state),
            "environments": layout.num_bytes(environments),
            "replay": layout.num_bytes(local.replay),
            "batch": round(share * layout.num_bytes(unroll)),
        }

    def close(self) -> None:
        """Releases environments that live outside XLA."""
        self.environment.close()

    # The program.

    def _init_seed(self, seed: Array) -> AnakinState:
        key = jax.random.key(seed)
        return self._init(key, self.environment.reset(environment_keys(key, jnp.arange(self.plan.num_envs))[0]))

    def _init(self, key: Key, start: tuple[Any, TimeStep]) -> AnakinState:
        env_state, timestep = start
        num_envs = self.plan.num_envs
        index = jnp.arange(num_envs, dtype=jnp.int32)
        state = AnakinState(
            train_state=self.agent.init(rng.stream(key, "init")),
            env_state=env_state,
            timestep=timestep,
            actor_state=self.agent.initial_actor_state(num_envs),
            episode=EpisodeTotals(
                episode_return=jnp.zeros((num_envs,), jnp.float32), episode_length=jnp.zeros((num_envs,), jnp.int32)
            ),
            before=(),
            replay=(),
            env_index=index,
            env_key=environment_keys(key, index)[1],
            key=rng.stream(key, "run"),
            num_updates=jnp.int32(0),
        )
        if self.plan.overlap:
            unroll = jax.eval_shape(lambda s: self._unroll(s)[1], state)
            state = state.replace(before=columns.batch_major(overlap.nothing(unroll, self.plan.overlap)))
        if self.plan.replay_per_env:
            replay = self.learner.init_replay(jax.eval_shape(self._collect_once, state)[1])
            state = state.replace(replay=replay)
        return state

    def _run(self, state: AnakinState, num_updates: Array) -> tuple[AnakinState, dict[str, Array]]:
        run = self._run_seed
        if self.plan.num_seeds > 1:
            run = jax.vmap(run, in_axes=(0, None))
        return run(state, num_updates)

    def _run_seed(self, state: AnakinState, num_updates: Array) -> tuple[AnakinState, dict[str, Array]]:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(self._update_once, state)[1])

        def body(_: Array, carry: tuple[AnakinState, Any]) -> tuple[AnakinState, Any]:
            new_state, metrics = self._update_once(carry[0])
            return new_state, jax.tree.map(jnp.add, carry[1], metrics)

        state, sums = jax.lax.fori_loop(0, num_updates, body, (state, zeros))
        counts = {name: jax.lax.psum(sums.pop(name), AXIS) for name in _COUNTS}
        means = jax.tree.map(lambda x: jax.lax.pmean(x / num_updates, AXIS), sums)
        params = state.train_state.params
        return state, {**means, **counts, "finite": is_finite(params), "drift": drift(params)}

    def _update(self, state: AnakinState) -> tuple[AnakinState, dict[str, Array]]:
        """One unroll of every environment of this device and one learning step. Metrics are sums over this device."""
        key = self._update_key(state)
        state, trajectory, counts = self._collect_once(state)
        train_state, replay, metrics, _ = self.learner.update(state.train_state, state.replay, trajectory, state.env_index, key)
        state = state.replace(train_state=train_state, replay=replay, num_updates=state.num_updates + 1)
        return state, {**metrics, **counts}

    def _update_key(self, state: AnakinState) -> Key:
        return jax.random.fold_in(state.key, state.num_updates)

    def _collect(self, state: AnakinState) -> tuple[AnakinState, Trajectory, dict[str, Array]]:
        """The next trajectory of every environment, with its overlap. Counts are of its new steps."""
        after, unroll, late_state, counts = self._unroll(state)
        if not self.plan.overlap:
            return after, unroll, counts
        before = columns.batch_major(overlap.end(unroll, self.plan.overlap, late_state))
        return after.replace(before=before), overlap.join(columns.batch_major(state.before), unroll), counts

    def _unroll(self, state: AnakinState) -> tuple[AnakinState, Trajectory, ActorState, dict[str, Array]]:
        """`T` steps of every environment, and the actor state before the last `O` of them."""
        params = self.agent.actor_params(state.train_state)
        act_key = rng.columns(rng.stream(self._update_key(state), "act"), state.env_index)
        first_slot = state.num_updates * self.plan.unroll_length
        version = jnp.full((self.plan.unroll_length, *state.env_index.shape), state.num_updates)

        def step(carry: tuple[Any, ...], t: Array) -> tuple[Any, Any]:
            env_state, timestep, actor_state, late_state, episode, counts = carry
            if self.plan.overlap:
                begins = t == self.plan.unroll_length - self.plan.overlap
                late_state = jax.tree.map(lambda new, old: jnp.where(begins, new, old), actor_state, late_state)
            seen, key = timestep.unlabelled(), rng.at(act_key, t)
            output, actor_state = self.agent.act(params, actor_state, seen, key, Mode.TRAIN)
            env_state, next_timestep = self.environment.step(env_state, output.action, rng.at(state.env_key, first_slot + t))
            episode, finished = _count(episode, next_timestep)
            carry = (env_state, next_timestep, actor_state, late_state, episode, jax.tree.map(jnp.add, counts, finished))
            return carry, (timestep, output)

        zeros = jax.tree.map(jnp.zeros_like, _count(state.episode, state.timestep)[1])
        late_state = state.actor_state if self.plan.overlap else ()
        (env_state, timestep, actor_state, late_state, episode, counts), (timesteps, outputs) = jax.lax.scan(
            step,
            (state.env_state, state.timestep, state.actor_state, late_state, state.episode, zeros),
            jnp.arange(self.plan.unroll_length),
        )
        trajectory = Trajectory(
            timestep=jax.tree.map(lambda xs, x: jnp.concatenate([xs, x[None]]), timesteps, timestep),
            actor_output=outputs.replace(version=version),
            actor_state=state.actor_state,
        )
        state = state.replace(env_state=env_state, timestep=timestep, actor_state=actor_state, episode=episode)
        return state, trajectory, late_state, jax.tree.map(jnp.sum, counts)

    # Layout over devices.

    def _partition_specs(self) -> Any:
        lead = (None,) if self.plan.num_seeds > 1 else ()
        batch: Any = P(*lead, AXIS) if self.plan.num_devices > 1 else P()
        replay = ring.Ring(data=batch, num_inserted=P(), priority=batch) if self.plan.replay_per_env else P()
        whole: Any = P()
        return AnakinState(
            train_state=whole,
            env_state=batch,
            timestep=batch,
            actor_state=batch,
            episode=batch,
            before=batch,
            replay=replay,
            env_index=batch,
            env_key=batch,
            key=P(),
            num_updates=P(),
        )

    def _shardings(self) -> AnakinState:
        return layout.shardings(self.mesh, self._specs)


def _count(episode: EpisodeTotals, timestep: TimeStep) -> tuple[EpisodeTotals, dict[str, Array]]:
    """Adds an arrival to the running totals; hands out and clears those of episodes that end with it."""
    real, last = ~timestep.first(), timestep.last()
    episode_return = episode.episode_return + timestep.reward
    episode_length = episode.episode_length + real
    finished = {
        "agent_steps": real.astype(jnp.int32),
        "episodes": last.astype(jnp.int32),
        "episode_return": jnp.where(last, episode_return, 0.0),
        "episode_length": jnp.where(last, episode_length, 0),
    }
    kept = EpisodeTotals(episode_return=jnp.where(last, 0.0, episode_return), episode_length=jnp.where(last, 0, episode_length))
    return kept, finished
