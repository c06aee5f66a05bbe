"""Effects that the paper of counterfactual credit assignment reports, made small: Mesnard et al. 2021,
https://arxiv.org/abs/2011.09464.

    python benchmarks/cca.py [bandit door interleaving] [--arms NAME ...] [--out DIR] [--seeds N] [--steps N]

* bandit: the bandit with feedback, over decades of the reward's noise: actor-critic, CCA, and CCA with a small independence
  weight.
* door: Key-to-Door of 3x3, 5x5 and 3x3 cells, with apples of low and of high variance: actor-critic, CCA with a backward LSTM
  and with attention, CCA without independence, hindsight credit assignment given states and given the return.
* interleaving: three tasks whose rewards are 10, 1 and 0.5: actor-critic and CCA.

Prints a JSON line for each row of the tables, and leaves for each section a table (bandit.md) and a figure (bandit.png) in
`--out`. A row is a population of seeds in the Anakin runtime. Scores are of the training episodes in the last fifth of the
budget; median, least and greatest are over seeds, bands are the quartiles. Beside them stand, of the same episodes, medians
over seeds of the squared error of the baseline, E[adv^2], and of the squared norm of the policy gradient of a decision at its
logits, which compares estimators with and without a baseline. Rewards are scaled in both as the preset says.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np

from podracer.agents.cca.agent import Cca
from podracer.agents.cca.losses import cca_losses
from podracer.launch import job as jobs
from podracer.types import Array, Key, Metrics, Params, TimeStep, TrainState, Trajectory


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
        return np.nanmean(self.curves[name][self.steps > (1 - common.LAST_SHARE) * self.steps[-1]], axis=0)

    @property
    def baseline_error(self) -> float:
        """E[adv^2] of estimators that subtract a baseline: of the hindsight value where there is one, else of the value."""
        return float(np.median(self.scores("hindsight_error" if "hindsight_error" in self.curves else "value_error")))

    @property
    def gradient_square(self) -> float:
        """The squared norm of the policy gradient of one decision at its logits."""
        return float(np.median(self.scores("policy_gradient_square")))

    def line(self) -> dict[str, Any]:
        """What is printed."""
        shown = _SHOWN[self.case.section]
        return {
            "case": self.case.section,
            "title": f"CCA: {self.case.env}",
            "arm": self.label,
            "control": "agent.estimator" in self.case.settings,
            "settings": dict(self.case.settings),
            "independence_weight": self.case.members[self.label],
            "num_steps": self.case.num_steps,
            "scores": {name: self.scores(name) for name in SCORES[self.case.section]},
            "squared_error_of_baseline": self.baseline_error,
            "squared_policy_gradient": self.gradient_square,
            "finite": self.finite,
            "compile_seconds": self.compile_seconds,
            "seconds": self.seconds,
            "curve": common.curve(self.steps, self.curves[shown], y=f"{shown.replace('_', ' ')} of training episodes"),
        }


SCORES = {
    "bandit": ("mean_reward",),
    "door": ("key", "door"),
    "interleaving": ("correct_0", "correct_1", "correct_2"),
}
"""Of each section: what its table shows. The last one of `door`, and all of the others, are in its figure."""
_SHOWN = {"bandit": "mean_reward", "door": "door", "interleaving": "correct_0"}
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
    request = jobs.Request(
        runtime="anakin", agent="cca", env=case.env, steps=case.num_steps, seeds=num_seeds * len(case.members)
    )
    runtime, _, job = common.population(request, case.settings, agent=Measured)
    preset, state = job.agent.independence.weight, runtime.init()
    weights = common.members(np.array([preset if w is None else w for w in case.members.values()]), num_seeds, state)
    state = state.replace(train_state=state.train_state.replace(extra=weights))
    done = common.train(runtime, case.num_steps, state, start=start)
    curves = dict(done.metrics)
    with np.errstate(invalid="ignore", divide="ignore"):
        for name in [name for name in curves if f"{name}#" in curves]:
            curves[name] = curves[name] / curves.pop(f"{name}#")
    found = []
    for i, label in enumerate(case.members):
        own = {name: curve[:, i * num_seeds : (i + 1) * num_seeds] for name, curve in curves.items()}
        finite = bool(np.all(own["finite"]))
        found.append(Result(case, label, done.steps, own, finite, done.compile_seconds, done.seconds))
    return found


def write_table(results: Sequence[Result], path: Path) -> None:
    """A markdown table, one row a population: median (least to greatest) over seeds."""
    names = SCORES[results[0].case.section]
    rows = []
    for result in results:
        scores = [result.scores(name) for name in names]
        error = f"{result.baseline_error:.3g}" if "HCA" not in result.label else "-"
        counts = [f"{result.gradient_square:.3g}", f"{result.case.num_steps:,}", len(scores[0])]
        rows.append([result.label, *map(common.spread, scores), error, *counts])
    path.write_text(common.table(["case", *names, "E[adv^2]", "squared gradient", "steps a seed", "seeds"], rows))


def write_figure(results: Sequence[Result], path: Path) -> None:
    """Medians over seeds and quartiles: of the bandit against noise, else along the budget."""
    section = results[0].case.section
    if section == "bandit":
        figure, ((left, right),) = common.figure(2, width=6)
        arms = list(dict.fromkeys(result.label.rsplit(", ", 1)[0] for result in results))
        for i, arm in enumerate(arms):
            own = [result for result in results if result.label.rsplit(", ", 1)[0] == arm]
            noises = [result.case.settings["env.noise"] for result in own]
            common.band(left, noises, [result.scores("mean_reward") for result in own], arm, f"C{i}", ".-")
            right.plot(noises, [result.baseline_error for result in own], ".-", color=f"C{i}", label=arm)
        left.set(xscale="log", xlabel="standard deviation of the reward's noise", ylabel="mean reward at the end (best: 0)")
        right.set(xscale="log", yscale="log", xlabel="standard deviation of the reward's noise", ylabel="E[adv^2]")
        left.legend(fontsize="small")
    else:
        figure, (axes,) = common.figure(len(SCORES[section]), width=5)
        for panel, name in zip(axes, SCORES[section], strict=True):
            for i, result in enumerate(results):
                common.band(panel, result.steps, result.curves[name], result.label, f"C{i}", ".-")
            panel.set(xlabel="agent steps of one seed", ylabel=f"P({name})", ylim=(-0.02, 1.02))
        axes[-1].legend(fontsize="x-small")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = common.parser(__doc__, SECTIONS, "cca_benchmark", seeds=5)
    parser.add_argument(
        "--arms", nargs="+", metavar="NAME", help="rows of the tables, as they are called there; all if none is given"
    )
    parser.add_argument("--steps", type=int, help="agent steps of one seed, in the place of each row's own")
    options = common.parse(parser, SECTIONS)
    for section in options.cases:
        results: list[Result] = []
        for case in cases(section):
            members = {label: weight for label, weight in case.members.items() if label in (options.arms or case.members)}
            if not members:
                continue
            case = dataclasses.replace(case, members=members, num_steps=options.steps or case.num_steps)
            for result in run(case, options.seeds):
                common.emit("cca", **result.line())
                results.append(result)
            # After every case: a run that is cut off leaves what it has.
            write_table(results, options.out / f"{section}.md")
        if results:
            write_figure(results, options.out / f"{section}.png")


if __name__ == "__main__":
    main()
