"""The commands of jobs on many hosts: `--hosts` of `podracer launch`, and `podracer status`, `stop`, `logs` and `submit`."""

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from podracer.config import ConfigError, one_line
from podracer.launch.options import Count, apply
from podracer.launch.words import complain

_FOLLOW_SECONDS = 0.5
_STOP_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class ClusterRequest:
    """What a user said of hosts, as of `cluster_options`."""

    ray_address: str | None
    actors: str | None
    host_resources: str | None
    tpu: str | None
    stuck_after: float

    @property
    def given(self) -> bool:
        """Whether it takes a cluster even for one host."""
        return bool(self.ray_address or self.tpu or self.actors)


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of a job on many hosts; `take` gathers them."""
    options = [
        click.option("--hosts", type=Count(1), help="Hosts that run the job together, through Ray.  [default: 1]"),
        click.option(
            "--ray-address", metavar="ADDRESS", help="The Ray cluster: HOST:PORT or auto.  [default: simulated hosts here]"
        ),
        click.option(
            "--actors", metavar="N | MIN:MAX", help="Of Sebulba: processes of actors, on CPUs.  [default: as many as hosts]"
        ),
        click.option("--host-resources", metavar="NAME=N,...", help="What a host gives, in Ray's words.  [default: CPU=1]"),
        click.option("--tpu", metavar="VERSION:TOPOLOGY", help="Reserve a whole TPU slice through Ray, for example v6e:4x4."),
        click.option(
            "--stuck-after",
            type=click.FloatRange(1.0),
            default=300.0,
            show_default=True,
            help="Seconds without an update after which all hosts start again from the last checkpoint.",
        ),
    ]
    return apply(options, command)


def take(options: dict[str, Any]) -> ClusterRequest:
    """Takes the options of `cluster_options` but for `hosts`, which is the job's, out of a command's options."""
    return ClusterRequest(**{field.name: options.pop(field.name) for field in dataclasses.fields(ClusterRequest)})


def execute(job: Any, preset: str, run_dir: Path, request: ClusterRequest, requests: Any) -> int:
    """Makes the run folder of a job and runs it on its hosts; see `gang.Gang.run`, but GaveUp is a line and exit code 1.

    Raises:
      ConfigError: what was asked for cannot be. Stopped: asked to stop, and saved.
    """
    from podracer.launch.cluster.gang import Gang, GaveUp, Policy, actor_command, learner_command
    from podracer.launch.cluster.ray_places import OnRay
    from podracer.launch.job import save_job

    run_dir = run_dir.absolute()
    listens = job.runtime == "sebulba" and job.sebulba.store == "reverb"
    least, most = _actors(request.actors, job, listens)
    resources = _resources(request.host_resources)
    policy = Policy(job.num_hosts, least, most, stuck_seconds=request.stuck_after)
    print(f"run folder {run_dir}; starting {'Ray' if request.ray_address is None else 'on ' + request.ray_address}", flush=True)
    places = OnRay(request.ray_address, job.num_hosts, resources, os.getcwd(), request.tpu or "")
    try:
        save_job(run_dir, job, preset)
        actors = actor_command(max(job.sebulba.threads, 1)) if most else None
        command = learner_command(job.runtime, run_dir, listens)
        return Gang(places, policy, run_dir, command, actors, requests, lambda: _learner_wait(run_dir)).run()
    except GaveUp as error:
        complain(error)
        return 1
    finally:
        places.close()


def of_hosts(settings: Sequence[str], num_hosts: int) -> tuple[str, ...]:
    """Settings of Sebulba on several hosts, before what the user set: actors are processes of their own, through Reverb."""
    return ("sebulba.store=reverb", "sebulba.threads=0", *settings) if num_hosts > 1 else tuple(settings)


def _actors(text: str | None, job: Any, listens: bool) -> tuple[int, int]:
    """Least and most processes of actors."""
    if text is None:
        number = job.num_hosts if listens and not job.sebulba.threads else 0
        return number, number
    least, _, most = text.partition(":")
    if not least.isdecimal() or (most and not most.isdecimal()) or int(most or least) < int(least):
        raise ConfigError(f"--actors {text}: write a number, or MIN:MAX")
    if not listens:
        raise ConfigError("--actors is for Sebulba with --store reverb, which processes of actors can join")
    return int(least), int(most or least)


def _resources(text: str | None) -> Mapping[str, float]:
    try:
        pairs = [part.split("=") for part in (text or "CPU=1").split(",")]
        return {name: float(number) for name, number in pairs}
    except ValueError as error:
        raise ConfigError(f"--host-resources {text}: write NAME=NUMBER, several with commas: CPU=8,TPU=4") from error


def _learner_wait(run_dir: Path) -> float | None:
    from podracer.metrics.log import read_rows

    rows = read_rows(run_dir)
    return rows[-1].get("learner_wait") if rows else None


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path, file_okay=False))
def status(run_dir: Path) -> None:
    """Say how a run on many hosts is.

    Its processes, how far it is, and what was started again and why.
    """
    from podracer.launch.cluster import record
    from podracer.metrics.log import read_rows

    state = record.read(run_dir)
    if state is None:
        raise ConfigError(f"{run_dir} holds no run on several hosts: it has no cluster/state.json")
    rows = read_rows(run_dir)
    launcher = state["launcher"]
    print(f"{state['state']}, generation {state['generation']}, launcher {launcher['node']}:{launcher['pid']}")
    if rows:
        print(f"{rows[-1]['num_agent_steps']:,} agent steps, {rows[-1]['num_updates']:,} updates, {_ago(rows_age(run_dir))}")
    for name, facts in state.get("processes", {}).items():
        print(f"  {name:12} node {facts['node']} pid {facts['pid']}")
    print(f"{len(state['restarts'])} restarts")
    for entry in state["restarts"][-5:]:
        print(f"  {_ago(time.time() - entry['time'])}: {entry['what']}: {entry['reason']}")
    if state["state"] == "lost":
        print(f"its launcher says nothing any more: podracer launch ... --resume --run-dir {run_dir} goes on")


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path, file_okay=False))
def stop(run_dir: Path) -> None:
    """Let a run on many hosts save and end.

    From any host that sees its folder.
    """
    from podracer.launch.cluster import record

    state = record.read(run_dir)
    if state is None or state["state"] not in record.RUNNING:
        raise ConfigError(f"{run_dir} is no run that goes on ({state['state'] if state else 'no cluster/state.json'})")
    record.request_stop(run_dir)
    deadline = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < deadline:
        now = record.read(run_dir)
        if now is not None and now["state"] not in record.RUNNING:
            print(f"{now['state']}")
            return
        time.sleep(_FOLLOW_SECONDS)
    raise ConfigError(f"{run_dir} still ran after {_STOP_SECONDS:.0f} s: podracer status {run_dir}")


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path, file_okay=False))
@click.option("--process", metavar="NAME", help="One alone, for example learner-1 or actor-0.  [default: all]")
@click.option("--follow", "-f", is_flag=True, help="Go on until the run ends.")
def logs(run_dir: Path, process: str | None, follow: bool) -> None:
    """Print what a run on many hosts has written."""
    from podracer.launch.cluster import record

    found = record.logs(run_dir)
    if not found:
        raise ConfigError(f"{run_dir} holds no run on several hosts: it has no logs in cluster/")
    if process is not None and process not in found:
        raise ConfigError(f"{run_dir} has no log of {process}; there are {', '.join(found)}")
    places: dict[str, int] = {}
    while True:
        state = record.read(run_dir)
        for name, path in record.logs(run_dir).items():
            if process in (None, name):
                with path.open() as file:
                    file.seek(places.get(name, 0))
                    text = file.read()
                    places[name] = file.tell()
                for line in text.splitlines():
                    print(line if process else f"{name}: {line}", flush=True)
        if not follow or state is None or state["state"] not in record.RUNNING:
            return
        time.sleep(_FOLLOW_SECONDS)


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--ray-address", metavar="URL", required=True, help="Of the cluster's dashboard: http://HOST:8265.")
@click.option("--working-dir", type=click.Path(exists=True, file_okay=False), help="Folder to send along.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Show what the job writes until it ends.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def submit(ray_address: str, working_dir: str | None, wait: bool, command: tuple[str, ...]) -> None:
    """Let a cluster run a job by itself, through Ray Jobs.

    It goes on when this terminal closes.

    \b
    Example:
      podracer submit --ray-address http://head:8265 -- launch sebulba --agent impala --env gymnasium/CartPole-v1
        --hosts 4 --run-dir /shared/runs/cartpole
    """
    import shlex

    from podracer.launch.cluster.ray_places import authenticate

    authenticate(ray_address)
    try:
        from ray.exceptions import RayError
        from ray.job_submission import JobStatus, JobSubmissionClient
    except ImportError as error:
        raise ConfigError("podracer submit needs Ray: pip install 'podracer-rl[ray]'") from error
    if command[0] != "launch":
        raise ConfigError(f"podracer submit runs podracer launch, not {command[0]}: put -- before the command")
    if "--run-dir" not in command:
        raise ConfigError("podracer submit: say --run-dir, a folder that all hosts see")
    try:
        client = JobSubmissionClient(ray_address)
        job = client.submit_job(
            entrypoint=shlex.join(["podracer", *command, "--ray-address", "auto"]),
            runtime_env={"working_dir": working_dir} if working_dir else {},
        )
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise ConfigError(f"--ray-address {ray_address}: {one_line(error, 400)}") from error
    print(f"job {job}: podracer status, logs and stop take its run folder", flush=True)
    told = 0
    while wait:
        state, text = client.get_job_status(job), client.get_job_logs(job)
        print(text[told:], end="", flush=True)
        told = len(text)
        if state.is_terminal():
            sys.exit(0 if state == JobStatus.SUCCEEDED else 1)
        time.sleep(_FOLLOW_SECONDS)


def rows_age(run_dir: Path) -> float:
    """Seconds since metrics.jsonl grew."""
    return time.time() - (run_dir / "metrics.jsonl").stat().st_mtime


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s ago" if seconds < 120 else f"{seconds / 60:.0f} min ago"
