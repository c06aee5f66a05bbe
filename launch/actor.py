"""The command `podracer actor`: actors without a learner, which join a run on this host or another."""

import sys
from typing import Any

import click

from podracer.launch.options import Address
from podracer.launch.words import complain


@click.command()
@click.option(
    "--connect", type=Address(), metavar="HOST:PORT", required=True, help="Of the learner's server; the learner prints it."
)
@click.option("--threads", type=click.IntRange(1), help="Actors on each device.  [default: as in the run, at least 1]")
@click.option("--number", type=click.IntRange(0), help="Of the first actor, which fixes its randomness.  [default: random]")
@click.option("--reconnect-s", type=click.FloatRange(0.1), default=60.0, show_default=True, help="Seconds without a learner.")
def actor(connect: str, threads: int | None, number: int | None, reconnect_s: float) -> None:
    """Act for a run of Sebulba with --store reverb.

    The learner says which agent and environment; parameters come from it, unrolls go to it. Actors may come and go at any
    time. Ends with the run, after Ctrl-C or SIGTERM, or once the learner is gone.

    \b
    Example:
      podracer launch sebulba --agent impala --env catch --store reverb --listen 127.0.0.1:8000 --set sebulba.threads=0
      podracer actor --connect 127.0.0.1:8000 --threads 2
    """
    from podracer.launch.signals import StopRequests
    from podracer.launch.surroundings import prepare

    with StopRequests() as requests:
        prepare()
        from podracer.runtimes.sebulba.supervisor import ActorsFailed
        from podracer.stores.exchange import Remote
        from podracer.stores.reverb import ReverbError

        try:
            remote = Remote(connect, reconnect_s)
            try:
                actors = _join(remote, connect, threads, number)
            except BaseException:
                remote.close()
                raise
            reason = actors.run(lambda: requests.pending, lambda text: print(text, flush=True))
        except (ActorsFailed, ReverbError) as error:
            complain(error)
            sys.exit(1)
        print(f"ended: {reason}")
        if requests.pending:
            sys.exit(requests.stop().exit_code)


def _join(remote: Any, source: str, threads: int | None, number: int | None) -> Any:
    import random

    import jax

    from podracer.launch import job as jobs
    from podracer.runtimes.sebulba.crew import Crew
    from podracer.runtimes.sebulba.remote import RemoteActors

    job, _ = jobs.job_from_json(remote.job.decode(), f"what the learner at {source} says")
    agent, environment = jobs.build_agent(job)
    num_envs, settings = job.anakin.num_envs, job.sebulba
    if number is None:
        number = random.SystemRandom().randrange(2**10, max(2**30 // num_envs, 2**10 + 1))
    crew = Crew(
        agent=agent,
        environment=environment,
        num_envs=num_envs,
        seed=job.seed,
        devices=jax.local_devices(),
        threads=1 if settings.sync else threads or max(settings.threads, 1),
        timeout=settings.env_timeout,
        max_restarts=settings.max_restarts,
        first_number=number,
    )
    actors = RemoteActors(remote, crew)
    print(f"joined {source}: {job.agent_name} on {job.env_name}, actor {number}, {num_envs} environments each", flush=True)
    return actors
