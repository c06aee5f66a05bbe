"""What planning is good for, made small: Hamrick et al. 2021, https://arxiv.org/abs/2011.04021, with MuZero on Minipacman.

    python benchmarks/planning.py [variants depth evaluation] [--out DIR] [--seeds N] [--steps N]

* variants: One-Step, Learn, Data, Learn+Data and Learn+Data+Eval after the same number of environment steps. Claim:
  planning helps most in learning, by its targets and by the data it leads to; planning in evaluation adds little.
* depth: `D_tree` of 1, 2 and 4 actions, `D_UCT` of 1 and 0, and neither limited, with the same number of simulations
  (PUCT). Claim: shallow trees with simple Monte-Carlo rollouts do as well.
* evaluation: the agent of Learn+Data, evaluated with 0 to 32 simulations, in the learned model and in the
  true environment, in the mazes that it was trained in and in unseen ones. Claim: planning alone does not generalise.

Trains on 8 mazes of `minipacman/mini`; the seeds of a row are one population. Prints a JSON line for each row and leaves for
each experiment a table (variants.md) and a figure (variants.png) in `--out`. A score is the mean return of `--episodes`
evaluation episodes of a seed; rows show median, least and greatest over seeds.
"""

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np

from podracer import config
from podracer.agents.muzero.config import VARIANTS
from podracer.evaluate import Evaluator
from podracer.launch import job as jobs
from podracer.launch.loop import Counters, updates
from podracer.runtimes.anakin import Anakin

_MAZES = 8
SETTINGS: Mapping[str, Any] = {
    "env.num_mazes": _MAZES,
    "agent.torso.hidden": (64,),
    "agent.dynamics.size": 64,
    "agent.bins.num_bins": 41,
    "agent.bins.limit": 6.0,
    "agent.model_steps": 3,
    "agent.search.num_simulations": 8,
    "agent.search.value_scale": 0.05,
    "agent.unroll_length": 20,
    "agent.replay_capacity": 3200,
    "agent.bootstrap": "target",
    "agent.target_period": 50,
    "agent.discount": 0.97,
    "agent.learning_rate": 1e-3,
    "anakin.num_envs": 16,
    "anakin.minibatches": 4,
}
_UNSEEN = {"env.first_maze": _MAZES, "env.num_mazes": 100}
LABELS = {
    "one_step": "One-Step",
    "learn": "Learn",
    "data": "Data",
    "learn_data": "Learn+Data",
    "learn_data_eval": "Learn+Data+Eval",
}
DEPTHS: Mapping[str, Mapping[str, int]] = {
    "D_tree=1": {"agent.search.max_depth": 1},
    "D_tree=2": {"agent.search.max_depth": 2},
    "D_tree=4": {"agent.search.max_depth": 4},
    "no limit": {},
    "D_UCT=1": {"agent.search.uct_depth": 1},
    "D_UCT=0": {"agent.search.uct_depth": 0},
}
BUDGETS = (0, 2, 8, 32)


@dataclasses.dataclass(frozen=True)
class Row:
    """A trained agent and how it is evaluated, as overrides over SETTINGS; rows that train alike are trained once."""

    experiment: str
    label: str
    training: Mapping[str, Any]
    evaluation: Mapping[str, Any]


def rows(experiment: str) -> list[Row]:
    """The rows of one of EXPERIMENTS."""
    if experiment == "variants":
        return [Row(experiment, label, *_variant(name)) for name, label in LABELS.items()]
    if experiment == "depth":
        return [Row(experiment, label, {"agent.search.kind": "puct", **limit}, {}) for label, limit in DEPTHS.items()]
    training, policy = _variant("learn_data")
    found = []
    for place, mazes in (("seen", {}), ("unseen", _UNSEEN)):
        for model in ("learned", "simulator"):
            for budget in BUDGETS:
                search = {"agent.evaluation.num_simulations": budget, "agent.evaluation.model": model} if budget else policy
                found.append(Row(experiment, f"{place}, {model}, {budget}", training, {**mazes, **search}))
    return found


def _variant(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """How one of VARIANTS is trained, and how it is evaluated."""
    of_evaluation = {key: value for key, value in VARIANTS[name].items() if key.startswith("agent.evaluation")}
    return {key: value for key, value in VARIANTS[name].items() if key not in of_evaluation}, of_evaluation


EXPERIMENTS = ("variants", "depth", "evaluation")


def make_job(settings: Mapping[str, Any], steps: int, seeds: int) -> Any:
    """The job that the command line would make."""
    request = jobs.Request(runtime="anakin", agent="muzero", env="minipacman/mini", steps=steps, seeds=seeds)
    return config.override(jobs.new_job(request)[0], {**SETTINGS, **settings})


def train(settings: Mapping[str, Any], steps: int, seeds: int) -> tuple[list[Any], float]:
    """What each seed acts with after `steps` agent steps, and seconds."""
    start = time.perf_counter()
    parts = jobs.build(make_job(settings, steps, seeds))
    runtime = Anakin(parts.agent, parts.environment, parts.plan)
    *_, (state, _, _) = updates(runtime, runtime.init(), Counters(), steps)
    return [runtime.actor_params(state, seed) for seed in range(seeds)], time.perf_counter() - start


def score(row: Row, params: Sequence[Any], steps: int, episodes: int) -> np.ndarray:
    """`[S]`: mean evaluation return of each seed."""
    agent, environment = jobs.build_agent(make_job({**row.training, **row.evaluation}, steps, len(params)))
    evaluator = Evaluator(agent, environment, episodes)
    try:
        return np.array([evaluator.run(one).returns.mean() for one in params])
    finally:
        evaluator.close()


def line(row: Row, scores: np.ndarray, steps: int, episodes: int, seconds: float) -> dict[str, Any]:
    """What is printed."""
    return {
        "case": row.experiment,
        "arm": row.label,
        "settings": {**row.training, **row.evaluation},
        "num_steps": steps,
        "episodes": episodes,
        "return_median": np.median(scores),
        "return_min": np.min(scores),
        "return_max": np.max(scores),
        "returns": scores,
        "training_seconds": seconds,
    }


def write_table(results: Sequence[tuple[Row, np.ndarray]], steps: int, path: Path) -> None:
    """A markdown table, one line a row."""
    rows = []
    for row, scores in results:
        rows.append([row.label, *(f"{f(scores):.2f}" for f in (np.median, np.min, np.max)), len(scores)])
    path.write_text(common.table([f"{steps:,} steps a seed", "median", "least", "greatest", "seeds"], rows))


def write_figure(results: Sequence[tuple[Row, np.ndarray]], path: Path) -> None:
    """Medians over seeds with the quartiles: bars, and of `evaluation` curves against the budget."""
    figure, ((axes,),) = common.figure()
    if results[0][0].experiment == "evaluation":
        for i in range(0, len(results), len(BUDGETS)):
            values = [scores for _, scores in results[i : i + len(BUDGETS)]]
            label = results[i][0].label.rsplit(",", 1)[0]
            common.band(axes, range(len(BUDGETS)), values, label, f"C{i // len(BUDGETS)}", ".-")
        axes.set_xticks(range(len(BUDGETS)), [str(budget) if budget else "policy" for budget in BUDGETS])
        axes.set(xlabel="simulations in evaluation")
        axes.legend(title="mazes, model")
    else:
        low, middle, high = np.quantile([scores for _, scores in results], [0.25, 0.5, 0.75], axis=1)
        axes.bar([row.label for row, _ in results], middle, yerr=[middle - low, high - middle])
        axes.tick_params(axis="x", labelrotation=20)
    axes.set(ylabel="evaluation return", title="minipacman/mini")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = common.parser(__doc__, EXPERIMENTS, "planning_benchmark", seeds=3, steps=60_000)
    parser.add_argument("--episodes", type=int, default=64)
    options = common.parse(parser, EXPERIMENTS)
    trained: dict[str, tuple[list[Any], float]] = {}
    for experiment in options.cases:
        results = []
        for row in rows(experiment):
            key = json.dumps(row.training, sort_keys=True)
            if key not in trained:
                trained[key] = train(row.training, options.steps, options.seeds)
            params, seconds = trained[key]
            scores = score(row, params, options.steps, options.episodes)
            common.emit("planning", **line(row, scores, options.steps, options.episodes, seconds))
            results.append((row, scores))
        write_table(results, options.steps, options.out / f"{experiment}.md")
        write_figure(results, options.out / f"{experiment}.png")


if __name__ == "__main__":
    main()
