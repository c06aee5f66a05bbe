"""The command `podracer`. Nothing heavy is imported until a command needs it: `--help` and completion stay quick."""

import dataclasses
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import click

from podracer import __version__, registry
from podracer.config import ConfigError, parse_assignments
from podracer.launch.actor import actor
from podracer.launch.cluster import commands
from podracer.launch.cluster.commands import ClusterRequest, cluster_options
from podracer.launch.cluster.sweep import sweep
from podracer.launch.options import Count, complete_env, job_options, run_options, sebulba_options, sebulba_request
from podracer.launch.plan_command import plan
from podracer.launch.reverb import reverb
from podracer.launch.surroundings import prepare
from podracer.launch.words import complain, row

_LAST_WAIT_SECONDS = 7 * 86400.0  # for the host that evaluates
_SEBULBA_HELP = """Train an agent on environments of the host (Sebulba).

Actor devices act, learner devices learn; agents, presets and settings are those of Anakin. Every
line shows where the time of actors and of the learner goes.

\b
Examples:
  podracer launch sebulba --agent impala --env gymnasium/CartPole-v1
  podracer launch sebulba --agent muesli --env atari/pong --max-lag 2
  podracer launch sebulba --agent impala --env catch --set sebulba.sync=true    in turns; as deterministic as Anakin
  podracer launch sebulba --agent impala --env catch --store reverb --listen 127.0.0.1:8000
  podracer actor --connect 127.0.0.1:8000               more actors for it, from another process or host
"""
_LAUNCH_HELP = """Train an agent in one XLA program (Anakin).

    Environment, acting and learning are together in it.

    \b
    Examples:
      podracer launch anakin --agent muesli --env catch
      podracer launch anakin --agent impala --env gymnax/CartPole-v1 --steps 2e6 --seed 1
      podracer launch anakin --agent impala --env catch --seeds 8 --run-dir runs/population
      podracer launch anakin --agent muesli --env catch --set agent.learning_rate=3e-4 --dry-run
      podracer launch anakin --resume --run-dir runs/population

    Without --steps, the budget is that of the agent's preset for this environment, or 1,000,000 agent steps where it has
    none. What is chosen comes from, in this order, each over the one before: defaults, preset, --set, other options.
    """


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="podracer")
def cli() -> None:
    """Train reinforcement-learning agents at the scale of the hardware.

    \b
    Examples:
      podracer launch anakin --agent muesli --env catch     train, evaluate, leave a run folder
      podracer evaluate runs/my-run --episodes 100          play what was learned
      podracer agents; podracer envs gymnax                 what there is
      podracer doctor                                       what is installed and what is missing

    \b
    Tab completion, for bash (zsh and fish likewise):
      eval "$(_PODRACER_COMPLETE=bash_source podracer)"
    """


@cli.group()
def launch() -> None:
    """Train an agent in a runtime."""


@launch.command(help=_LAUNCH_HELP)
@job_options
@cluster_options
@run_options
def anakin(run_dir: Path | None, resume: bool, dry_run: bool, **options: Any) -> None:
    from podracer.launch.job import Request

    cluster = commands.take(options)
    _launch(Request(runtime="anakin", **options), run_dir, resume, dry_run, cluster)


@launch.command(help=_SEBULBA_HELP)
@job_options
@sebulba_options
@cluster_options
@run_options
def sebulba(run_dir: Path | None, resume: bool, dry_run: bool, **options: Any) -> None:
    from podracer.launch.job import Request

    cluster = commands.take(options)
    options["settings"] = commands.of_hosts(options["settings"], options["hosts"] or 1)
    _launch(Request(**sebulba_request(options)), run_dir, resume, dry_run, cluster)


def _launch(request: Any, run_dir: Path | None, resume: bool, dry_run: bool, cluster: ClusterRequest) -> None:
    """Runs a job; shared by all runtimes."""
    from podracer.launch.signals import Stopped, StopRequests

    with StopRequests() as requests:
        prepare()
        from podracer import hosts
        from podracer.launch import job as jobs

        host = hosts.join()
        try:
            if host.generation:  # a launcher started it
                request = dataclasses.replace(request, hosts=host.num)
            job, preset, run_dir = _job(request, run_dir, resume)
            if not host.generation and (job.num_hosts > 1 or cluster.given):
                if not cluster.ray_address:  # else hosts are of another kind than this one
                    parts = jobs.build(job)
                    print("\n".join(jobs.outline(job, parts, {}, preset, verbose=dry_run)), flush=True)
                code = 0 if dry_run else commands.execute(job, preset, run_dir, cluster, requests)
            else:
                code = _run(job, preset, run_dir, resume, dry_run, requests, host)
        except Stopped as stopped:
            code = stopped.exit_code
        except BaseException:
            _end_at_once(host)
            raise
        host.wait("the end", _LAST_WAIT_SECONDS)
    _leave(code)


def _job(request: Any, run_dir: Path | None, resume: bool) -> tuple[Any, str, Path]:
    """The job, the preset that it took, and its run folder."""
    from podracer.launch import job as jobs

    if resume and run_dir is None:
        raise ConfigError("--resume needs --run-dir, the folder of the run to go on with")
    if resume and run_dir is not None:
        stored, preset = jobs.load_job(run_dir)
        job = jobs.resumed_job(request, stored)
    else:
        job, preset = jobs.new_job(request)
    run_dir = run_dir or Path("runs") / f"{_slug(job.agent_name)}-{_slug(job.env_name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not resume and (run_dir / "config.json").exists():
        raise ConfigError(f"{run_dir} already holds a run: go on with --resume, or choose another --run-dir")
    return job, preset, run_dir


def _run(job: Any, preset: str, run_dir: Path, resume: bool, dry_run: bool, requests: Any, host: Any) -> int:
    """This host's part of a job, or all of it. Returns the exit code."""
    from podracer.checkpoint import Superseded
    from podracer.launch.train import ActorsFailed, Diverged, train

    try:
        return train(job, preset, run_dir, resume=resume, dry_run=dry_run, requests=requests, host=host)
    except (Diverged, ActorsFailed, Superseded) as error:
        complain(error)
        code = 3 if isinstance(error, Superseded) else 1
        if host.num > 1:
            _leave_now(code)
        return code


def _end_at_once(host: Any) -> None:
    """Of several hosts, ends this one after an error: at an orderly end it would wait for the others, who wait for it."""
    if host.num > 1:
        error = sys.exc_info()[1]
        mistake = isinstance(error, Exception) and _is_users_mistake(error)
        if mistake:
            complain(error)
        else:
            traceback.print_exc()
        _leave_now(2 if mistake else 1)


def _leave(code: int) -> NoReturn:
    """Ends the process. An actor's thread that could not be ended, since it compiles, would abort the interpreter's own end."""
    if any(thread.name.startswith("actor-") for thread in threading.enumerate()):
        _leave_now(code)
    sys.exit(code)


def _leave_now(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@cli.command()
@click.argument("run_dir", type=click.Path(path_type=Path, file_okay=False))
@click.option("--episodes", type=Count(1), default=32, show_default=True, help="Episodes to play.")
@click.option("--seed", type=Count(0), default=0, show_default=True, help="Seed of the evaluation.")
@click.option("--video", type=click.Path(path_type=Path, dir_okay=False), help="Write one episode there, as mp4.")
@click.option(
    "--opponent",
    metavar="NAME",
    help="In a game for two: random, one that the game has, a run's folder or package.module:function.",
)
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="A setting of agent.* or env.* over the run's own.")
def evaluate(
    run_dir: Path, episodes: int, seed: int, video: Path | None, opponent: str | None, settings: tuple[str, ...]
) -> None:
    """Play what a run has learned.

    RUN_DIR alone says what to build; its newest checkpoint has the parameters. Without --opponent an agent plays both sides of
    a game for two; with it, each side begins half of the games.

    \b
    Examples:
      podracer evaluate runs/my-run --episodes 100 --video pong.mp4
      podracer evaluate runs/tic-tac-toe --opponent perfect --episodes 500
      podracer evaluate runs/go --opponent runs/older-go
      podracer evaluate runs/go --set agent.evaluation.num_simulations=200
    """
    from podracer.launch.signals import Stopped, StopRequests

    with StopRequests() as requests:
        prepare()
        from podracer.launch import inspect_run

        try:
            inspect_run.evaluate_run(run_dir, episodes, seed, video, opponent, parse_assignments(settings), requests)
        except Stopped as stopped:
            sys.exit(stopped.exit_code)


@cli.command()
def agents() -> None:
    """List agents and their presets."""
    prepare()
    for name in registry.names(registry.AGENTS):
        try:
            found = registry.agent_class(name)
        except ImportError as error:
            row(name, f"cannot be imported: {error}", 12)
            continue
        summary = (sys.modules[found.__module__].__doc__ or found.__doc__ or "").strip().splitlines()
        row(name, summary[0] if summary else "", 12)
        for preset_name, preset in sorted(found.presets.items()):
            print(f"  {preset_name:28} {preset.num_steps:>13,} steps")


@cli.command()
@click.argument("suite", required=False, shell_complete=complete_env)
def envs(suite: str | None) -> None:
    """List environments: all suites, or the tasks of SUITE."""
    prepare()
    if suite is None:
        for name in registry.names(registry.ENVS):
            row(name, _of_suite(name), 12)
        print("podracer envs SUITE lists the environments of a suite")
        return
    found = registry.suite(suite)
    for task in found.tasks():
        print(f"{suite}/{task}" if task else suite)


def _of_suite(name: str) -> str:
    try:
        suite = registry.suite(name)
    except ImportError as error:
        return f"cannot be imported: {error}"
    missing = "" if suite.available() else f" (missing: {suite.how_to_get})"
    return f"{suite.summary}{missing}"


@cli.command()
def doctor() -> None:
    """Say what is installed, and how to get what is not."""
    prepare()
    from podracer.launch.doctor import examine

    sys.exit(examine())


cli.add_command(actor)
cli.add_command(plan)
cli.add_command(reverb)
for command in (commands.status, commands.stop, commands.logs, commands.submit, sweep):
    cli.add_command(command)


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in name)


def _is_users_mistake(error: Exception) -> bool:
    if isinstance(error, ConfigError | registry.NotFound):
        return True
    for module, name in (("podracer.environment", "Unsupported"), ("podracer.stores.reverb", "ReverbError")):
        found = sys.modules.get(module)  # not imported just to ask
        if found is not None and isinstance(error, getattr(found, name)):
            return True
    return False


def main() -> None:
    """Entry point. A user's mistake is one line on stderr and exit code 2; a bug keeps its traceback."""
    try:
        cli(standalone_mode=False, prog_name="podracer")
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        sys.exit(2)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "podracer"
        complain(f"{error.format_message().rstrip('.')} ({where} --help)")
        sys.exit(2)
    except click.ClickException as error:
        complain(error.format_message())
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if not _is_users_mistake(error):
            raise
        complain(error)
        sys.exit(2)


if __name__ == "__main__":
    main()
