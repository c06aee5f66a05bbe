"""Plan: everything that follows from a JobConfig, worked out and checked before anything runs."""

import dataclasses
import math

from podracer.agent import Agent
from podracer.config import ConfigError, JobConfig, SebulbaConfig


@dataclasses.dataclass(frozen=True)
class ActorPlan:
    """The acting side of Sebulba.

    num_devices: that act, the first ones of the host. first_learner: index of the first device that learns; 0 where one
    device does both. threads: actors on each of them. max_lag: in updates. timeout: seconds of a step of the environments.
    max_restarts, patience, store, listen: as in `SebulbaConfig`.
    """

    num_devices: int
    first_learner: int
    threads: int
    max_lag: int
    timeout: float
    max_restarts: int
    patience: float
    store: str
    listen: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a runtime executes and `--dry-run` prints.

    num_hosts: processes that run the job together. num_devices: devices of the mesh over all hosts; in Sebulba those that
    learn. num_envs: environments over all devices, in Sebulba those of one actor of each host; envs_per_device: of one.
    unroll_length, overlap: `T` and `O` of `podracer.agent.DataSpec`. minibatches: gradient steps of one update. batch_size:
    sequences in the batch of one gradient step, online and replayed; replay_per_env: replayed sequences that go with each
    online one; replay_length: unrolls that each environment's ring holds. priority_exponent, updates_per_unroll: as in
    `podracer.agent.DataSpec`.
    steps_per_update: environment slots that one update consumes, `T * num_envs`; a slot in which a finished environment
    resets is no agent step. num_updates: the budget. num_env_slots: the budget in slots.
    seed, num_seeds: population of seeds. actors: in Sebulba alone.
    """

    num_hosts: int
    num_devices: int
    num_envs: int
    envs_per_device: int
    unroll_length: int
    overlap: int
    minibatches: int
    batch_size: int
    replay_per_env: int
    replay_length: int
    priority_exponent: float
    updates_per_unroll: int
    steps_per_update: int
    num_updates: int
    num_env_slots: int
    seed: int
    num_seeds: int
    updates_per_call: int
    actors: ActorPlan | None = None

    @property
    def envs_per_host(self) -> int:
        return self.num_envs // self.num_hosts

    @property
    def devices_per_host(self) -> int:
        return self.num_devices // self.num_hosts


def make_plan(job: JobConfig, agent: Agent, available_devices: int) -> Plan:
    """Works the plan out.

    Args:
      job: the configuration.
      agent: the agent, for its `data_spec`.
      available_devices: that each host has.

    Raises:
      ConfigError: a shape that does not divide, a share of replay that no whole number of sequences makes, or too few devices.
    """
    data, num_envs = agent.data_spec(), job.anakin.num_envs
    actors = _actor_plan(job.sebulba, available_devices) if job.runtime == "sebulba" else None
    num_devices = job.num_devices or available_devices
    if actors:
        num_devices = learner_devices(job.sebulba, available_devices)
        if not job.sebulba.learner_devices:
            shares = num_envs // max(job.num_hosts * job.anakin.minibatches, 1)
            num_devices = max((n for n in range(1, num_devices + 1) if shares % n == 0), default=1)
    for name, value in (
        ("--steps", job.num_steps),
        ("anakin.num_envs", num_envs),
        ("--seeds", job.num_seeds),
        ("--hosts", job.num_hosts),
    ):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
    if job.seed < 0 or job.seed + job.num_seeds > 2**31:
        raise ConfigError(f"--seed must lie between 0 and {2**31 - job.num_seeds}, not {job.seed}")
    if num_devices < 1 or num_devices > available_devices:
        raise ConfigError(
            f"--devices {num_devices}: there are {available_devices}; on a CPU, "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={max(num_devices, 1)} simulates more"
        )
    num_devices *= job.num_hosts
    if num_envs % num_devices:
        lower = num_envs // num_devices * num_devices
        near = [str(n) for n in (lower, lower + num_devices) if n]
        raise ConfigError(
            f"anakin.num_envs={num_envs} does not divide over {num_devices} devices{_of_hosts(job.num_hosts)}: "
            f"try {' or '.join(near)}"
        )
    if data.unroll_length < 1:
        raise ConfigError(f"the agent's unroll_length must be at least 1, not {data.unroll_length}")
    if not 0 <= data.overlap <= data.unroll_length:
        raise ConfigError(f"the agent's overlap={data.overlap} must lie between 0 and its unroll_length={data.unroll_length}")
    if data.updates_per_unroll < 1 or data.priority_exponent < 0:
        raise ConfigError(
            f"the agent's updates_per_unroll={data.updates_per_unroll} must be at least 1, "
            f"and its priority_exponent={data.priority_exponent} at least 0"
        )
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
        num_hosts=job.num_hosts,
        num_devices=num_devices,
        num_envs=num_envs,
        envs_per_device=num_envs // num_devices,
        unroll_length=data.unroll_length,
        overlap=data.overlap,
        minibatches=minibatches,
        batch_size=num_envs * (1 + replay_per_env) // minibatches,
        replay_per_env=replay_per_env,
        replay_length=replay_length,
        priority_exponent=data.priority_exponent if replay_per_env else 0.0,
        updates_per_unroll=data.updates_per_unroll,
        steps_per_update=steps_per_update,
        num_updates=num_updates,
        num_env_slots=num_updates * steps_per_update,
        seed=job.seed,
        num_seeds=job.num_seeds,
        updates_per_call=job.anakin.updates_per_call,
        actors=actors,
    )


def learner_devices(config: SebulbaConfig, available: int) -> int:
    """How many of a host's devices may learn. Raises ConfigError: too few devices, or numbers that cannot be."""
    return config.learner_devices or max(available - _actor_plan(config, available).first_learner, 1)


def _of_hosts(num_hosts: int) -> str:
    return f" of {num_hosts} hosts" if num_hosts > 1 else ""


def _actor_plan(config: SebulbaConfig, available: int) -> ActorPlan:
    """How the host's devices are shared out.

    Raises:
      ConfigError: too few devices, or numbers that cannot be.
    """
    acting, learning = config.actor_devices, config.learner_devices
    if not acting and available > 1:
        acting = 1 if config.sync else available - learning if learning else max(available // 4, 1)
    acting = acting or 1
    shared = available == 1 and acting == 1 and learning <= 1
    if not shared and acting + max(learning, 1) > available:
        raise ConfigError(
            f"--actor-devices {acting} --learner-devices {max(learning, 1)}: there are {available} devices; on a CPU, "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={acting + max(learning, 1)} simulates more"
        )
    for name, value, least in (
        ("threads", config.threads, 0 if config.store == "reverb" else 1),
        ("max_lag", config.max_lag, 0),
        ("max_restarts", config.max_restarts, 0),
    ):
        if value < least:
            raise ConfigError(f"sebulba.{name} must be at least {least}, not {value}")
    for name, seconds in (("env_timeout", config.env_timeout), ("patience", config.patience)):
        if seconds <= 0:
            raise ConfigError(f"sebulba.{name} must be positive, not {seconds}")
    host, colon, port = config.listen.rpartition(":")
    if not host or not colon or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"sebulba.listen={config.listen}: write HOST:PORT, for example 0.0.0.0:8000")
    if config.sync and acting > 1:
        raise ConfigError(f"sebulba.sync has one actor, so one actor device, not {acting}")
    return ActorPlan(
        num_devices=acting,
        first_learner=0 if shared else acting,
        threads=min(1, config.threads) if config.sync else config.threads,
        max_lag=0 if config.sync else config.max_lag,
        timeout=config.env_timeout,
        max_restarts=config.max_restarts,
        patience=config.patience,
        store=config.store,
        listen=config.listen,
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
