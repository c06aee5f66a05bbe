"""The actors of one process: made from an agent and an environment, numbered over the whole job, run by a supervisor."""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from podracer import rng
from podracer.agent import Agent
from podracer.environment import Environment
from podracer.runtimes.sebulba.actor import Acting, Actor
from podracer.runtimes.sebulba.supervisor import Supervisor
from podracer.types import Array, Key, Mode, Params, TimeStep, Trajectory


@dataclasses.dataclass(frozen=True)
class Crew:
    """agent, environment: what acts, and where. num_envs: of one actor. seed: of the job.

    devices: that act. threads: actors on each. first_number: of the first of them, which fixes their randomness.
    timeout: seconds of a step of the environments. max_restarts: of actors.
    """

    agent: Agent
    environment: Environment
    num_envs: int
    seed: int
    devices: Sequence[Any]
    threads: int
    timeout: float
    max_restarts: int
    first_number: int = 0

    def start(
        self, num_updates: int, newest: Callable[[int, Any], Any], handover: Any, deliver: Callable[[Trajectory], Any]
    ) -> Supervisor:
        """Starts all actors.

        Args:
          num_updates: that the run has behind it; after a resume environments begin other episodes than at its start.
          newest: from the index of a device and a ticket to the parameters to act with.
          handover: where unrolls go: `begin`, `put` and `cancel` as in `stores.handover`.
          deliver: what becomes of a trajectory on its actor device before that.
        """
        acting = Acting(self.agent)
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            run_key = jax.device_get(jax.random.key_data(rng.stream(jax.random.key(self.seed), "run")))

        def make_actor(place: int, attempt: int) -> Actor:
            number = self.first_number + place
            first_env = number * self.num_envs
            device = self.devices[place // self.threads]
            index = first_env + jnp.arange(self.num_envs)

            @jax.jit
            def keys(num_unrolls: Array) -> Key:
                key = rng.stream(jax.random.fold_in(jax.random.wrap_key_data(run_key), num_unrolls), "act")
                return rng.columns(key, index)

            with jax.default_device(device):
                environment = self.environment.host(self.num_envs, _env_seed(self.seed, num_updates, attempt), first_env)
                try:
                    # No two attempts share an unroll's number, or they would act with the same keys.
                    first_unroll = num_updates + attempt * 2**20
                    return Actor(acting, environment, device, number, keys, first_unroll, deliver, self.timeout)
                except BaseException:
                    environment.close()
                    raise

        supervisor = Supervisor(
            make_actor,
            lambda place, ticket: newest(place // self.threads, ticket),
            handover,
            len(self.devices) * self.threads,
            self.max_restarts,
            self.timeout,
        )
        supervisor.start()
        return supervisor


def example(agent: Agent, environment: Environment, num_envs: int) -> tuple[Trajectory, Params]:
    """Shapes of an unroll `[O+T+1, B, ...]` and of the parameters that actors act with; nothing is allocated."""

    def act() -> tuple[TimeStep, Any, Any, Params]:
        params = agent.actor_params(agent.init(jax.random.key(0)))
        timestep = environment.spec.example((num_envs,))
        actor_state = agent.initial_actor_state(num_envs)
        keys = jax.random.split(jax.random.key(0), num_envs)
        output, _ = agent.act(params, actor_state, timestep.unlabelled(), keys, Mode.TRAIN)
        return timestep, output, actor_state, params

    timestep, output, actor_state, params = jax.eval_shape(act)
    output = output.replace(version=jax.ShapeDtypeStruct((num_envs,), jnp.int32))

    def over_time(tree: Any, num: int) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((num, *x.shape), x.dtype), tree)

    data = agent.data_spec()
    unroll = Trajectory(
        timestep=over_time(timestep, data.overlap + data.unroll_length + 1),
        actor_output=over_time(output, data.overlap + data.unroll_length),
        actor_state=actor_state,
    )
    return unroll, params


def _env_seed(seed: int, num_updates: int, attempt: int) -> int:
    """The job's seed at the start of a run; another one after a resume or a restart, which would else repeat episodes."""
    return zlib.crc32(f"{seed} {num_updates} {attempt}".encode()) & 0x7FFFFFFF if num_updates or attempt else seed
