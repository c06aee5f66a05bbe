"""`podracer sweep`: many runs of one job under other settings, placed on a cluster's hosts by Ray Tune."""

import ast
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from podracer.config import ConfigError, one_line
from podracer.launch.cluster.ray_places import authenticate
from podracer.launch.options import Count

_TAIL_CHARACTERS = 300
_SAMPLERS = ("uniform", "loguniform", "randint", "choice")


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--grid", multiple=True, metavar="KEY=A,B,...", help="Every one of these values; several keys multiply.")
@click.option(
    "--sample",
    multiple=True,
    metavar="KEY=F(...)",
    help=f"A draw for each run: {', '.join(_SAMPLERS)}, as loguniform(1e-4,1e-2).",
)
@click.option(
    "--samples",
    type=Count(1),
    default=1,
    show_default=True,
    help="Draws for each point of the grid; without --sample, seeds 0, 1, ...",
)
@click.option("--cpus", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="That a run takes.")
@click.option("--gpus", type=click.FloatRange(0), default=0.0, show_default=True, help="That a run takes.")
@click.option("--ray-address", metavar="ADDRESS", help="The Ray cluster.  [default: one on this machine]")
@click.option(
    "--sweep-dir", type=click.Path(path_type=Path, file_okay=False), required=True, help="A folder that all hosts see."
)
@click.argument("launch", nargs=-1, required=True, type=click.UNPROCESSED)
def sweep(
    grid: tuple[str, ...],
    sample: tuple[str, ...],
    samples: int,
    cpus: float,
    gpus: float,
    ray_address: str | None,
    sweep_dir: Path,
    launch: tuple[str, ...],
) -> None:
    """Run a job under many settings; say which was best.

    LAUNCH is what would follow `podracer launch`. Each run has a folder of its own in --sweep-dir; the same command again goes
    on with those that have not ended, and does none twice.

    \b
    Example:
      podracer sweep --sweep-dir sweeps/lr --grid agent.learning_rate=1e-3,3e-4 --samples 2
        --sample seed=randint(0,1000) -- anakin --agent impala --env catch --steps 1e5
    """
    if any(word in ("--run-dir", "--resume", "--hosts") for word in launch):
        raise ConfigError("podracer sweep gives every run a folder of its own: leave --run-dir, --resume and --hosts out")
    authenticate(ray_address)
    try:
        import ray
        from ray import tune
    except ImportError as error:
        raise ConfigError("podracer sweep needs Ray: pip install 'podracer-rl[ray]'") from error
    space = {key: tune.grid_search(values) for key, values in (_grid(text) for text in grid)}
    space |= {key: getattr(tune, name)(*arguments) for key, name, arguments in (_sampler(text) for text in sample)}
    if samples > 1 and not sample:
        space["seed"], samples = tune.grid_search(list(range(samples))), 1
    if not ray_address:  # else hosts are of another kind than this one
        _check(launch)
    sweep_dir = sweep_dir.absolute()
    sweep_dir.mkdir(parents=True, exist_ok=True)
    _remember(sweep_dir, [list(grid), list(sample), list(launch)])
    try:
        ray.init(address=ray_address, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    except Exception as error:
        raise ConfigError(f"--ray-address {ray_address}: {one_line(error, 400)}") from error
    folder = os.getcwd()

    def run(settings: dict[str, Any]) -> dict[str, Any]:
        return _run(sweep_dir, folder, launch, settings)

    try:
        storage = str(sweep_dir / "tune")
        resources = tune.with_resources(run, {"cpu": cpus, "gpu": gpus})
        if tune.Tuner.can_restore(f"{storage}/runs"):
            tuner = tune.Tuner.restore(f"{storage}/runs", trainable=resources, resume_errored=True)
        else:
            tuner = tune.Tuner(
                resources,
                param_space=space,
                tune_config=tune.TuneConfig(num_samples=samples),
                run_config=tune.RunConfig(name="runs", storage_path=storage, verbose=0),
            )
        results = tuner.fit()
    finally:
        ray.shutdown()
    ended = [results[index] for index in range(len(results))]
    _tell(sweep_dir, [(result.config, result.metrics or {}, result.error) for result in ended])


def _check(launch: tuple[str, ...]) -> None:
    """Refuses what no run of it could begin with, before Ray starts."""
    command = [sys.executable, "-m", "podracer.launch.cli", "launch", *launch, "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError((done.stderr.strip().splitlines() or ["it cannot be launched"])[-1].removeprefix("podracer: "))


def _run(sweep_dir: Path, folder: str, launch: tuple[str, ...], settings: Mapping[str, Any]) -> dict[str, Any]:
    """One run, as a process of its own; on whatever host Ray chose. Returns its summary."""
    name = ",".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in settings.items())
    run_dir = sweep_dir / (name or "run")
    command = [sys.executable, "-m", "podracer.launch.cli", "launch", *launch, "--run-dir", str(run_dir)]
    for key, value in settings.items():
        command += [f"--{key}", str(value)] if key in ("seed", "steps") else ["--set", f"{key}={value}"]
    if (run_dir / "config.json").exists():
        command.append("--resume")
    if not (run_dir / "summary.json").exists():
        done = subprocess.run(
            command, cwd=folder, env=environment(sweep_dir), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        (run_dir if run_dir.exists() else sweep_dir).joinpath("output.log").write_text(done.stdout)
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {done.stdout[-_TAIL_CHARACTERS:]}")
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return {"run_dir": str(run_dir), **{key: value for key, value in summary.items() if isinstance(value, (int, float))}}


def environment(sweep_dir: Path) -> dict[str, str]:
    """Of a run's process: with --wandb the runs of a sweep are a group, unless the user says which."""
    return {"WANDB_RUN_GROUP": sweep_dir.name, **os.environ}


def _tell(sweep_dir: Path, found: list[tuple[Any, dict[str, Any], Any]]) -> None:
    """A line for each run, the best first, and the same in `sweep.json`; exit code 1 where none ended well."""
    rows = [
        {"settings": settings, "error": str(error).strip().splitlines()[-1] if error else None, **metrics}
        for settings, metrics, error in found
    ]
    rows.sort(key=lambda row: row.get("eval_return_mean", float("-inf")), reverse=True)
    for row in rows:
        words = ", ".join(f"{key}={value}" for key, value in row["settings"].items())
        outcome = row["error"] or f"return {row['eval_return_mean']:.3f} (std {row['eval_return_std']:.3f})  {row['run_dir']}"
        print(f"{words or 'run'}: {outcome}")
    table = {"time": time.time(), "runs": rows}
    (sweep_dir / "sweep.json").write_text(json.dumps(table, indent=2, default=str) + "\n")
    if all(row["error"] for row in rows):
        sys.exit(1)


def _remember(sweep_dir: Path, request: list[Any]) -> None:
    """Refuses to mix two sweeps in one folder."""
    path = sweep_dir / "request.json"
    if path.exists() and json.loads(path.read_text()) != request:
        raise ConfigError(f"{sweep_dir} holds another sweep: choose another --sweep-dir")
    path.write_text(json.dumps(request) + "\n")


def _grid(text: str) -> tuple[str, list[Any]]:
    key, equals, values = text.partition("=")
    if not key or not equals or not values:
        raise ConfigError(f"--grid {text}: write KEY=VALUE,VALUE,...")
    return key, [_value(value) for value in values.split(",")]


def _sampler(text: str) -> tuple[str, str, tuple[Any, ...]]:
    key, _, call = text.partition("=")
    name, _, rest = call.partition("(")
    try:
        arguments = ast.literal_eval(f"({rest.removesuffix(')')},)")
    except (ValueError, SyntaxError):
        arguments = ()
    if not key or name not in _SAMPLERS or not arguments:
        raise ConfigError(f"--sample {text}: write KEY=F(...), where F is {', '.join(_SAMPLERS)}: seed=randint(0,1000)")
    return key, name, arguments


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
