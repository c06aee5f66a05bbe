"""Effects that the paper of counterfactual credit assignment reports, made small: Mesnard et al. 2021,
https://arxiv.org/abs/2011.09464.

    python benchmarks/cca.py [bandit door interleaving] [--out DIR] [--seeds N]

* bandit: the bandit with feedback, over decades of the reward's noise: actor-critic, CCA, and CCA with a small independence
  weight.
* door: Key-to-Door of 3x3, 5x5 and 3x3 cells, with apples of low and of high variance: actor-critic, CCA with a backward LSTM
  and with attention, CCA without independence, hindsight credit assignment given states and given the return.
* interleaving: three tasks whose rewards are 10, 1 and 0.5: actor-critic and CCA.

Prints a JSON line for each row of the tables, and leaves for each section a table (bandit.md) and a figure (bandit.png) in
`--out`. A row is a population of seeds in the Anakin runtime. Scores are of the training episodes in the last fifth of the
budget; median, least and greatest are over seeds. Beside them stand, of the same episodes, medians over seeds of the squared
error of the baseline, E[adv^2], and of the squared norm of the policy gradient of a decision at its logits, which compares
estimators with and without a baseline. Rewards are scaled in both as the preset says.
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

from podracer import config, registry
from podracer.agents.cca.agent import Cca
from podracer.agents.cca.losses import cca_losses
from podracer.launch import job as jobs
from podracer.launch.loop import Counters, updates
from podracer.plan import make_plan
from podracer.runtimes.anakin import Anakin
from podracer.types import Array, Key, Metrics, Params, TimeStep, TrainState, Trajectory

_POINTS = 20
_LAST_SHARE = 0.2


def outcomes(name: str, timestep: TimeStep) -> dict[str, tuple[Array, Array]]:
    """What the labels of time steps `[T, B]` say of success: sums and counts, `[]` each, by the name of their ratio."""
    aux, last = timestep.aux, timestep.last()

    def share(event: Array, of: Array) -> tuple[Array, Array]:
        return jnp.sum(jnp.where(of, event, 0).astype(jnp.float32)), jnp.sum(of.astype(jnp.float32))

    if name == "credit/feedback_bandit":
        return {"mean_reward": share(aux["mean_reward"], last)}
    if name == "credit/interleaving":
        return {f"correct_{task}": share(aux["correct"], aux["queried"] == task) for task in range(3)}
    return {"key": share(aux["key"], last), "door": share(aux["door"], last)}


class Measured(Cca):
    """The agent, with the weight of independence as data: members of a population can differ in it, and compile once.

    `TrainState.extra` is that weight. The loss also reports the outcomes of the episodes, as sums `name` and counts `name#`.
    """

    def loss(self, params: Params, train_state: TrainState, trajectory: Trajectory, key: Key) -> tuple[Array, Metrics]:
        losses, metrics = cca_losses(params, self._networks, self._policy, self.config, train_state, trajectory)
        if "independence" in losses:
            losses["independence"] *= train_state.extra / self.config.independence.weight
        # The first time step of an unroll was the last of the one before.
        found = outcomes(self.spec.name, jax.tree.map(lambda x: x[1:], trajectory.timestep))
        sums = {name: total for name, (total, _) in found.items()}
        counts = {f"{name}#": count for name, (_, count) in found.items()}
        return sum(losses.values(), jnp.float32(0)), {**metrics, **sums, **counts}


@dataclasses.dataclass(frozen=True)
class Case:
    """One program.

    section: of the benchmark. env: name of the environment. num_steps: agent steps of one seed. settings: overrides over the
    agent's preset for the environment. members: what the table calls each population of seeds in the program, and its weight of
    independence; None is the preset's.
    """

    section: str
    env: str
    num_steps: int
    settings: Mapping[str, Any]
    members: Mapping[str, float | None]


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of one member of a case; `P` points along the budget, `S` seeds.

    steps: `[P]`, agent steps of one seed at the end of each point. curves: `[P, S]` by name. finite: all parameters stayed
    finite.
    compile_seconds: of the whole case, until its first update was done; seconds: of the whole case.
    """

    case: Case
    label: str
    steps: np.ndarray
    curves: Mapping[str, np.ndarray]
    finite: bool
    compile_seconds: float
    seconds: float

    def scores(self, name: str) -> np.ndarray:
        """`[S]`: mean over the last fifth of the budget."""
        return np.nanmean(self.curves[name][self.steps > (1 - _LAST_SHARE) * self.steps[-1]], axis=0)

    @property
    def baseline_error(self) -> float:
        """E[adv^2] of estimators that subtract a baseline: of the hindsight value where there is one, else of the value."""
        return float(np.median(self.scores("hindsight_error" if "hindsight_error" in self.curves else "value_error")))

    @property
    def gradient_square(self) -> float:
        """The squared norm of the policy gradient of one decision at its logits."""
        return float(np.median(self.scores("policy_gradient_square")))

    def line(self) -> dict[str, Any]:
        """For people and programs: one JSON line."""
        scores = {name: self.scores(name) for name in SCORES[self.case.section]}
        return {
            "benchmark": "cca",
            "section": self.case.section,
            "case": self.label,
            "env": self.case.env,
            "settings": dict(self.case.settings),
            "independence_weight": self.case.members[self.label],
            "num_steps": self.case.num_steps,
            "scores": {name: [round(float(value), 4) for value in values] for name, values in scores.items()},
            "squared_error_of_baseline": float(f"{self.baseline_error:.4g}"),
            "squared_policy_gradient": float(f"{self.gradient_square:.4g}"),
            "finite": self.finite,
            "compile_seconds": round(self.compile_seconds, 1),
            "seconds": round(self.seconds, 1),
            "jax": jax.__version__,
            "backend": jax.default_backend(),
            "cores": os.cpu_count(),
        }


SCORES = {
    "bandit": ("mean_reward",),
    "door": ("key", "door"),
    "interleaving": ("correct_0", "correct_1", "correct_2"),
}
"""Of each section: what its table shows. The last one of `door`, and all of the others, are in its figure."""
NOISES = (1.0, 10.0, 100.0)
_CRITIC: Mapping[str, Any] = {"agent.estimator": "actor_critic"}


def cases(section: str) -> list[Case]:
    """The cases of one of SECTIONS."""
    if section == "bandit":
        env, num_steps = "credit/feedback_bandit", 192_000
        found = []
        for noise in NOISES:
            of_noise, suffix = {"env.noise": noise}, f", noise {noise:g}"
            members = {f"CCA{suffix}": 1.0, f"CCA, weight 0.01{suffix}": 0.01}
            found.append(Case(section, env, num_steps, {**of_noise, **_CRITIC}, {f"actor-critic{suffix}": None}))
            found.append(Case(section, env, num_steps, of_noise, members))
        return found
    if section == "door":
        env, num_steps = "credit/key_to_door_mini", 2_000_000
        low, high = {"env.variance": "low"}, {"env.variance": "high"}
        of_high = {
            "actor-critic": _CRITIC,
            "CCA, attention": {"agent.hindsight.kind": "attention"},
            "HCA, state": {"agent.estimator": "hca_state"},
            "HCA, return": {"agent.estimator": "hca_return"},
        }
        return [
            Case(section, env, num_steps // 2, {**low, **_CRITIC}, {"low: actor-critic": None}),
            Case(section, env, num_steps // 2, low, {"low: CCA, LSTM": None}),
            Case(section, env, num_steps, high, {"high: CCA, LSTM": None, "high: CCA, LSTM, weight 0": 0.0}),
            *(Case(section, env, num_steps, {**high, **more}, {f"high: {label}": None}) for label, more in of_high.items()),
        ]
    env, num_steps = "credit/interleaving", 600_000
    return [
        Case(section, env, num_steps, _CRITIC, {"actor-critic": None}),
        Case(section, env, num_steps, {}, {"CCA, LSTM": None}),
    ]


SECTIONS = tuple(SCORES)


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
    curves = {name: np.stack([np.asarray(values[name], np.float64) for values in metrics]) for name in metrics[0]}
    with np.errstate(invalid="ignore", divide="ignore"):
        for name in [name for name in curves if f"{name}#" in curves]:
            curves[name] = curves[name] / curves.pop(f"{name}#")
    found = []
    for i, label in enumerate(case.members):
        own = {name: curve[:, i * num_seeds : (i + 1) * num_seeds] for name, curve in curves.items()}
        finite = bool(np.all(own["finite"]))
        found.append(Result(case, label, np.array(steps), own, finite, compile_seconds, seconds))
    return found


def build(case: Case, num_seeds: int) -> tuple[Anakin, Any]:
    """The runtime of a case and its first state, from the job that the command line would make but for the members."""
    seeds = num_seeds * len(case.members)
    request = jobs.Request(runtime="anakin", agent="cca", env=case.env, steps=case.num_steps, seeds=seeds)
    job = config.override(jobs.new_job(request)[0], case.settings)
    environment = registry.env(job.env_name).make(job.env)
    agent = Measured(environment.spec, job.agent)
    plan = make_plan(job, agent, environment.spec, jax.local_device_count())
    runtime = Anakin(agent, environment, dataclasses.replace(plan, updates_per_call=math.ceil(plan.num_updates / _POINTS)))
    state = runtime.init()
    preset = job.agent.independence.weight
    weights = [preset if weight is None else weight for weight in case.members.values()]
    weight = jnp.repeat(jnp.asarray(weights, jnp.float32), num_seeds)
    weight = weight if seeds > 1 else weight[0]
    return runtime, state.replace(train_state=state.train_state.replace(extra=weight))


def write_table(results: Sequence[Result], path: Path) -> None:
    """A markdown table, one row a population: median (least to greatest) over seeds."""
    names = SCORES[results[0].case.section]
    rows = [
        f"| case | {' | '.join(names)} | E[adv^2] | squared gradient | steps a seed | seeds |",
        "|" + "---|" * (len(names) + 5),
    ]
    for result in results:
        all_scores = [result.scores(name) for name in names]
        shown = " | ".join(f"{np.median(s):.2f} ({np.min(s):.2f} to {np.max(s):.2f})" for s in all_scores)
        has_baseline = "HCA" not in result.label
        error = f"{result.baseline_error:.3g}" if has_baseline else "-"
        gradient = f"{result.gradient_square:.3g}"
        rows.append(f"| {result.label} | {shown} | {error} | {gradient} | {result.case.num_steps:,} | {len(all_scores[0])} |")
    path.write_text("\n".join(rows) + "\n")


def write_figure(results: Sequence[Result], path: Path) -> None:
    """Medians over seeds in bands from the least to the greatest: of the bandit against noise, else along the budget."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    section = results[0].case.section
    figure = Figure(figsize=(12, 4), layout="constrained")
    FigureCanvasAgg(figure)
    if section == "bandit":
        left, right = figure.subplots(1, 2)
        arms = list(dict.fromkeys(result.label.rsplit(", ", 1)[0] for result in results))
        for i, arm in enumerate(arms):
            own = [result for result in results if result.label.rsplit(", ", 1)[0] == arm]
            _band(left, NOISES, np.array([result.scores("mean_reward") for result in own]).T, f"C{i}", arm)
            right.plot(NOISES, [result.baseline_error for result in own], ".-", color=f"C{i}", label=arm)
        left.set(xscale="log", xlabel="standard deviation of the reward's noise", ylabel="mean reward at the end (best: 0)")
        right.set(xscale="log", yscale="log", xlabel="standard deviation of the reward's noise", ylabel="E[adv^2]")
        right.grid(alpha=0.3)
        left.legend(fontsize="small")
    else:
        for axes, name in zip(figure.subplots(1, len(SCORES[section]), squeeze=False)[0], SCORES[section], strict=True):
            for i, result in enumerate(results):
                _band(axes, result.steps, result.curves[name].T, f"C{i}", result.label)
            axes.set(xlabel="agent steps of one seed", ylabel=f"P({name})", ylim=(-0.02, 1.02))
        axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=120)


def _band(axes: Any, x: Sequence[float] | np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    """`values` `[S, X]` over `x` `[X]`."""
    axes.plot(x, np.nanmedian(values, axis=0), ".-", color=colour, label=label)
    axes.fill_between(x, np.nanmin(values, axis=0), np.nanmax(values, axis=0), color=colour, alpha=0.15)
    axes.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="NAME", help=f"of {', '.join(SECTIONS)}; all if none is given")
    parser.add_argument("--out", type=Path, default=Path("runs/cca_benchmark"))
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    sections = options.sections or SECTIONS
    if unknown := [name for name in sections if name not in SECTIONS]:
        parser.error(f"there is no {unknown[0]}: choose of {', '.join(SECTIONS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for section in sections:
        results: list[Result] = []
        for case in cases(section):
            members = run(case, options.seeds)
            for result in members:
                print(json.dumps(result.line()), flush=True)
            results += members
            # After every case: a run that is cut off leaves what it has.
            write_table(results, options.out / f"{section}.md")
        write_figure(results, options.out / f"{section}.png")


if __name__ == "__main__":
    main()
