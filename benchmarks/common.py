"""What all benchmarks share: one command line, one JSON line a case, turns in timing, populations of seeds, tables, bands.

Every line of every benchmark says with what command, versions and machine its figures were made: `emit` adds them.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from podracer.config import JobConfig
    from podracer.environment import Environment
    from podracer.launch.job import Request
    from podracer.runtimes.anakin import Anakin

POINTS = 20
"""Of a learning curve, unless a benchmark says otherwise."""
LAST_SHARE = 0.2
"""Of a budget: what a score at its end is taken over."""
_MOST_POINTS = 100
_PACKAGES = ("jax", "jaxlib", "numpy")

# The command line.


def parser(doc: str, cases: Sequence[str] = (), out: str = "", seeds: int = 0, steps: int = 0) -> argparse.ArgumentParser:
    """What benchmarks have in common: names of cases, `--out`, `--seeds`, `--steps`; each only where it is given here.

    Args:
      doc: docstring of the benchmark. cases: all there are; none given on the command line means all of them. out: name of the
        folder under `runs/` that takes tables and figures. seeds, steps: the defaults.
    """
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if cases:
        known = f"of {'; '.join(cases)}; all if none is given"
        # argparse would check the default of "*" against `choices` too.
        made.add_argument("cases", nargs="*", metavar="CASE", help=known, type=functools.partial(_known, cases))
        made.set_defaults(cases=None)
    if out:
        made.add_argument("--out", type=Path, default=Path("runs") / out, help="folder of tables and figures")
    if seeds:
        made.add_argument("--seeds", type=int, default=seeds)
    if steps:
        made.add_argument("--steps", type=int, default=steps, help="agent steps of one seed")
    return made


def parse(parser: argparse.ArgumentParser, cases: Sequence[str] = ()) -> argparse.Namespace:
    """Parses the command line, fills in all cases where none is named, and makes the folder `--out`."""
    options = parser.parse_args()
    if cases and not options.cases:
        options.cases = list(cases)
    if "out" in options and options.out:
        options.out.mkdir(parents=True, exist_ok=True)
    return options


def _known(cases: Sequence[str], name: str) -> str:
    if name not in cases:
        raise argparse.ArgumentTypeError(f"there is no {name}: choose of {'; '.join(cases)}")
    return name


# Lines.


def emit(benchmark: str, **facts: Any) -> dict[str, Any]:
    """Prints one JSON line, the facts with `stamp`, and returns it. Arrays become lists, what is not finite null."""
    line = {"benchmark": benchmark, **_plain(facts), **stamp()}
    print(json.dumps(line), flush=True)
    return line


@functools.cache
def stamp() -> dict[str, Any]:
    """Command, versions and machine."""
    versions = {"podracer": _version("podracer-rl"), "python": platform.python_version()}
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "versions": {**versions, **{name: _version(name) for name in _PACKAGES}},
        "machine": machine(),
    }


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use and that there are, and memory."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = named[0] if named else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "cores_there": os.cpu_count(),
        "memory_gb": round(memory / 1e9),
    }
    if "jax" in sys.modules:
        import jax

        found["backend"] = jax.default_backend()
        if found["backend"] != "cpu":
            found["device"] = jax.devices()[0].device_kind
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating, np.ndarray)):
        return float(f"{float(value):.5g}") if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


# Timing.


def take_turns(functions: Mapping[str, Callable[[int], Any]], seconds: float, rounds: int) -> dict[str, list[float]]:
    """Times functions against each other, so that whatever else the machine does meets all of them.

    Args:
      functions: by name; `function(n)` repeats its work `n` times, and blocks until it is done. The first call compiles.
      seconds: about how long one timed call takes.

    Returns:
      Seconds of one repetition, by name, one for each round.
    """
    counts = {}
    for name, function in functions.items():
        function(1)
        start = time.perf_counter()
        function(2)
        counts[name] = max(1, int(2 * seconds / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function(counts[name])
            times[name].append((time.perf_counter() - start) / counts[name])
    return times


def medians(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """By name."""
    return {name: statistics.median(of_rounds) for name, of_rounds in values.items()}


# Populations of seeds in the Anakin runtime.


def population(
    request: "Request",
    settings: Mapping[str, Any] | None = None,
    *,
    agent: Any = None,
    wrap: Callable[["Environment"], "Environment"] = lambda environment: environment,
    points: int = POINTS,
) -> tuple["Anakin", "Environment", "JobConfig"]:
    """The runtime of the job that the command line would make, in calls that cut its budget into `points`, and its environment.

    Args:
      settings: over those of the request. agent: a class to take the place of the agent's own; wrap: what becomes of its
        environment.
    """
    import jax

    from podracer import config, registry
    from podracer.launch import job as jobs
    from podracer.plan import make_plan
    from podracer.runtimes.anakin import Anakin

    job = config.override(jobs.new_job(request)[0], settings or {})
    if agent is None:
        built, environment = jobs.build_agent(job)
    else:
        environment = wrap(registry.env(job.env_name).make(job.env))
        built = agent(environment.spec, job.agent)
    plan = make_plan(job, built, jax.local_device_count())
    plan = dataclasses.replace(plan, updates_per_call=math.ceil(plan.num_updates / points))
    return Anakin(built, environment, plan), environment, job


def members(values: Any, num_seeds: int, state: Any) -> Any:
    """Numbers of a population's members, leaves `[M, ...]`, as `[M * num_seeds, ...]`, or without that axis for one alone."""
    import jax
    import jax.numpy as jnp

    def spread(x: Any) -> Any:
        x = jnp.repeat(jnp.asarray(x, jnp.float32), num_seeds, axis=0)
        # Laid out as the rest of the state is: else the second call would compile again.
        return jax.device_put(x if len(x) > 1 else x[0], state.num_updates.sharding)

    return jax.tree.map(spread, values)


@dataclasses.dataclass(frozen=True)
class Training:
    """What came of a population; `P` points along the budget, `S` seeds.

    state: the last. steps: `[P]`, agent steps of one seed at the end of each point. metrics: `[P, S]` by name. seen: what
    `look` returned at each point. compile_seconds: until the first update was done; seconds: of all.
    """

    state: Any
    steps: np.ndarray
    metrics: Mapping[str, np.ndarray]
    seen: list[Any]
    compile_seconds: float
    seconds: float

    @property
    def whole(self) -> np.ndarray:
        """`[P]` bool: the points with enough episodes for a mean; the first call and the last are short."""
        least = np.min(self.metrics["episodes"], axis=1)
        return np.asarray((least > 0) & (least > 0.25 * np.median(least)))


def train(
    runtime: "Anakin", num_steps: int, state: Any = None, look: Callable[[Any], Any] = lambda state: None, start: float = 0.0
) -> Training:
    """Trains to the end of a budget. look: is shown each point's state. start: on `time.perf_counter`, of `seconds`."""
    from podracer.launch.loop import Counters, updates

    start = start or time.perf_counter()
    state = runtime.init() if state is None else state
    steps, metrics, seen, compile_seconds = [], [], [], 0.0
    for state, counters, call in updates(runtime, state, Counters(), num_steps):  # noqa: B020
        steps.append(min(counters.agent_steps))
        metrics.append(call.metrics)
        seen.append(look(state))
        if call.compiled:
            compile_seconds = time.perf_counter() - start
    by_name = {name: np.stack([np.asarray(call[name], np.float64) for call in metrics]) for name in metrics[0]}
    return Training(state, np.array(steps), by_name, seen, compile_seconds, time.perf_counter() - start)


# Tables and figures.


def spread(values: Any, form: str = "{:.2f}") -> str:
    """Median (least to greatest) of `[S]`, or `-` where all are nan."""
    values = np.asarray(values, np.float64)
    if np.isnan(values).all():
        return "-"
    median, least, greatest = (form.format(f(values)) for f in (np.nanmedian, np.nanmin, np.nanmax))
    return f"{median} ({least} to {greatest})"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """In markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def figure(columns: int = 1, rows: int = 1, width: float = 7.0, height: float = 4.0) -> tuple[Any, np.ndarray]:
    """A figure that needs no screen, and its axes `[rows, columns]`. width, height: of one of them, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(made)
    axes = made.subplots(rows, columns, squeeze=False)
    for one in axes.flat:
        one.grid(alpha=0.3)
    return made, axes


def band(axes: Any, x: Any, values: Any, label: str, colour: str, style: str = "-") -> None:
    """The median over seeds and the band between the quartiles. values: `[X, S]` over `x` `[X]`; nan counts for nothing."""
    values = np.asarray(values, np.float64)
    seen = ~np.all(np.isnan(values), axis=1)
    x, values = np.asarray(x)[seen], values[seen]
    axes.plot(x, np.nanmedian(values, axis=1), style, color=colour, label=label)
    if values.shape[1] > 1:
        axes.fill_between(x, *np.nanquantile(values, [0.25, 0.75], axis=1), color=colour, alpha=0.2, linewidth=0)


def curve(at: Any, values: Any, x: str = "agent steps of one seed", y: str = "episode return (training)", **more: Any) -> Any:
    """A curve for a JSON line: values `[P, S]` at points `[P]`, of which at most 100 are kept, and what the axes are."""
    values = np.asarray(values, np.float64)
    kept = np.unique(np.linspace(0, len(values) - 1, min(len(values), _MOST_POINTS)).round().astype(int))
    return {"x": x, "y": y, **more, "at": np.asarray(at)[kept], "values": values[kept]}


def rows_of(output: str) -> Iterator[dict[str, Any]]:
    """The JSON lines among what a benchmark has printed."""
    for line in output.splitlines():
        if line.startswith("{"):
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue
