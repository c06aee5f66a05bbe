"""Effects that the Muesli paper reports, made small: Hessel et al. 2021, https://arxiv.org/abs/2104.06159.

    python benchmarks/muesli.py [R1 R2 R3 R4] [--out DIR] [--seeds N]

* R1, figure 4: the scale of advantages from 1e-3 to 1e3, with CMPO's clip and without it.
* R2, section 4.5: rewards times 1000, nothing else changed.
* R3, figures 6a and 7a: Muesli without one of its parts at a time.
* R4, figure 6b: how many actions estimate the CMPO loss, of 18.

Prints a JSON line for each row of the tables, and leaves for each reproduction a table (R1.md) and a figure (R1.png) in
`--out`. A row is a population of seeds; rows that differ only in numbers share a program of the Anakin runtime. A score is the
mean return of the training episodes (played by the target network's policy, as in the paper) that end in the last fifth of the
budget; median, least and greatest over seeds are shown.
"""

import argparse
import dataclasses
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
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
from podracer.types import Array, Key, Metrics, Params, TimeStep, TrainState, Trajectory

_POINTS = 20
_LAST_SHARE = 0.2
_NUM_ACTIONS = 18  # the full set of the Arcade Learning Environment
_CATCH_IDLE = 1


class PaddedActions(JaxEnvironment):
    """Catch with the number of actions that Atari has; those beyond its own leave the paddle where it is."""

    def __init__(self, environment: Any):
        self.environment = environment
        self.spec = dataclasses.replace(environment.spec, action=specs.DiscreteArray(_NUM_ACTIONS, name="action"))

    def reset(self, key: Key) -> tuple[Any, TimeStep]:
        return self.environment.reset(key)

    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        own = jnp.where(action < self.environment.spec.num_actions, action, _CATCH_IDLE).astype(action.dtype)
        return self.environment.step(state, own, key)


class Sweep(Muesli):
    """Muesli with numbers of its config as data: members of a population can differ in them, and compile once.

    `TrainState.extra` is a pair: Muesli's own, and the numbers by name. The number `reward_factor`, which is none of the
    config, multiplies all rewards that the agent learns from; returns are reported without it.
    """

    def _member(self, train_state: TrainState) -> tuple[Muesli, TrainState]:
        own, numbers = train_state.extra
        numbers = {name: value for name, value in numbers.items() if name != "reward_factor"}
        return Muesli(self.spec, dataclasses.replace(self.config, **numbers)), train_state.replace(extra=own)

    def relabel(
        self, train_state: TrainState, trajectory: Trajectory, key: Key, axis_name: str
    ) -> tuple[TrainState, Trajectory]:
        numbers = train_state.extra[1]
        agent, own = self._member(train_state)
        reward = numbers.get("reward_factor", 1.0) * trajectory.timestep.reward
        trajectory = trajectory.replace(timestep=trajectory.timestep.replace(reward=reward))
        own, trajectory = agent.relabel(own, trajectory, key, axis_name)
        return own.replace(extra=(own.extra, numbers)), trajectory

    def loss(self, params: Params, train_state: TrainState, trajectory: Trajectory, key: Key) -> tuple[Array, Metrics]:
        agent, own = self._member(train_state)
        return agent.loss(params, own, trajectory, key)


@dataclasses.dataclass(frozen=True)
class Case:
    """One program.

    experiment: `R1` to `R4`. env: name of the environment. num_steps: agent steps of one seed. settings: overrides, in the
    grammar of `--set`, over the agent's preset for the environment. members: what the table calls each population of seeds
    in the program, and the numbers that set it apart (see `Sweep`), by name; the same names for all.
    padded: with `PaddedActions`.
    """

    experiment: str
    env: str
    num_steps: int
    settings: tuple[str, ...]
    members: Mapping[str, Mapping[str, float]]
    padded: bool = False


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of one member of a case; `P` points along the budget, `S` seeds.

    steps: `[P]`, agent steps of one seed at the end of each point. returns: `[P, S]`, mean return of the episodes that ended
    since the point before, nan where none did. episodes: `[P, S]`, their number. finite: all parameters stayed finite.
    compile_seconds: of the whole case, until its first update was done; seconds: of the whole case.
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
            "settings": self.case.settings,
            "numbers": self.case.members[self.label],
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
_FACTORS: Mapping[str, Mapping[str, float]] = {"rewards x1": {"reward_factor": 1}, "rewards x1000": {"reward_factor": 1000}}
_WEIGHTS: Mapping[str, Mapping[str, float]] = {
    "Muesli": {"regularizer_weight": 1, "model_policy_weight": 1},
    "no policy loss on the model": {"regularizer_weight": 1, "model_policy_weight": 0},
    "policy gradient alone": {"regularizer_weight": 0, "model_policy_weight": 1},
}
_ABLATIONS = {
    "CMPO alone": "agent.policy_loss=cmpo",
    "one-step model (K=1)": "agent.model_steps=1",
    "one-step q, no Retrace": "agent.returns=model",
}


def cases(experiment: str) -> list[Case]:
    """The cases of `R1` to `R4`."""
    if experiment == "R1":
        common = (*_CATCH, "agent.normalize=false", "agent.policy_loss=cmpo")
        return [
            Case(
                "R1",
                "catch",
                100_000,
                (*common, f"agent.cmpo_clip={clip}"),
                {f"clip {clip}, scale {scale:g}": {"advantage_scale": scale} for scale in SCALES},
            )
            for clip in CLIPS
        ]
    if experiment == "R2":
        return [Case("R2", "catch", 30_000, (*_CATCH, *_WIDE_BINS), _FACTORS)]
    if experiment == "R3":
        game, num_steps = "gymnax/Breakout-MinAtar", 60_000
        return [
            Case("R3", game, num_steps, _MINATAR, _WEIGHTS),
            *(Case("R3", game, num_steps, (*_MINATAR, setting), {label: {}}) for label, setting in _ABLATIONS.items()),
        ]
    return [
        Case("R4", "catch", 40_000, (*_CATCH, f"agent.num_kl_samples={samples}"), {label: {}}, padded=True)
        for label, samples in (("1 sample", 1), ("4 samples", 4), ("16 samples", 16), ("exact", 0))
    ]


EXPERIMENTS = ("R1", "R2", "R3", "R4")


def run(case: Case, num_seeds: int) -> list[Result]:
    """Trains the members of a case together."""
    start = time.perf_counter()
    runtime, state = build(case, num_seeds)
    steps, metrics, compile_seconds = [], [], 0.0
    for _, counters, call in updates(runtime, state, Counters(), case.num_steps):
        steps.append(min(counters.agent_steps))
        metrics.append(call.metrics)
        if call.compiled:
            compile_seconds = time.perf_counter() - start
    seconds = time.perf_counter() - start

    def by_member(name: str) -> list[np.ndarray]:
        return np.split(np.stack([values[name] for values in metrics]), len(case.members), axis=1)

    return [
        Result(case, label, np.array(steps), returns, episodes, bool(np.all(finite)), compile_seconds, seconds)
        for label, returns, episodes, finite in zip(
            case.members, by_member("episode_return"), by_member("episodes"), by_member("finite"), strict=True
        )
    ]


def build(case: Case, num_seeds: int) -> tuple[Anakin, Any]:
    """The runtime of a case and its first state, from the job that the command line would make but for padding and members."""
    request = jobs.Request(
        runtime="anakin",
        agent="muesli",
        env=case.env,
        steps=case.num_steps,
        seeds=num_seeds * len(case.members),
        settings=case.settings,
    )
    job, _ = jobs.new_job(request)
    environment: Environment = registry.env(job.env_name).make(job.env)
    if case.padded:
        environment = PaddedActions(environment)
    agent = Sweep(environment.spec, job.agent)
    plan = make_plan(job, agent, environment.spec, jax.local_device_count())
    runtime = Anakin(agent, environment, dataclasses.replace(plan, updates_per_call=math.ceil(plan.num_updates / _POINTS)))
    state = runtime.init()
    each = [{name: jnp.float32(value) for name, value in numbers.items()} for numbers in case.members.values()]
    numbers = jax.tree.map(lambda *values: jnp.repeat(jnp.stack(values), num_seeds), *each)
    train_state = state.train_state
    return runtime, state.replace(train_state=train_state.replace(extra=(train_state.extra, numbers)))


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
    curves, *rest = figure.subplots(1, 2 if by_scale else 1, squeeze=False)[0]
    for i, result in enumerate(results):
        # The first and the last call are short: too few episodes for a mean.
        seen = np.all(result.episodes > 0.25 * np.median(result.episodes, axis=0), axis=1)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", metavar="NAME", help=f"of {', '.join(EXPERIMENTS)}; all if none is given")
    parser.add_argument("--out", type=Path, default=Path("runs/muesli_benchmark"))
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    experiments = options.experiments or EXPERIMENTS
    if unknown := [name for name in experiments if name not in EXPERIMENTS]:
        parser.error(f"there is no {unknown[0]}: choose of {', '.join(EXPERIMENTS)}")
    options.out.mkdir(parents=True, exist_ok=True)

    for name in experiments:
        results: list[Result] = []
        for case in cases(name):
            members = run(case, options.seeds)
            for result in members:
                print(json.dumps(result.line()), flush=True)
            results += members
        write_table(results, options.out / f"{name}.md")
        write_figure(results, options.out / f"{name}.png")


if __name__ == "__main__":
    main()
