"""Plan: everything that follows from a JobConfig, worked out and checked before anything runs."""

import dataclasses
import math

from podracer.agent import Agent
from podracer.config import ConfigError, JobConfig
from podracer.types import EnvironmentSpec


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a runtime executes and `--dry-run` prints.

    num_devices: devices of the mesh. num_envs: environments over all devices; envs_per_device: of one.
    unroll_length: `T`. minibatches: gradient steps of one update. batch_size: sequences in the batch of one gradient step,
    online and replayed; replay_per_env: replayed sequences
    that go with each online one; replay_length: unrolls that each environment's ring holds.
    steps_per_update: environment slots that one update consumes, `T * num_envs`; a slot in which a finished environment
    resets is no agent step. num_updates: the budget. num_env_slots: the budget in slots.
    seed, num_seeds: population of seeds.
    """

    num_devices: int
    num_envs: int
    envs_per_device: int
    unroll_length: int
    minibatches: int
    batch_size: int
    replay_per_env: int
    replay_length: int
    steps_per_update: int
    num_updates: int
    num_env_slots: int
    seed: int
    num_seeds: int
    updates_per_call: int


def make_plan(job: JobConfig, agent: Agent, spec: EnvironmentSpec, available_devices: int) -> Plan:
    """Works the plan out.

    Args:
      job: the configuration.
      agent: the agent, for its `data_spec`.
      spec: of the environment.
      available_devices: local devices that there are.

    Raises:
      ConfigError: a shape that does not divide, a share of replay that no whole number of sequences makes, or too few devices.
    """
    del spec
    data, num_envs = agent.data_spec(), job.anakin.num_envs
    num_devices = job.num_devices or available_devices
    for name, value in (("--steps", job.num_steps), ("anakin.num_envs", num_envs), ("--seeds", job.num_seeds)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
    if job.seed < 0 or job.seed + job.num_seeds > 2**31:
        raise ConfigError(f"--seed must lie between 0 and {2**31 - job.num_seeds}, not {job.seed}")
    if num_devices < 1 or num_devices > available_devices:
        raise ConfigError(
            f"--devices {num_devices}: there are {available_devices}; on a CPU, "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={max(num_devices, 1)} simulates more"
        )
    if num_envs % num_devices:
        lower = num_envs // num_devices * num_devices
        near = [str(n) for n in (lower, lower + num_devices) if n]
        raise ConfigError(f"anakin.num_envs={num_envs} does not divide over {num_devices} devices: try {' or '.join(near)}")
    if data.unroll_length < 1:
        raise ConfigError(f"the agent's unroll_length must be at least 1, not {data.unroll_length}")
    replay_per_env = _replay_per_env(data.replay_share)
    replay_length = data.replay_capacity // num_envs if replay_per_env else 0
    if replay_per_env and replay_length < 1:
        raise ConfigError(
            f"replay of {data.replay_capacity} unrolls is less than one for each of {num_envs} environments: "
            f"set agent.replay_capacity to {num_envs} or more"
        )
    minibatches = job.anakin.minibatches
    if minibatches < 1 or num_envs // num_devices % minibatches:
        raise ConfigError(
            f"anakin.minibatches={minibatches} does not divide the {num_envs // num_devices} environments of a device: "
            f"try {math.gcd(minibatches, num_envs // num_devices)}"
        )
    device_batch = num_envs // num_devices * (1 + replay_per_env) // minibatches
    if data.microbatch < 0 or (data.microbatch and device_batch % data.microbatch):
        raise ConfigError(
            f"microbatch={data.microbatch} does not divide the {device_batch} sequences of a device's learning batch: "
            f"try {math.gcd(data.microbatch, device_batch)}"
        )
    steps_per_update = data.unroll_length * num_envs
    num_updates = -(-job.num_steps // steps_per_update)
    return Plan(
        num_devices=num_devices,
        num_envs=num_envs,
        envs_per_device=num_envs // num_devices,
        unroll_length=data.unroll_length,
        minibatches=minibatches,
        batch_size=num_envs * (1 + replay_per_env) // minibatches,
        replay_per_env=replay_per_env,
        replay_length=replay_length,
        steps_per_update=steps_per_update,
        num_updates=num_updates,
        num_env_slots=num_updates * steps_per_update,
        seed=job.seed,
        num_seeds=job.num_seeds,
        updates_per_call=job.anakin.updates_per_call,
    )


def _replay_per_env(share: float) -> int:
    """Replayed sequences for each online one, so that `share` of the batch is replayed."""
    if not 0 <= share < 1:
        raise ConfigError(f"the agent's replay_share must lie in [0, 1), not {share}")
    per_env = share / (1 - share)
    if abs(per_env - round(per_env)) > 1e-6:
        low, high = int(per_env), int(per_env) + 1
        raise ConfigError(
            f"replay_share={share:g} is no whole number of replayed sequences for each online one: "
            f"the nearest are {low / (low + 1):.6g} and {high / (high + 1):.6g}"
        )
    return round(per_env)
