"""Options that commands share: numbers, names that complete, and all that makes a job."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from podracer import registry
from podracer.config import ConfigError
from podracer.launch.surroundings import prepare

_SEBULBA_FLAGS = ("actor_devices", "learner_devices", "max_lag", "store", "listen")


class Count(click.ParamType[int]):
    """A whole number, written as 2000000, 2_000_000 or 2e6."""

    name = "N"

    def __init__(self, least: int):
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            try:
                number = int(float(value))
                exact = float(value) == number
            except (ValueError, OverflowError):
                exact = False
            if not exact:
                self.fail(f"{value!r} is no whole number", param, ctx)
        if number < self.least:
            self.fail(f"{value} is less than {self.least}", param, ctx)
        return number


class Address(click.ParamType[str]):
    """HOST:PORT."""

    name = "HOST:PORT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        host, _, port = str(value).rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            self.fail(f"{value!r}: write HOST:PORT, for example 127.0.0.1:8000", param, ctx)
        return str(value)


def complete_agent(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    del ctx, param
    return [name for name in registry.names(registry.AGENTS) if name.startswith(incomplete)]


def complete_env(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Suites at first, without loading one; the tasks of a suite once its name is there."""
    del ctx, param
    suite, slash, _ = incomplete.partition("/")
    if not slash:
        return [name for name in registry.names(registry.ENVS) if name.startswith(incomplete)]
    try:
        prepare()
        tasks = registry.suite(suite).tasks()
    except Exception:  # completion must never print
        return []
    return [name for task in tasks if (name := f"{suite}/{task}").startswith(incomplete)]


def apply(options: Sequence[Callable[..., Any]], command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command several options, in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of a job, the same for every runtime."""
    options = [
        click.option("--agent", metavar="NAME", shell_complete=complete_agent, help="Agent: a name, or package.module:Class."),
        click.option("--env", metavar="NAME", shell_complete=complete_env, help="Environment: suite or suite/task."),
        click.option("--steps", type=Count(1), help="Budget in agent steps of one seed."),
        click.option("--seed", type=Count(0), help="Seed from which all randomness derives.  [default: 0]"),
        click.option("--seeds", type=Count(1), help="Train a population of seeds: seed, seed + 1, ...  [default: 1]"),
        click.option("--devices", type=Count(0), help="Devices to use; 0 takes all.  [default: 1]"),
        click.option("--preset", metavar="NAME", help="A named preset of the agent (podracer agents lists them)."),
        click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="Any setting; repeat it for several."),
    ]
    return apply(options, command)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of what is done with a job."""
    options = [
        click.option("--run-dir", type=click.Path(path_type=Path, file_okay=False), help="Folder of the run."),
        click.option("--resume", is_flag=True, help="Go on with the run in --run-dir."),
        click.option("--wandb", metavar="PROJECT", help="Send metrics to Weights & Biases too: PROJECT or ENTITY/PROJECT."),
        click.option("--dry-run", is_flag=True, help="Print settings and plan, and stop."),
    ]
    return apply(options, command)


def sebulba_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of Sebulba alone: short forms of `--set sebulba.*`."""
    options = [
        click.option("--actor-devices", type=Count(1), help="Devices that act.  [default: a quarter, or the only one]"),
        click.option(
            "--learner-devices",
            type=Count(1),
            help="Devices that learn.  [default: of the others, as many as divide the environments]",
        ),
        click.option("--max-lag", type=Count(0), help="Updates that may lie between acting and learning.  [default: 4]"),
        click.option(
            "--store",
            type=click.Choice(["queue", "reverb"]),
            help="Where unrolls and replay wait.  [default: queue, in this process]",
        ),
        click.option(
            "--listen", metavar="HOST:PORT", help="Of --store reverb, for other actors.  [default: 127.0.0.1:0, a free port]"
        ),
    ]
    return apply(options, command)


def sebulba_request(options: dict[str, Any]) -> dict[str, Any]:
    """From the options of a command to the fields of a `job.Request`. Raises ConfigError."""
    if options["devices"] is not None:
        raise ConfigError("--devices is for Anakin: say --actor-devices and --learner-devices")
    flags = [f"sebulba.{name}={options[name]}" for name in _SEBULBA_FLAGS if options[name] is not None]
    fields = {name: value for name, value in options.items() if name not in _SEBULBA_FLAGS}
    return {**fields, "runtime": "sebulba", "settings": (*options["settings"], *flags)}
