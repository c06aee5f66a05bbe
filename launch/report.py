"""The end of a run: evaluation, summary.json, curve.png and a video."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from podracer.checkpoint import tree_sha256
from podracer.config import JobConfig
from podracer.evaluate import EpisodeStats, Evaluator
from podracer.launch.job import Parts, write_atomically
from podracer.launch.loop import Counters
from podracer.launch.signals import StopRequests
from podracer.match import MatchStats
from podracer.metrics.pictures import NoFfmpeg, write_curve, write_video
from podracer.metrics.progress import ProgressLine
from podracer.types import Params

StatsT = TypeVar("StatsT", covariant=True)


class Plays(Protocol[StatsT]):
    """An `Evaluator` or a `Match`."""

    def run(self, params: Params, *, record: bool = False, on_progress: Callable[[int, int], None] | None = None) -> StatsT: ...

    def close(self) -> None: ...


def finish(
    job: JobConfig,
    parts: Parts,
    run_dir: Path,
    counters: Counters,
    actor_params: list[Params],
    params: list[Params],
    requests: StopRequests,
) -> dict[str, Any]:
    """Evaluates every seed and writes what a run folder shows. Returns the content of summary.json.

    Args:
      actor_params: of each seed, what it acts with. params: of each seed, what `params_sha256` is of.
      requests: checked during the evaluation.
    """
    evaluator = Evaluator(parts.agent, parts.environment, job.eval_episodes, seed=job.seed)
    stats = play(evaluator, actor_params, job.eval_episodes, record=True, requests=requests)
    hashes = [tree_sha256(p) for p in params]
    summary = summarize(job, parts, counters, stats, hashes)
    write_atomically(run_dir / "summary.json", json.dumps(summary, indent=2) + "\n")
    for line in describe(job, stats):
        print(line)
    curve = write_curve(run_dir, f"{job.agent_name} on {job.env_name} ({job.runtime})")
    if curve is None:
        print("no curve.png: no training episode has ended yet")
    if stats[0].frames is None:
        print(f"no video: {job.env_name} has no picture to show")
    else:
        try:
            write_video(run_dir / "evaluation.mp4", stats[0].frames)
        except NoFfmpeg as missing:
            print(missing)
    files = ", ".join(sorted(path.name for path in run_dir.iterdir() if not path.name.startswith("events.")))
    print(f"{run_dir}: {files}")
    return summary


def play(
    evaluator: Plays[StatsT], actor_params: list[Params], num_episodes: int, record: bool, requests: StopRequests
) -> list[StatsT]:
    """Lets each seed's parameters play the `num_episodes` episodes of `evaluator`, and closes it.

    Pictures are of the first seed. Raises signals.Stopped, environment.Unsupported.
    """
    stats: list[StatsT] = []
    started = time.monotonic()
    try:
        with ProgressLine(num_episodes * len(actor_params), "episodes") as line:
            for index, params in enumerate(actor_params):

                def show(done: int, total: int, before: int = index * num_episodes) -> None:
                    del total
                    requests.check()
                    line.update(before + done, (before + done) / (time.monotonic() - started), "evaluating")

                stats.append(evaluator.run(params, record=record and index == 0, on_progress=show))
    finally:
        evaluator.close()
    return stats


def summarize(job: JobConfig, parts: Parts, counters: Counters, stats: list[EpisodeStats], hashes: list[str]) -> dict[str, Any]:
    """The content of summary.json. With several seeds, counts and the evaluation are over all of them, and `params_sha256`
    is a hash of their hashes.
    """
    means = [float(s.returns.mean()) for s in stats]
    returns = np.concatenate([s.returns for s in stats])
    timed = counters.timed_seconds > 0
    steps, seconds = counters.num_agent_steps, counters.wall_seconds
    summary: dict[str, Any] = {
        "agent": job.agent_name,
        "env": job.env_name,
        "runtime": job.runtime,
        "num_env_frames": steps * parts.environment.spec.frames_per_step,
        "num_agent_steps": steps,
        "num_updates": counters.num_updates,
        "wall_seconds": seconds,
        "agent_steps_per_second": counters.timed_steps / counters.timed_seconds if timed else steps / max(seconds, 1e-9),
        "eval_return_mean": float(returns.mean()),
        "eval_return_std": float(returns.std()),
        "eval_episodes": len(returns),
        "eval_length_mean": float(np.concatenate([s.lengths for s in stats]).mean()),
        "params_sha256": hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest(),
    }
    if job.num_seeds > 1:
        low, median, high = (float(q) for q in np.quantile(means, [0.25, 0.5, 0.75]))
        summary |= {"eval_return_median": median, "eval_return_band": [low, high]}
        summary["seeds"] = [
            {"seed": job.seed + i, "eval_return_mean": m, "eval_return_std": float(s.returns.std()), "params_sha256": h}
            for i, (m, s, h) in enumerate(zip(means, stats, hashes, strict=True))
        ]
    return summary


def describe(job: JobConfig, stats: list[EpisodeStats]) -> list[str]:
    """Lines for people."""
    lines = []
    for index, one in enumerate(stats):
        seed = f"seed {job.seed + index}: " if len(stats) > 1 else ""
        lines.append(
            f"{seed}evaluation over {len(one.returns)} episodes: return {one.returns.mean():.3f} "
            f"(std {one.returns.std():.3f}), length {one.lengths.mean():.1f}"
        )
    return lines + _over_seeds([s.returns for s in stats])


def describe_match(job: JobConfig, games: list[MatchStats], opponent: str) -> list[str]:
    """Lines for people: the games of each seed against `opponent`."""
    lines = []
    for index, one in enumerate(games):
        seed = f"seed {job.seed + index}: " if len(games) > 1 else ""
        whole, first, second = (_results(*one.results(begun)) for begun in (None, True, False))
        lines.append(
            f"{seed}{len(one.returns)} games against {opponent}: {whole} (as first player {first}; as second {second}); "
            f"mean return {one.returns.mean():.3f} (standard error {one.standard_error:.3f})"
        )
    return lines + _over_seeds([one.returns for one in games])


def _over_seeds(returns: list[np.ndarray]) -> list[str]:
    """A line about the population, where there is one."""
    if len(returns) < 2:
        return []
    low, median, high = np.quantile([one.mean() for one in returns], [0.25, 0.5, 0.75])
    return [f"over {len(returns)} seeds: median {median:.3f}, quartiles {low:.3f} to {high:.3f}"]


def _results(wins: int, draws: int, losses: int) -> str:
    return f"{wins} won, {draws} drawn, {losses} lost"
