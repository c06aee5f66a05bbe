"""The command `podracer plan`."""

import sys
from typing import Any

import click

from podracer.config import ConfigError
from podracer.launch.options import Count, apply, job_options, sebulba_options, sebulba_request
from podracer.launch.surroundings import prepare

_HELP = """Say what a job of {runtime} would be on hardware that is not here.

    Devices, batches, memory, speed and cost, of a pod or a host. With --topology the job's own program is
    compiled for those chips, by libtpu and without a TPU: out of memory is said here, with the nearest configuration that fits,
    and ends with exit code 2. What is not set by hand grows with the devices, since presets are for one. Speed, time and cost
    are bounds by published peaks. Without --topology it is about this host.

    \b
    Examples:
{examples}
    """
_ANAKIN = """      podracer plan anakin --agent muesli --env atari_jax/pong --topology v5e-256
      podracer plan anakin --agent muesli --env atari_jax/pong --topology v5p-64 --budget 2e9 --price-per-chip-hour 4.2
      podracer plan anakin --agent muesli --env catch --topology h100-8 --json
      podracer plan anakin --agent muesli --env catch --devices 0        the devices of this host"""
_SEBULBA = """      podracer plan sebulba --agent impala --env gymnasium/CartPole-v1 --topology v5e-8
      podracer plan sebulba --agent muesli --env atari/pong --topology v6e-8 --actor-devices 2"""


def _plan_options(command: Any) -> Any:
    options = [
        click.option("--topology", metavar="NAME", help="v5e-N, v6e-N (chips), v4-N, v5p-N (cores), h100-N, or v5p:4x4x4."),
        click.option("--budget", type=Count(1), metavar="FRAMES", help="Frames of the environments, in place of --steps."),
        click.option("--price-per-chip-hour", type=click.FloatRange(min=0), metavar="MONEY", help="What a chip costs an hour."),
        click.option(
            "--efficiency",
            type=click.FloatRange(min=0, max=1, min_open=True),
            default=1.0,
            metavar="SHARE",
            help="Share of the bound that is reached, where you have measured it.  [default: 1]",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    ]
    return apply(options, command)


@click.group()
def plan() -> None:
    """Say what a job would be on hardware that is not here."""


@plan.command()
@click.argument("platform", type=click.Choice(["tpu", "gpu"]), default="tpu")
def install(platform: str) -> None:
    """Fetch the compiler for chips that are not here.

    libtpu (213 MB, under Google's terms), or JAX's CUDA plugin (182 MB).
    """
    from podracer.aot import compilers

    print(f"{compilers.NAMES[platform]} is in {compilers.install(platform)}")


@plan.command(help=_HELP.format(runtime="Anakin", examples=_ANAKIN))
@job_options
@_plan_options
def anakin(**options: Any) -> None:
    _plan({**options, "runtime": "anakin"})


@plan.command(help=_HELP.format(runtime="Sebulba", examples=_SEBULBA))
@job_options
@sebulba_options
@_plan_options
def sebulba(**options: Any) -> None:
    _plan(sebulba_request(options))


def _plan(options: dict[str, Any]) -> None:
    """Plans a job; shared by all runtimes. Raises ConfigError, and that it does not fit is one."""
    topology, as_json, budget = options.pop("topology"), options.pop("as_json"), options.pop("budget")
    per_hour, efficiency = options.pop("price_per_chip_hour"), options.pop("efficiency")
    if budget is not None and options["steps"] is not None:
        raise ConfigError("--budget (frames) and --steps (agent steps) say the same: give one of them")
    prepare()
    from podracer.launch import plan as plans
    from podracer.launch.job import Request

    price = plans.Price(budget, per_hour, efficiency)
    answer = plans.plan(Request(**options), topology, price)
    if as_json:
        print(plans.as_json(answer, price))
    else:
        from podracer.launch.plan_report import show

        show(answer, price)
    if answer.too_large:
        sys.stdout.flush()
        raise ConfigError(answer.too_large)
