"""Effects that the Muesli paper reports, made small: Hessel et al. 2021, https://arxiv.org/abs/2104.06159.

    python benchmarks/muesli.py [R1 R2 R3 R4] [--out DIR] [--seeds N] [--workers N]

* R1, figure 4: the scale of advantages from 1e-3 to 1e3, with CMPO's clip and without it.
* R2, section 4.5: rewards times 1000, nothing else changed.
* R3, figures 6a and 7a: Muesli without one of its parts at a time.
* R4, figure 6b: how many actions estimate the CMPO loss, of 18.

Prints one JSON line a case, and leaves for each reproduction a table (R1.md) and a figure (R1.png) in `--out`. A case is a
population of seeds in one program of the Anakin runtime. Its score is the mean return of the training episodes (played by the
target network's policy, as in the paper) that end in the last fifth of the budget; median, least and greatest over seeds
are shown. Cases run side by side, one on each core; on an accelerator say `--workers 1`.
"""

import argparse
import dataclasses
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer import registry
from podracer.agents.muesli.agent import Muesli
from podracer.environment import Environment, JaxEnvironment
from podracer.launch import job as jobs
from podracer.launch.loop import Counters, updates
from podracer.plan import make_plan
from podracer.runtimes.anakin import Anakin
from podracer.types import Array, Key, TimeStep, TrainState, Trajectory

_POINTS = 20
_LAST_SHARE = 0.2
_REWARD_FACTOR = 1000.0
_NUM_ACTIONS = 18  # the full set of the Arcade Learning Environment
_CATCH_IDLE = 1


class ScaledReward(JaxEnvironment):
    """`environment` with its rewards multiplied by `factor`."""

    def __init__(self, environment: JaxEnvironment, factor: float):
        self.environment, self.factor, self.spec = environment, factor, environment.spec

    def reset(self, key: Key) -> tuple[Any, TimeStep]:
        return self.environment.reset(key)

    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        state, timestep = self.environment.step(state, action, key)
        return state, timestep.replace(reward=self.factor * timestep.reward)


class PaddedActions(JaxEnvironment):
    """`environment` with `num_actions` actions, of which those beyond its own do what its action `idle` does."""

    def __init__(self, environment: JaxEnvironment, num_actions: int, idle: int):
        self.environment, self.idle = environment, idle
        self.spec = dataclasses.replace(environment.spec, action=specs.DiscreteArray(num_actions, name="action"))

    def reset(self, key: Key) -> tuple[Any, TimeStep]:
        return self.environment.reset(key)

    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        own = jnp.where(action < self.environment.spec.num_actions, action, self.idle).astype(action.dtype)
        return self.environment.step(state, own, key)


WRAPPERS: dict[str, Callable[[Any], JaxEnvironment]] = {
    "reward x1000": lambda environment: ScaledReward(environment, _REWARD_FACTOR),
    "18 actions": lambda environment: PaddedActions(environment, _NUM_ACTIONS, _CATCH_IDLE),
}


class ScaleSweep(Muesli):
    """Muesli that takes `advantage_scale` from its state, so that a population can differ in it and a sweep compiles once.

    `TrainState.extra` is the pair of the second moment and the scale.
    """

    def init(self, key: Key) -> TrainState:
        train_state = super().init(key)
        return train_state.replace(extra=(train_state.extra, jnp.float32(self.config.advantage_scale)))

    def relabel(
        self, train_state: TrainState, trajectory: Trajectory, key: Key, axis_name: str
    ) -> tuple[TrainState, Trajectory]:
        second_moment, scale = train_state.extra
        agent = Muesli(self.spec, dataclasses.replace(self.config, advantage_scale=scale))
        train_state, trajectory = agent.relabel(train_state.replace(extra=second_moment), trajectory, key, axis_name)
        return train_state.replace(extra=(train_state.extra, scale)), trajectory


@dataclasses.dataclass(frozen=True)
class Case:
    """One program, a population of seeds; with `scales`, a population for each scale of advantages.

    experiment: `R1` to `R4`. label: what sets this case apart. env: name of the environment; num_steps: agent steps a seed.
    settings: overrides, in the grammar of `--set`, over the agent's preset for the environment. wrapper: a key of `WRAPPERS`,
    or empty. return_unit: returns are divided by it. scales: of `ScaleSweep`, or empty.
    """

    experiment: str
    label: str
    env: str
    num_steps: int
    settings: tuple[str, ...]
    wrapper: str = ""
    return_unit: float = 1.0
    scales: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a case, or of one scale of it; `P` points along the budget, `S` seeds.

    steps: `[P]`, agent steps of one seed at the end of each point. returns: `[P, S]`, mean return of the episodes that ended
    since the point before, nan where none did. episodes: `[P, S]`, their number. finite: all parameters stayed finite.
    compile_seconds: until the first update was done; seconds: of everything, beside the cases on other cores.
    """

    case: Case
    label: str
    steps: np.ndarray
    returns: np.ndarray
    episodes: np.ndarray
    finite: bool
    compile_seconds: float
    seconds: float

    def scores(self) -> np.ndarray:
        """`[S]`: mean return of the episodes that ended in the last fifth of the budget."""
        late = self.steps > (1 - _LAST_SHARE) * self.steps[-1]
        weights = np.where(np.isfinite(self.returns), self.episodes, 0)[late]
        return np.sum(weights * np.nan_to_num(self.returns[late]), axis=0) / np.maximum(np.sum(weights, axis=0), 1)

    def line(self) -> dict[str, Any]:
        """For people and programs: one JSON line."""
        scores = self.scores()
        return {
            "benchmark": "muesli",
            "experiment": self.case.experiment,
            "case": self.label,
            "env": self.case.env,
            "wrapper": self.case.wrapper,
            "settings": self.case.settings,
            "num_steps": self.case.num_steps,
            "seeds": len(scores),
            "return_median": round(float(np.median(scores)), 3),
            "return_min": round(float(np.min(scores)), 3),
            "return_max": round(float(np.max(scores)), 3),
            "returns": [round(float(score), 3) for score in scores],
            "finite": self.finite,
            "compile_seconds": round(self.compile_seconds, 1),
            "seconds": round(self.seconds, 1),
            "jax": jax.__version__,
            "backend": jax.default_backend(),
            "cores": os.cpu_count(),
        }


SCALES = (1e-3, 1e-1, 1.0, 1e1, 1e3)
CLIPS = ("1.0", "none")
_CATCH = ("anakin.num_envs=8", "agent.replay_capacity=1600")
# Bins wide enough for returns of 1000 (h = 31.6), and fine enough to tell -1 from 1; the same in both cases.
_WIDE_BINS = ("agent.bins.limit=40.0", "agent.bins.num_bins=401")
_MINATAR = (
    "anakin.num_envs=8",
    "agent.torso.hidden=(64,)",
    "agent.head_hidden=(32,)",
    "agent.dynamics.size=32",
    "agent.bins.num_bins=41",
    "agent.bins.limit=5.0",
    "agent.unroll_length=10",
    "agent.replay_share=0.5",
    "agent.replay_capacity=1600",
    "agent.num_kl_samples=0",
    "agent.num_q_samples=0",
    "agent.model_steps=3",
    "agent.discount=0.99",
    "agent.learning_rate=2e-3",
)
_ABLATIONS = {
    "Muesli": (),
    "no policy loss on the model": ("agent.model_policy_weight=0",),
    "one-step model (K=1)": ("agent.model_steps=1",),
    "one-step q, no Retrace": ("agent.returns=model",),
    "policy gradient alone": ("agent.policy_loss=pg",),
    "CMPO alone": ("agent.policy_loss=cmpo",),
}


def cases(experiment: str) -> list[Case]:
    """The cases of `R1` to `R4`."""
    if experiment == "R1":
        common = (*_CATCH, "agent.normalize=false", "agent.policy_loss=cmpo")
        return [
            Case("R1", f"clip {clip}", "catch", 120_000, (*common, f"agent.cmpo_clip={clip}"), scales=SCALES) for clip in CLIPS
        ]
    if experiment == "R2":
        settings = (*_CATCH, *_WIDE_BINS)
        return [
            Case("R2", "rewards x1", "catch", 100_000, settings),
            Case("R2", "rewards x1000", "catch", 100_000, settings, "reward x1000", _REWARD_FACTOR),
        ]
    if experiment == "R3":
        return [
            Case("R3", label, "gymnax/Breakout-MinAtar", 80_000, _MINATAR + settings) for label, settings in _ABLATIONS.items()
        ]
    return [
        Case("R4", label, "catch", 100_000, (*_CATCH, f"agent.num_kl_samples={samples}"), "18 actions")
        for label, samples in (("1 sample", 1), ("4 samples", 4), ("16 samples", 16), ("exact", 0))
    ]


EXPERIMENTS = ("R1", "R2", "R3", "R4")


def run(case: Case, num_seeds: int) -> list[Result]:
    """Trains one case; a result for each of its scales."""
    start = time.perf_counter()
    runtime, state = build(case, num_seeds)
    steps, returns, episodes, finite, compile_seconds = [], [], [], True, 0.0
    for _, counters, call in updates(runtime, state, Counters(), case.num_steps):
        steps.append(min(counters.agent_steps))
        returns.append(call.metrics["episode_return"] / case.return_unit)
        episodes.append(call.metrics["episodes"])
        finite = finite & call.metrics["finite"]
        if call.compiled:
            compile_seconds = time.perf_counter() - start
    seconds = time.perf_counter() - start
    labels = [f"{case.label}, scale {scale:g}" for scale in case.scales] or [case.label]
    return [
        Result(
            case=case,
            label=label,
            steps=np.array(steps),
            returns=np.array(returns)[:, members],
            episodes=np.array(episodes)[:, members],
            finite=bool(np.all(finite[members])),
            compile_seconds=compile_seconds / len(labels),
            seconds=seconds / len(labels),
        )
        for i, label in enumerate(labels)
        for members in [slice(i * num_seeds, (i + 1) * num_seeds)]
    ]


def build(case: Case, num_seeds: int) -> tuple[Anakin, Any]:
    """The runtime of a case and its first state, from the job that the command line would make but for wrapper and scales."""
    request = jobs.Request(
        runtime="anakin",
        agent="muesli",
        env=case.env,
        steps=case.num_steps,
        seeds=num_seeds * max(len(case.scales), 1),
        settings=case.settings,
    )
    job, _ = jobs.new_job(request)
    environment: Environment = registry.env(job.env_name).make(job.env)
    if case.wrapper:
        environment = WRAPPERS[case.wrapper](environment)
    agent = (ScaleSweep if case.scales else Muesli)(environment.spec, job.agent)
    plan = make_plan(job, agent, environment.spec, jax.local_device_count())
    runtime = Anakin(agent, environment, dataclasses.replace(plan, updates_per_call=math.ceil(plan.num_updates / _POINTS)))
    state = runtime.init()
    if case.scales:
        scales = jnp.repeat(jnp.array(case.scales, jnp.float32), num_seeds)
        train_state = state.train_state
        state = state.replace(train_state=train_state.replace(extra=(train_state.extra[0], scales)))
    return runtime, state


def write_table(results: Sequence[Result], path: Path) -> None:
    """A markdown table, one row a case."""
    rows = ["| case | median | least | greatest | steps a seed | seeds |", "|---|---|---|---|---|---|"]
    for result in results:
        scores = result.scores()
        figures = " | ".join(f"{value:.2f}" for value in (np.median(scores), scores.min(), scores.max()))
        rows.append(f"| {result.label} | {figures} | {result.case.num_steps:,} | {len(scores)} |")
    path.write_text("\n".join(rows) + "\n")


def write_figure(results: Sequence[Result], path: Path) -> None:
    """Learning curves, median over seeds in a band from the least to the greatest; for R1 also scores against the scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    by_scale = results[0].case.experiment == "R1"
    figure = Figure(figsize=(11, 4) if by_scale else (7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    curves, *rest = np.atleast_1d(figure.subplots(1, 2 if by_scale else 1))
    for i, result in enumerate(results):
        seen = np.any(np.isfinite(result.returns), axis=1)
        style = "--" if by_scale and i >= len(SCALES) else "-"
        colour = f"C{i % len(SCALES)}" if by_scale else f"C{i}"
        _band(curves, result.steps[seen], result.returns[seen].T, style, colour, result.label)
    curves.set(xlabel="agent steps of one seed", ylabel="episode return (training)", title=results[0].case.env)
    curves.legend(fontsize="x-small")
    for axes in rest:
        for i, clip in enumerate(CLIPS):
            scores = np.array([result.scores() for result in results[i * len(SCALES) : (i + 1) * len(SCALES)]])
            _band(axes, np.array(SCALES), scores.T, ".--" if i else ".-", f"C{i}", f"clip {clip}")
        axes.set(xscale="log", xlabel="scale of advantages", ylabel="return at the end of the budget")
        axes.legend()
    figure.savefig(path, dpi=120)


def _band(axes: Any, x: np.ndarray, values: np.ndarray, style: str, colour: str, label: str) -> None:
    """`values` `[S, X]` over `x` `[X]`."""
    axes.plot(x, np.nanmedian(values, axis=0), style, color=colour, label=label)
    axes.fill_between(x, np.nanmin(values, axis=0), np.nanmax(values, axis=0), color=colour, alpha=0.15)
    axes.grid(alpha=0.3)


def _take_core(cores: Any) -> None:
    """Gives a worker a core to itself, before XLA counts the cores for its threads."""
    if (core := cores.get()) is not None:
        os.sched_setaffinity(0, {core})


def _run(job: tuple[Case, int]) -> list[Result]:
    return run(*job)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", metavar="NAME", help=f"of {', '.join(EXPERIMENTS)}; all if none is given")
    parser.add_argument("--out", type=Path, default=Path("runs/muesli_benchmark"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=0, help="cases at a time; 0: one on each core of this process")
    options = parser.parse_args()
    experiments = options.experiments or list(EXPERIMENTS)
    if unknown := [name for name in experiments if name not in EXPERIMENTS]:
        parser.error(f"there is no {unknown[0]}: choose of {', '.join(EXPERIMENTS)}")
    options.out.mkdir(parents=True, exist_ok=True)

    available = sorted(os.sched_getaffinity(0))
    num_workers = options.workers or len(available)
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for i in range(num_workers):
        cores.put(available[i] if 1 < num_workers <= len(available) else None)
    with context.Pool(num_workers, _take_core, (cores,)) as pool:
        todo = [(case, options.seeds) for name in experiments for case in cases(name)]
        done: dict[str, list[list[Result]]] = {name: [] for name in experiments}
        for results in pool.imap(_run, todo):
            for result in results:
                print(json.dumps(result.line()), flush=True)
            name = results[0].case.experiment
            done[name].append(results)
            if len(done[name]) == len(cases(name)):
                flat = [result for results in done[name] for result in results]
                write_table(flat, options.out / f"{name}.md")
                write_figure(flat, options.out / f"{name}.png")


if __name__ == "__main__":
    main()
