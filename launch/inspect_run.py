"""What can be asked of a run folder after the run."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from podracer import registry
from podracer.checkpoint import Checkpoints
from podracer.config import ConfigError, JobConfig, override
from podracer.evaluate import Evaluator
from podracer.launch import job as jobs
from podracer.launch import report
from podracer.launch.signals import StopRequests
from podracer.match import AgentOpponent, Match, Opponent, as_opponent, random_opponent
from podracer.metrics.pictures import NoFfmpeg, ffmpeg, write_video
from podracer.types import Params


@dataclasses.dataclass(frozen=True)
class Against:
    """name: what to call the opponent. opponent: it plays. environment: where both can play."""

    name: str
    opponent: Opponent
    environment: Any


@dataclasses.dataclass(frozen=True)
class Learned:
    """What a run has learned. params: of each seed, what the agent acts with. num_updates: after which they were saved."""

    job: JobConfig
    agent: Any
    environment: Any
    params: list[Params]
    num_updates: int


def load(run_dir: Path, settings: Mapping[str, Any] | None = None) -> Learned:
    """A run's newest checkpoint, and all that it takes to play with it.

    Args:
      settings: of the agent or the environment, over those of the run: a larger search, a harder task.

    Raises:
      ConfigError: the folder holds no run or no checkpoint, or the checkpoint is damaged; or a setting is unknown, or makes
        another network than was trained.
    """
    return _learned(run_dir, *_build(run_dir, settings or {}))


def _build(run_dir: Path, settings: Mapping[str, Any]) -> tuple[JobConfig, Any, Any]:
    """The job of a run under `settings`, its agent and its environment. Raises ConfigError, and as `job.build_agent`."""
    for key in settings:
        if not key.startswith(("agent.", "env.")):
            raise ConfigError(f"--set {key}: evaluation takes settings of agent.* and env.* alone")
    job = override(jobs.load_job(run_dir)[0], settings)
    return job, *jobs.build_agent(job)


def _learned(run_dir: Path, job: JobConfig, agent: Any, environment: Any) -> Learned:
    """What `_build` gave, with the newest checkpoint. Raises ConfigError."""
    target = jax.eval_shape(lambda: agent.actor_params(agent.init(jax.random.key(0))))
    checkpoints = Checkpoints(run_dir / "checkpoints", jobs.fingerprint(jobs.load_job(run_dir)[0]))
    try:
        saved = checkpoints.restore_params([target] * job.num_seeds)
    finally:
        checkpoints.close()
    return Learned(job, agent, environment, saved.state, saved.step)


def evaluate_run(
    run_dir: Path,
    episodes: int,
    seed: int,
    video: Path | None,
    opponent: str | None,
    settings: Mapping[str, Any],
    requests: StopRequests,
) -> None:
    """Plays the newest checkpoint of a run and prints what came out.

    Args:
      episodes: to play, of each seed of the run. seed: of the evaluation. video: where one episode goes.
      opponent: whom to play against, see `find_opponent`; None: nobody, or in a game for two, itself.
      settings: as of `load`.
      requests: checked between calls.

    Raises:
      ConfigError: as `load`; or there is no picture to record.
      ConfigError, registry.NotFound, environment.Unsupported: there is no such opponent, or it cannot play here.
    """
    if video is not None:
        _check_film(video)
    job, agent, environment = _build(run_dir, settings)
    against = find_opponent(opponent, job, environment) if opponent else None
    run = _learned(run_dir, job, agent, environment)
    print(f"{job.agent_name} on {job.env_name} after {run.num_updates:,} updates", flush=True)
    if against is None:
        evaluator = Evaluator(agent, environment, episodes, seed=seed)
        stats = report.play(evaluator, run.params, episodes, video is not None, requests)
        lines, frames = report.describe(job, stats), stats[0].frames
    else:
        match = Match(agent, against.opponent, against.environment, episodes, seed=seed)
        games = report.play(match, run.params, episodes, video is not None, requests)
        lines, frames = report.describe_match(job, games, against.name), games[0].frames
    print("\n".join(lines))
    if video is not None:
        if frames is None:
            raise ConfigError(f"--video: {job.env_name} has no picture to show")
        write_video(video, frames)
        print(f"wrote {video}, {len(frames)} frames")


def _check_film(path: Path) -> None:
    """Whether one can be made and written, before anything is played. Raises ConfigError."""
    new = not path.exists()
    try:
        ffmpeg()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except NoFfmpeg as missing:
        raise ConfigError(f"--video: {missing}") from missing
    except OSError as error:
        raise ConfigError(f"--video {path}: {error.strerror}") from error
    if new:
        path.unlink()


def find_opponent(name: str, job: JobConfig, environment: Any) -> Against:
    """Who is meant by `--opponent`.

    Args:
      name: `random`; one that the environment's suite offers; the folder of another run, whose newest checkpoint plays (its
        first seed, where it has several); or `package.module:NAME` of a function or object for `match.as_opponent`.
      job, environment: of the run that plays against it.

    Raises:
      ConfigError: the environment is no game for two, or the other run is of another environment or has no checkpoint.
      registry.NotFound, environment.Unsupported: there is no such opponent, or it is none.
    """
    if environment.spec.num_players != 2:
        raise ConfigError(f"--opponent: {job.env_name} is no game for two")
    offered = registry.env(job.env_name).opponents()
    if name in offered:
        return Against(name, as_opponent(offered[name](), name), environment)
    if name == "random":
        return Against(name, random_opponent(environment.spec), environment)
    if Path(name).is_dir():
        return _other_run(Path(name), job, environment)
    if ":" in name:
        return Against(name, as_opponent(registry.imported("opponent", name), name), environment)
    unknown = registry.unknown("opponent", name, ["random", *offered])
    raise registry.NotFound(f"{unknown} for {job.env_name}, or name a run's folder or package.module:function")


def _other_run(run_dir: Path, job: JobConfig, environment: Any) -> Against:
    other_job, agent, its_environment = _build(run_dir, {})
    if other_job.env_name != job.env_name:
        raise ConfigError(f"--opponent {run_dir} plays {other_job.env_name}, not {job.env_name}")
    # A search in the true environment needs more in its observations than other agents do.
    for place in (environment, its_environment):
        if _serves(place.spec, environment.spec) and _serves(place.spec, its_environment.spec):
            break
    else:
        raise ConfigError(f"--opponent {run_dir} plays {job.env_name} with other settings, where it observes something else")
    other = _learned(run_dir, other_job, agent, its_environment)
    name = f"{other.job.agent_name} of {run_dir} after {other.num_updates:,} updates"
    if other.job.num_seeds > 1:
        name += f", seed {other.job.seed}"
    return Against(name, AgentOpponent(agent, other.params[0]), place)


def _serves(place: Any, spec: Any) -> bool:
    """Whether an environment of specification `place` shows and takes all that an agent built for `spec` needs."""
    seen, needed = place.observation, spec.observation
    if isinstance(seen, Mapping) and isinstance(needed, Mapping):
        seen = {name: value for name, value in seen.items() if name in needed}
    return place.action == spec.action and seen == needed
