"""The analysis of one job for one topology, in a process of its own: `python -m podracer.launch.analyze < QUESTION > ANSWER`.

A compiler that crashes takes no more than this process along, and what it needed of memory is free again afterwards.
"""

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from podracer.config import ConfigError, JobConfig
from podracer.launch.surroundings import prepare

# Lets libtpu be loaded where there is no TPU, or where another process has it.
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    # Programs compiled for devices that are not here cannot be read back from it.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
}


@dataclasses.dataclass(frozen=True)
class Program:
    """What one program costs a device, and what XLA made of it.

    name: `updates`, of which costs are those of one update in its loop; `update`; or `act`, one step of the environments of
      an actor. num_devices: that run it together.
    most, least: costs as JSON, with the dearest and with the cheapest branches. once: with a call of many updates.
    bound: seconds by what they are for, or none where the chip's peaks are not known; limit: the largest.
    compiled: bytes by what they are for, or none. refused: bytes asked for and bytes there are, where it does not fit.
    messages: collectives of the compiled program, as `aot.compiled.Message`.
    """

    name: str
    num_devices: int
    most: Mapping[str, Any]
    least: Mapping[str, Any]
    once: Mapping[str, Any]
    bound: Mapping[str, float] | None
    compiled: Mapping[str, int] | None = None
    refused: tuple[float, float] | None = None
    messages: tuple[Mapping[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Of a job. error: a user's mistake, one line; then nothing else is there. topology: `aot.topologies.Topology`.

    outline: lines of `job.outline`. plan: its fields. arrays: bytes of a device by what they are for. frames_per_step: of the
      environment. job: the job, as `job_as_json` has it.
    """

    error: str = ""
    topology: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    outline: tuple[str, ...] = ()
    plan: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arrays: Mapping[str, int] = dataclasses.field(default_factory=dict)
    frames_per_step: int = 1
    job: str = ""
    programs: tuple[Program, ...] = ()


def environment(topology: Any) -> dict[str, str]:
    """What must be set in the environment of the analysing process, over this one's."""
    from podracer.aot import compilers
    from podracer.aot.topologies import HERE

    if topology.name == HERE:
        return {}
    flags = os.environ.get("XLA_FLAGS", "").split()
    flags = [flag for flag in flags if not flag.startswith("--xla_force_host_platform_device_count")]
    if not topology.compiles():
        flags.append(f"--xla_force_host_platform_device_count={topology.num_devices}")
    paths = [str(compilers.folder(topology.chip.platform)), os.environ.get("PYTHONPATH", "")]
    return {**_NO_TPU, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}


def analyze(job: JobConfig, preset: str, topology: Any, budget: int | None = None, compiles: bool = True) -> Analysis:
    """Builds the job's programs and counts, bounds and compiles them.

    Args:
      job, preset: to analyse. topology: `aot.topologies.Topology`; `job` has its hosts and devices.
      budget: in frames of the environments, over the job's own.
      compiles: whether to compile.

    Raises:
      ConfigError, environment.Unsupported, registry.NotFound: as `job.build`.
    """
    from podracer.aot import target, topologies
    from podracer.launch import job as jobs

    parts = jobs.build(job, topology.devices_per_host)
    frames = parts.environment.spec.frames_per_step
    if budget:
        job = dataclasses.replace(job, num_steps=-(-budget // frames))
        parts = jobs.build(job, topology.devices_per_host)
    with target.assume(topology.chip.platform):
        runtime = jobs.make_runtime(job, parts, preset, None, topology.devices())
        try:
            memory = runtime.memory()
            traced = runtime.trace()
        finally:
            runtime.close()
        programs = tuple(_program(name, traced[name], topology, compiles) for name in traced)
        if topology.name == topologies.HERE:
            used = parts.plan.num_devices + (parts.plan.actors.num_devices if parts.plan.actors else 0)
            topology = dataclasses.replace(topology, num_chips=min(used, topology.num_chips))
    return Analysis(
        topology=dataclasses.asdict(topology),
        outline=tuple(jobs.outline(job, parts, memory, preset, verbose=True)),
        plan=dataclasses.asdict(parts.plan),
        arrays=memory,
        frames_per_step=frames,
        job=jobs.job_as_json(job, preset),
        programs=programs,
    )


def _program(name: str, traced: Any, topology: Any, compiles: bool) -> Program:
    from podracer.aot import compiled, cost, roofline

    def counted(choose: cost.Choose) -> tuple[cost.Cost, cost.Cost]:
        return cost.count_loop(traced.jaxpr, choose) if name == "updates" else (cost.Cost(), cost.count(traced.jaxpr, choose))

    once, most = counted(cost.dearest)
    _, least = counted(cost.cheapest)
    num_devices = cost.num_devices(traced.jaxpr)
    bound = dataclasses.asdict(roofline.bound(least, topology, num_devices)) if topology.chip.peak_flops else None
    found = Program(name, num_devices, _plain(most), _plain(least), _plain(once), bound)
    if not compiles:
        return found
    try:
        made = compiled.compile_traced(traced)
    except compiled.OutOfMemory as refusal:
        return dataclasses.replace(found, refused=(refusal.used, refusal.available))
    memory = topology.chip.memory // topology.chip.devices
    sizes = dataclasses.asdict(made)
    messages = tuple(sizes.pop("messages"))
    refused = (float(made.num_bytes), float(memory)) if memory and made.num_bytes > memory else None
    return dataclasses.replace(found, compiled=sizes, refused=refused, messages=messages)


def _plain(cost: Any) -> dict[str, Any]:
    """A cost for JSON."""
    plain = {field.name: getattr(cost, field.name) for field in dataclasses.fields(cost) if field.name != "collectives"}
    collectives = [
        {**dataclasses.asdict(one), "count": count} for one, count in cost.collectives.items() if one.num_devices > 1
    ]
    return {
        **plain,
        "flops": cost.flops,
        "num_collectives": cost.num_collectives,
        "collective_bytes": cost.collective_bytes,
        "collectives": collectives,
    }


def main() -> None:
    """Answers the question on stdin. What libraries print goes to stderr."""
    prepare()
    question = json.load(sys.stdin)
    answer = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        from podracer.aot import topologies
        from podracer.launch.job import job_from_json
        from podracer.registry import NotFound

        topology = topologies.find(question["topology"]) if question["topology"] else topologies.here()
        job, preset = job_from_json(question["job"], "the question")
        from podracer.environment import Unsupported

        try:
            found = analyze(job, preset, topology, question["budget"], question["compiles"])
        except (ConfigError, NotFound, Unsupported) as error:
            found = Analysis(error=str(error))
    json.dump(dataclasses.asdict(found), answer)


if __name__ == "__main__":
    main()
