"""Weak scaling: what crosses devices in an update, exactly, and what the plan says of 8 to 2048 chips.

    python benchmarks/scaling.py [devices processes chips peaks] [--agent muesli] [--env atari_jax/pong] [--out DIR]

* devices: 1, 2, 4 and 8 simulated devices, each with as many environments as the preset has. FLOPs of a device, and number
  and bytes of the collectives of an update, as counted in the program and as XLA compiled it, are exact. Times are of simulated
  devices, which share this machine's cores: `ideal` is one device's speed, which sharing without loss would keep, and the shape
  is all they say.
* processes: the same with 1, 2 and 4 processes of one device each, as hosts are, which reduce over loopback.
* chips: `podracer plan` for 8 to 2048 chips: memory of a chip as XLA lays it out, collectives, the bound on agent steps/s.
  Needs libtpu; no TPU.
* peaks: the model of `podracer.aot.roofline` where it can be measured. The peaks of this device, from a large matrix product
  and from a copy; then programs, and the share of the bound that they reach. The first is a loop of matrix products, for which
  it must be near 1.

Prints a JSON line a case, and leaves tables (scaling.md) and a figure (scaling.png) in `--out`.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import common

_DEVICES = (1, 2, 4, 8)
_PROCESSES = (1, 2, 4)
_CHIPS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_PEAK_PROGRAMS = (
    ("impala", "catch", ()),
    ("impala", "catch", ("anakin.num_envs=1024", "agent.torso.hidden=(1024, 1024)")),
    ("muesli", "atari_jax/pong", ()),
    ("muesli", "atari_jax/pong", ("anakin.num_envs=16", "env.observation=pixels", "agent.torso.kind=impala")),
)
Row = Mapping[str, Any]


def build(agent: str, env: str, settings: Sequence[str], num_devices: int, num_hosts: int = 1) -> Any:
    """Anakin with the preset's environments on every device. num_devices: of each host."""
    from podracer import config
    from podracer.launch import job as jobs

    request = jobs.Request(runtime="anakin", agent=agent, env=env, settings=settings, devices=num_devices, hosts=num_hosts)
    job, preset = jobs.new_job(request)
    job = config.override(job, {"anakin.num_envs": num_hosts * num_devices * job.anakin.num_envs})
    return jobs.make_runtime(job, jobs.build(job), preset, None)


def seconds_of(function: Callable[[int], None], seconds: float, rounds: int) -> float:
    """Median over rounds of the time of one of the `n` repetitions that `function(n)` makes, in calls of about `seconds`."""
    return statistics.median(common.take_turns({"it": function}, seconds, rounds)["it"])


def update_seconds(runtime: Any, seconds: float, rounds: int) -> float:
    """Time of one update of the running program."""
    holder = [runtime.init()]

    def run(num_updates: int) -> None:
        holder[0], _ = runtime.run(holder[0], num_updates)

    return seconds_of(run, seconds, rounds)


def on_devices(agent: str, env: str, settings: Sequence[str], num_devices: int, seconds: float, rounds: int) -> Row:
    """One case of `devices`, in a process that has as many, or of `processes`, in one of those."""
    from podracer import hosts

    host = hosts.join()
    import jax

    from podracer.aot import compiled, cost

    runtime = build(agent, env, settings, num_devices // host.num, host.num)
    traced = runtime.trace()["updates"]
    _, update = cost.count_loop(traced.jaxpr)
    messages = compiled.compile_traced(traced).messages
    params = jax.eval_shape(runtime.init).train_state.params
    return {
        "devices": num_devices,
        "num_envs": runtime.plan.num_envs,
        "minibatches": runtime.plan.minibatches,
        "parameter_bytes": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params)),
        "flops_of_a_device": update.flops,
        "arrays_reduced": update.num_collectives,
        "bytes_reduced": update.collective_bytes,
        "all_reduces_compiled": sum(one.depth > 0 for one in messages) if num_devices > 1 else 0,
        "bytes_compiled_each_round": sum(one.num_bytes for one in messages if one.depth > 0) if num_devices > 1 else 0,
        "agent_steps_per_second": runtime.plan.steps_per_update / update_seconds(runtime, seconds, rounds),
    }


def weak_scaling(options: argparse.Namespace, processes: bool = False) -> list[Row]:
    """`devices`: each number of devices in a process of its own; or `processes`, with one device in each."""
    rows: list[Row] = []
    for num_devices in _PROCESSES if processes else _DEVICES:
        flags = f"--xla_force_host_platform_device_count={1 if processes else num_devices}"
        command = [sys.executable, __file__, "--one", str(num_devices), "--agent", options.agent, "--env", options.env]
        command += ["--seconds", str(options.seconds), "--rounds", str(options.rounds)]
        command += [word for setting in options.settings for word in ("--set", setting)]
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        group = [dict(environment)]
        if processes:
            group = _group(environment, num_devices)
        started = [subprocess.Popen(command, env=own, stdout=subprocess.PIPE, text=True) for own in group]
        outputs = [process.communicate()[0] for process in started]
        if any(process.returncode for process in started):
            raise SystemExit(f"{' '.join(command)} failed")
        row = json.loads(outputs[0].splitlines()[-1])
        row["ideal"] = rows[0]["agent_steps_per_second"] if rows else row["agent_steps_per_second"]
        rows.append(row)
        case = "processes" if processes else "devices"
        common.emit(f"scaling {case}", agent=options.agent, env=options.env, **row)
    return rows


def on_processes(options: argparse.Namespace) -> list[Row]:
    """`processes`."""
    return weak_scaling(options, processes=True)


def _group(environment: Mapping[str, str], num: int) -> list[dict[str, str]]:
    """The environments of processes that join each other, as a launcher sets them."""
    from podracer.launch.cluster.processes import free_port

    common = {**environment, "PODRACER_HOSTS": str(num), "PODRACER_COORDINATOR": f"127.0.0.1:{free_port('127.0.0.1')}"}
    return [{**common, "PODRACER_HOST": str(index)} for index in range(num)]


def on_chips(options: argparse.Namespace) -> list[Row]:
    """`chips`: what `podracer plan` says."""
    from podracer.aot import topologies
    from podracer.launch import job as jobs
    from podracer.launch import plan as plans

    rows: list[Row] = []
    for kind in options.kinds:
        for chips in _CHIPS:
            name = f"{kind}-{chips * topologies.CHIPS[kind].cores}"
            request = jobs.Request(runtime="anakin", agent=options.agent, env=options.env, settings=options.settings)
            start = time.perf_counter()
            answer = plans.plan(request, name, plans.Price())
            (program,) = answer.analysis.programs
            row = {
                "topology": name,
                "chips": chips,
                "devices": answer.analysis.plan["num_devices"],
                "fits": answer.fits,
                "memory_of_a_device": sum((program.compiled or {}).values()),
                "flops_of_a_device": program.least["flops"],
                "bytes_reduced": program.most["collective_bytes"],
                "all_reduces_compiled": sum(one["depth"] > 0 for one in program.messages),
                "update_microseconds": 1e6 * plans.update_seconds(answer.analysis),
                "links_microseconds": 1e6 * (program.bound or {}).get("links", 0.0),
                "network_microseconds": 1e6 * (program.bound or {}).get("network", 0.0),
                "bound_steps_per_second": plans.estimate(answer, plans.Price())["steps_per_second"],
                "answered_in_seconds": time.perf_counter() - start,
            }
            rows.append(row)
            common.emit("scaling chips", agent=options.agent, env=options.env, **row)
    return rows


def measured_chip(seconds: float, rounds: int) -> Any:
    """This device as a chip: float32 products of 2048 x 2048, and copies of 256 MB, which read and write."""
    import jax
    import jax.numpy as jnp

    from podracer.aot import topologies

    def timed(step: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
        loop = jax.jit(lambda n, x: jax.lax.fori_loop(0, n, lambda _, x: step(x), x))
        return seconds_of(lambda n: jax.block_until_ready(loop(jnp.int32(n), x)), seconds, rounds)

    size, length = 2048, 2**26
    product = timed(lambda x: x @ x / size, jnp.ones((size, size)))
    copy = timed(lambda x: x + 1, jnp.zeros((length,)))
    chip = topologies.here().chip
    return dataclasses.replace(chip, peak_flops={"float32": 2 * size**3 / product}, memory_rate=8 * length / copy)


def against_the_bound(options: argparse.Namespace) -> list[Row]:
    """`peaks`: the share of the bound that programs reach on this device, one of it."""
    import jax
    import jax.numpy as jnp

    from podracer.aot import cost, roofline, topologies

    chip = measured_chip(options.seconds, options.rounds)
    topology = dataclasses.replace(topologies.here(), chip=chip, num_chips=1)
    peaks = {"peak_gflops": chip.peak_flops["float32"] / 1e9, "peak_gigabytes": chip.memory_rate / 1e9}

    def row(name: str, counted: cost.Cost, took: float) -> Row:
        found = roofline.bound(counted, topology, 1)
        line = {
            "program": name,
            "flops": counted.flops,
            "bytes": counted.num_bytes,
            "rounds": counted.rounds,
            "bound_ms": 1e3 * found.seconds,
            "measured_ms": 1e3 * took,
            "limit": found.limit,
            "share": found.seconds / took,
        }
        common.emit("scaling peaks", device=chip.kind, **peaks, **line)
        return line

    def products(n: jax.Array, x: jax.Array) -> jax.Array:
        body = lambda x, _: (jnp.tanh(x @ x), None)  # noqa: E731
        return jax.lax.fori_loop(0, n, lambda _, x: jax.lax.scan(body, x, None, length=10)[0], x)

    x, program = jnp.ones((1024, 1024)), jax.jit(products)
    _, counted = cost.count_loop(program.trace(jnp.int32(1), x).jaxpr)
    took = seconds_of(lambda n: jax.block_until_ready(program(jnp.int32(n), x)), options.seconds, options.rounds)
    rows = [row("10 products of 1024 x 1024", counted, took)]
    for agent, env, settings in _PEAK_PROGRAMS:
        runtime = build(agent, env, settings, 1)
        _, counted = cost.count_loop(runtime.trace()["updates"].jaxpr, cost.cheapest)
        took = update_seconds(runtime, options.seconds, options.rounds)
        rows.append(row(" ".join((agent, "on", env, *settings)), counted, took))
    return rows


def write_tables(results: Mapping[str, Sequence[Row]], path: Path) -> None:
    """One table for each kind of case."""
    tables = [
        f"## {name}\n\n{common.table(list(rows[0]), [list(map(_text, row.values())) for row in rows])}"
        for name, rows in results.items()
    ]
    path.write_text("\n".join(tables))


def write_figure(results: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Bytes that an update reduces, and speed, against devices or chips."""
    names = [name for name in ("devices", "processes", "chips") if name in results]
    if not names:
        return
    figure, axes = common.figure(len(names), 2, width=5, height=3.5)
    for column, name in enumerate(names):
        speed, bytes_of = axes[0][column], axes[1][column]
        speed_key = "bound_steps_per_second" if name == "chips" else "agent_steps_per_second"
        kinds = sorted({row.get("topology", "").partition("-")[0] for row in results[name]})
        for kind in kinds:
            rows = [row for row in results[name] if row.get("topology", "").startswith(kind)]
            counts = [row["chips" if name == "chips" else "devices"] for row in rows]
            speed.plot(counts, [row[speed_key] for row in rows], marker="o", label=kind or "measured")
            bytes_of.plot(counts, [row["bytes_reduced"] / 1e6 for row in rows], marker="o", label=kind or "counted")
        if name != "chips":
            speed.plot(counts, [row["ideal"] for row in rows], linestyle="--", color="grey", label="shared cores, no loss")
        title = (
            "simulated devices of one machine: shape only" if name != "chips" else "bound by published peaks: no chip measured"
        )
        speed.set(xscale="log", yscale="log", ylabel="agent steps/s", title=title)
        bytes_of.set(xscale="log", xlabel=name, ylabel="MB reduced in an update, of a device")
        bytes_of.set_ylim(bottom=0)
        speed.legend()
    figure.savefig(path, dpi=120)


def _text(value: Any) -> str:
    return (
        f"{value:,.4g}"
        if isinstance(value, float) and value < 1e4
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def main() -> None:
    makers = {"devices": weak_scaling, "processes": on_processes, "chips": on_chips, "peaks": against_the_bound}
    parser = common.parser(__doc__, tuple(makers), "scaling_benchmark")
    parser.add_argument("--agent", default="muesli")
    parser.add_argument("--env", default="atari_jax/pong")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--kinds", nargs="+", default=["v5e", "v5p"], choices=["v4", "v5e", "v5p", "v6e"])
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long one timed call takes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = common.parse(parser, tuple(makers))
    if options.one:
        row = on_devices(options.agent, options.env, options.settings, options.one, options.seconds, options.rounds)
        print(json.dumps(row), flush=True)
        return
    results = {name: makers[name](options) for name in options.cases}
    write_tables(results, options.out / "scaling.md")
    write_figure(results, options.out / "scaling.png")
    print(f"{options.out}: scaling.md, scaling.png")


if __name__ == "__main__":
    main()
