"""From words on a command line to a JobConfig, its parts and its plan, and from a run folder back to them."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from podracer import __version__, registry
from podracer.config import ConfigError, JobConfig, keys, override, parse_assignments
from podracer.launch.words import many, quantity

FORMAT = 1
NOT_SETTINGS = {"agent_name": "--agent", "env_name": "--env", "runtime": "podracer launch RUNTIME"}
MAY_CHANGE = (
    "num_steps",
    "num_hosts",
    "eval_episodes",
    "checkpoint_seconds",
    "wandb",
    "anakin.updates_per_call",
    "sebulba.listen",
)
"""Settings that a resumed run may be given anew: none of them changes what an update computes, up to rounding."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What a user asked for. None means: not said.

    settings: texts `key=value` of `--set`.
    """

    runtime: str
    agent: str | None = None
    env: str | None = None
    steps: int | None = None
    seed: int | None = None
    seeds: int | None = None
    devices: int | None = None
    hosts: int | None = None
    preset: str | None = None
    wandb: str | None = None
    settings: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a job is made of. agent: `podracer.agent.Agent`; environment: `podracer.environment.Environment`."""

    agent: Any
    environment: Any
    plan: Any


def new_job(request: Request) -> tuple[JobConfig, str]:
    """The job of a request, and the name of the preset it took, or empty.

    Defaults come first, then the preset, then `--set`, then explicit flags.

    Raises:
      ConfigError, registry.NotFound: what is asked for is not there, or does not fit.
    """
    for flag, value in (("--agent", request.agent), ("--env", request.env)):
        if not value:
            raise ConfigError(f"{flag} is missing (podracer {flag[2:]}s lists all)")
    job = _default_job(str(request.agent), str(request.env), request.runtime)
    agent_class = registry.agent_class(job.agent_name)
    preset_name = request.preset or (job.env_name if agent_class.preset(job.env_name) else "")
    if preset_name:
        job = _apply_preset(job, agent_class, preset_name)
    return _apply_flags(job, request), preset_name


def resumed_job(request: Request, stored: JobConfig) -> JobConfig:
    """The stored job with what the request says anew.

    Raises:
      ConfigError: the request differs in a setting that would make it another run; the line names it.
    """
    for name, asked, has in (("agent", request.agent, stored.agent_name), ("env", request.env, stored.env_name)):
        if asked and asked != has:
            raise ConfigError(f"--resume with another {name}: the run has {has}, not {asked}")
    job = stored
    if request.preset:
        job = _apply_preset(job, registry.agent_class(job.agent_name), request.preset)
        job = dataclasses.replace(job, num_steps=stored.num_steps)
    job = _apply_flags(job, dataclasses.replace(request, agent=None, env=None))
    before, after = keys(stored), keys(job)
    if request.runtime != stored.runtime:
        raise ConfigError(f"--resume with another runtime: the run has {stored.runtime}, not {request.runtime}")
    for key, value in after.items():
        if key not in MAY_CHANGE and before[key] != value:
            raise ConfigError(f"--resume with another {key}: the run has {before[key]}, not {value}; use another --run-dir")
    if job.num_steps < stored.num_steps:
        raise ConfigError(f"--resume with fewer steps: the run's budget is {stored.num_steps:,}; it may only grow")
    return job


def build(job: JobConfig, available_devices: int | None = None) -> Parts:
    """Environment, agent and plan. available_devices: that each host has; the default is as many as this one has.

    Raises:
      ConfigError, registry.NotFound, environment.Unsupported: a part that cannot be; one line.
    """
    import jax

    from podracer.plan import make_plan

    agent, environment = build_agent(job)
    plan = make_plan(job, agent, available_devices or jax.local_device_count())
    return Parts(agent=agent, environment=environment, plan=plan)


def build_agent(job: JobConfig) -> tuple[Any, Any]:
    """Agent and environment, without a plan. Raises as `build`."""
    environment, agent_class = registry.env(job.env_name).make(job.env), registry.agent_class(job.agent_name)
    if agent_class.needs_simulator(job.agent):
        from podracer.search.simulator import WithSimulator

        environment = WithSimulator(environment)
    try:
        return agent_class(environment.spec, job.agent), environment
    except (TypeError, ValueError) as error:
        raise ConfigError(f"agent {job.agent_name} on {job.env_name}: {str(error).splitlines()[0]}") from error


def check_memory(needed: Mapping[str, int], num_devices: int) -> None:
    """Refuses a job whose arrays are larger than the memory that is free.

    Args:
      needed: bytes on one device, by what they are for.
      num_devices: that the job takes; on a CPU they share the host's memory.

    Raises:
      ConfigError: it does not fit; the line names the largest part.
    """
    import jax

    total, place = sum(needed.values()), "a device"
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        free = stats["bytes_limit"] - stats["bytes_in_use"]
    else:
        import psutil

        total, free, place = num_devices * total, psutil.virtual_memory().available, "this host"
    if total > free:
        part = max(needed, key=lambda name: needed[name])
        how = {"replay": "agent.replay_capacity", "learner": "the size of the networks"}.get(part, "anakin.num_envs")
        raise ConfigError(
            f"this job needs {quantity(total, 'B')} on {place}, most of it for {part}, "
            f"and {quantity(free, 'B')} are free: lower {how}"
        )


def outline(job: JobConfig, parts: Parts, memory: Mapping[str, int], preset: str, verbose: bool) -> list[str]:
    """Lines that say what will run; all settings, the whole plan and the memory of a device where `verbose`."""
    plan = parts.plan
    defaults = keys(registry.env(job.env_name).suite.config())
    # How the environment differs from its own protocol is worth a word even where a preset chose it.
    chosen = [f"env.{key}={value}" for key, value in keys(job.env).items() if value != defaults[key]]
    lines = [
        f"{job.agent_name} on {job.env_name}: {job.runtime}, "
        + (f"{plan.num_hosts} hosts, " if plan.num_hosts > 1 else "")
        + f"{many(plan.num_devices, 'device')}, "
        f"{many(plan.num_envs, 'environment')}, {many(plan.num_seeds, 'seed')}; "
        f"{plan.steps_per_update:,} steps an update, budget {job.num_steps:,} agent steps"
        + (f" (preset {preset})" if preset else "")
        + (f"; {', '.join(chosen)}" if chosen else "")
    ]
    if verbose:
        lines += ["", "settings (any of them with --set):"] + [f"  {key} = {value}" for key, value in keys(job).items()]
        lines += ["", "plan:"] + [f"  {key} = {value}" for key, value in dataclasses.asdict(plan).items()]
        if memory:
            lines += ["", "memory of a device, without what a gradient keeps:"]
        lines += [f"  {part} = {quantity(number, 'B')}" for part, number in memory.items()]
    return lines


def make_runtime(job: JobConfig, parts: Parts, preset: str, run_dir: Path | None, devices: Sequence[Any] | None = None) -> Any:
    """The job's runtime, which writes nothing to `run_dir` before it runs.

    devices: of all hosts, where it is to be traced for devices that are not here, and never to run.

    Raises:
      ConfigError, environment.Unsupported: what it cannot do.
    """
    if job.runtime == "anakin":
        from podracer.runtimes.anakin import Anakin

        return Anakin(parts.agent, parts.environment, parts.plan, devices)
    if job.runtime == "sebulba":
        from podracer.runtimes.sebulba.runtime import Sebulba

        # Actors that join serve one host, and see no others.
        theirs = override(dataclasses.replace(job, num_hosts=1), {"anakin.num_envs": parts.plan.envs_per_host})
        return Sebulba(parts.agent, parts.environment, parts.plan, job_as_json(theirs, preset).encode(), run_dir, devices)
    raise ConfigError(f"unknown runtime {job.runtime!r}: there are anakin and sebulba")


def settings(job: JobConfig) -> dict[str, Any]:
    """All settings in the grammar of `--set`, as JSON values."""
    return {key: _plain(value) for key, value in keys(job).items()}


def fingerprint(job: JobConfig) -> dict[str, Any]:
    """The settings that fix what a checkpoint of the job means."""
    return {key: value for key, value in settings(job).items() if key not in MAY_CHANGE}


def save_job(run_dir: Path, job: JobConfig, preset: str) -> None:
    """Writes config.json, from which `load_job` makes the same job. Raises ConfigError where it cannot."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(run_dir / "config.json", job_as_json(job, preset) + "\n")
    except OSError as error:
        raise ConfigError(f"--run-dir {run_dir}: {error.strerror}") from error


def job_as_json(job: JobConfig, preset: str) -> str:
    """The text from which `job_from_json` makes the same job."""
    return json.dumps({"format": FORMAT, "podracer": __version__, "preset": preset, "job": settings(job)}, indent=2)


def load_job(run_dir: Path) -> tuple[JobConfig, str]:
    """The job of a run folder and the preset it took.

    Raises:
      ConfigError: there is no run in this folder, or its file is damaged.
    """
    path = run_dir / "config.json"
    if not path.exists():
        raise ConfigError(f"{run_dir} holds no run: it has no config.json")
    return job_from_json(path.read_text(), str(path))


def job_from_json(text: str, source: str) -> tuple[JobConfig, str]:
    """The job of `job_as_json` and its preset. `source`: where the text is from, for errors. Raises ConfigError."""
    try:
        stored = json.loads(text)
        values: Mapping[str, Any] = stored["job"]
        names = [values[name] for name in ("agent_name", "env_name", "runtime")]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{source} is damaged: {error}") from error
    if stored.get("format") != FORMAT:
        raise ConfigError(f"{source} was written by another version of podracer ({stored.get('podracer')})")
    try:
        return override(_default_job(*names), values), stored.get("preset", "")
    except ConfigError as error:
        raise ConfigError(f"{source} does not fit this version: {error}") from error


def write_atomically(path: Path, text: str) -> None:
    """Replaces a file so that a reader, or a kill, never meets half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def _default_job(agent_name: str, env_name: str, runtime: str) -> JobConfig:
    agent_class, env = registry.agent_class(agent_name), registry.env(env_name)
    return JobConfig(
        agent_name=agent_name, env_name=env_name, runtime=runtime, agent=agent_class.Config(), env=env.suite.config()
    )


def _apply_preset(job: JobConfig, agent_class: Any, name: str) -> JobConfig:
    presets = agent_class.presets
    preset = presets.get(name) or agent_class.preset(name)
    if preset is None and not presets:
        raise ConfigError(f"--preset {name}: agent {job.agent_name} has no presets")
    if preset is None:
        raise ConfigError(registry.unknown(f"preset of {job.agent_name}", name, presets))
    return override(dataclasses.replace(job, num_steps=preset.num_steps), preset.overrides)


def _apply_flags(job: JobConfig, request: Request) -> JobConfig:
    assigned = parse_assignments(request.settings)
    for key in assigned:
        if key in NOT_SETTINGS:
            raise ConfigError(f"--set {key}: use {NOT_SETTINGS[key]}")
    job = override(job, assigned)
    flags: dict[str, Any] = {
        "num_steps": request.steps,
        "seed": request.seed,
        "num_seeds": request.seeds,
        "num_devices": request.devices,
        "num_hosts": request.hosts,
        "wandb": request.wandb,
    }
    return dataclasses.replace(job, **{name: value for name, value in flags.items() if value is not None})


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no word for it
    return value
