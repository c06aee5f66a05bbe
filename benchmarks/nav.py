"""The comparisons of Nav's paper, made small: Mirowski et al. 2017, https://arxiv.org/abs/1611.03673, figure 3 and table 1.

    python benchmarks/nav.py [static random] [--arms NAME ...] [--out DIR] [--seeds N] [--steps N]

* static: `nav/ray_maze` as its preset has it: a maze of 3x5 cells, goal and fruit always in the same places.
* random: goal and fruit in other places in every episode.

Arms are the agents of the paper, and `untrained`: Nav with a loss of 0, whose probe alone learns. All have the settings of the
preset. A row is a population of seeds in the Anakin runtime; arms that differ in weights of losses alone are one program.

* AUC: mean episode return over the whole budget; final: over its last fifth. Both of the training episodes.
* Of one more episode of each of 64 environments, after training: how often the linear probe on the memory tells the square
  in which the agent is; F1 of loop closure; and agent steps to the goal. To the first goal of an episode they are the steps
  spent before it, also in episodes that do not find it, divided by the episodes that do; to later ones the steps after the
  first goal, divided by the goals found in them.

Each row is kept in `--out` as JSON when it is done, so that the benchmark can be run in pieces; the tables (static.md) and
figures (static.png) are of all rows there. Prints a JSON line for each row.
"""

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np

from podracer.agents.nav.agent import Nav
from podracer.agents.nav.config import VARIANTS
from podracer.launch import job as jobs
from podracer.types import Array, Key, Metrics, Mode, Params, TrainState, Trajectory

ENV = "nav/ray_maze"
GOALS = ("static", "random")
ARMS: Mapping[str, Mapping[str, Any]] = {**VARIANTS, "untrained": {"agent.loss_scale": 0.0}}
WEIGHTS = {"agent.beta_d1": 0.0, "agent.beta_d2": 0.0, "agent.beta_l": 0.0, "agent.loss_scale": 1.0}
"""Settings in which members of one program can differ, and what they are in the preset."""
_NUM_EPISODES = 64


class Measured(Nav):
    """The agent, with WEIGHTS as data, and with what it knows as it plays.

    `TrainState.extra` is these weights, `[4]`; a head is there if its weight is not 0 in the settings, whatever it is there.
    """

    def loss(self, params: Params, train_state: TrainState, trajectory: Trajectory, key: Key) -> tuple[Array, Metrics]:
        _, metrics = super().loss(params, train_state, trajectory, key)
        config, weights = self.config, train_state.extra
        loss = metrics["loss"]
        for weight, name, beta in zip(
            weights, ("d1", "d2", "loop"), (config.beta_d1, config.beta_d2, config.beta_l), strict=False
        ):
            if beta:
                loss += (weight - beta) * metrics[f"{name}_loss"]
        return weights[-1] * loss + metrics["position_loss"], metrics

    def play(self, environment: Any, num_steps: int, params: Params, key: Key) -> dict[str, Array]:
        """An episode of `num_steps` steps in each of `E` environments side by side.

        Returns:
          goals: `[num_steps + 1, E]` int32, found so far. position_right: `[]` float32, share of the time steps. loop_found,
          loop_wrong: `[]` int32, loops that were told, and errors of either kind.
        """
        of_reset, of_steps = jax.random.split(key)
        env_state, timestep = environment.reset(jax.random.split(of_reset, _NUM_EPISODES))

        def step(carry: Any, key: Key) -> tuple[Any, dict[str, Array]]:
            env_state, timestep, memory = carry
            of_act, of_env = (jax.random.split(k, _NUM_EPISODES) for k in jax.random.split(key))
            seen, labels = timestep.unlabelled(), timestep.aux
            outputs, _ = self._look(params, memory, seen)
            output, memory = self.act(params, memory, seen, of_act, Mode.EVALUATE)
            told = jnp.zeros(labels["loop_closure"].shape, bool)
            if not isinstance(outputs.loop_closure, tuple):
                told = outputs.loop_closure > 0
            found = {
                "goals": labels["goals"],
                "position_right": jnp.argmax(outputs.position, axis=-1) == labels["position"],
                "loop_found": told & labels["loop_closure"],
                "loop_wrong": told != labels["loop_closure"],
            }
            return (*environment.step(env_state, output.action, of_env), memory), found

        start = (env_state, timestep, self.initial_actor_state(_NUM_EPISODES))
        (_, last, _), found = jax.lax.scan(step, start, jax.random.split(of_steps, num_steps))
        return {
            "goals": jnp.concatenate([found["goals"], last.aux["goals"][None]]),
            "position_right": jnp.mean(found["position_right"]),
            "loop_found": jnp.sum(found["loop_found"]),
            "loop_wrong": jnp.sum(found["loop_wrong"]),
        }


@dataclasses.dataclass(frozen=True)
class Case:
    """One program.

    goal: of GOALS. num_steps: agent steps of one seed. settings: overrides over the preset. members: arms of it, with their
    WEIGHTS.
    """

    goal: str
    num_steps: int
    settings: Mapping[str, Any]
    members: Mapping[str, Sequence[float]]


def cases(goal: str, arms: Sequence[str], num_steps: int) -> list[Case]:
    """The programs of some arms, which are in one where they differ in WEIGHTS alone."""
    found: dict[str, Case] = {}
    for arm in arms:
        own = {name: value for name, value in ARMS[arm].items() if name not in WEIGHTS}
        weights = [ARMS[arm].get(name, value) for name, value in WEIGHTS.items()]
        case = found.setdefault(json.dumps(own), Case(goal, num_steps, {"env.goal": goal, **own}, {}))
        heads = {name: 1.0 for name, weight in list(zip(WEIGHTS, weights, strict=True))[:-1] if weight}
        found[json.dumps(own)] = dataclasses.replace(
            case, settings={**case.settings, **heads}, members={**case.members, arm: weights}
        )
    return list(found.values())


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a case; `P` points along the budget, `S` seeds.

    steps: `[P]`, agent steps of one seed at the end of each point in which episodes ended. returns: `[P, S]`, of training.
    position, loop_f1, first, later: `[S]`, of the episodes after it; nan where there is nothing to tell. finite: all parameters
    stayed so. compile_seconds: of the whole case, until its first update was done; seconds: of the whole case.
    """

    goal: str
    arm: str
    steps: list[int]
    returns: list[list[float]]
    position: list[float]
    loop_f1: list[float]
    first: list[float]
    later: list[float]
    finite: bool
    compile_seconds: float
    seconds: float

    @property
    def auc(self) -> np.ndarray:
        """`[S]`: mean return over the budget."""
        return np.mean(np.array(self.returns), axis=0)

    @property
    def final(self) -> np.ndarray:
        """`[S]`: mean return over its last fifth."""
        steps = np.array(self.steps)
        return np.mean(np.array(self.returns)[steps > (1 - common.LAST_SHARE) * steps[-1]], axis=0)


def latencies(goals: np.ndarray) -> tuple[float, float]:
    """Agent steps to the first goal of an episode, and to later ones: steps spent on them by goals found; nan where none was.

    goals: `[T+1, E]`, found so far at each time step of an episode.
    """
    found_any, num_later = np.sum(goals[-1] > 0), np.sum(np.maximum(goals[-1] - 1, 0))
    searched = np.sum(goals[:-1] == 0)
    first = float(searched / found_any) if found_any else math.nan
    return first, float((goals[:-1].size - searched) / num_later) if num_later else math.nan


def run(case: Case, num_seeds: int) -> list[Result]:
    """Trains the members of a case together, and lets each play."""
    start, num_columns = time.perf_counter(), num_seeds * len(case.members)
    request = jobs.Request(runtime="anakin", agent="nav", env=ENV, steps=case.num_steps, seeds=num_columns)
    runtime, environment, _ = common.population(request, case.settings, agent=Measured)
    agent, state = runtime.agent, runtime.init()
    weights = common.members(np.array(list(case.members.values())), num_seeds, state)
    state = state.replace(train_state=state.train_state.replace(extra=weights))
    done = common.train(runtime, case.num_steps, state, start=start)
    some = np.all(done.metrics["episodes"], axis=1)
    if not some.any():
        raise SystemExit(f"no episode ended within {case.num_steps:,} steps: ask for more with --steps")
    params = agent.actor_params(done.state.train_state)
    num_steps = environment.environment.config.max_steps
    if num_columns == 1:
        params = jax.tree.map(lambda x: x[None], params)
    side_by_side = environment.vectorize(_NUM_EPISODES, 0)
    keys = jax.random.split(jax.random.key(1_000_003), num_columns)
    played = jax.jit(jax.vmap(lambda params, key: agent.play(side_by_side, num_steps, params, key)))(params, keys)
    played = {name: np.asarray(value) for name, value in played.items()}
    played["loop_f1"] = 2 * played["loop_found"] / np.maximum(2 * played["loop_found"] + played["loop_wrong"], 1)
    found = []
    for i, (arm, weights) in enumerate(case.members.items()):
        columns = slice(i * num_seeds, (i + 1) * num_seeds)
        latency = [latencies(goals) for goals in played["goals"][columns]]
        tells_loops = weights[list(WEIGHTS).index("agent.beta_l")] > 0
        result = Result(
            goal=case.goal,
            arm=arm,
            steps=done.steps[some].tolist(),
            returns=done.metrics["episode_return"][some, columns].tolist(),
            position=[float(x) for x in played["position_right"][columns]],
            loop_f1=[float(x) if tells_loops else math.nan for x in played["loop_f1"][columns]],
            first=[first for first, _ in latency],
            later=[later for _, later in latency],
            finite=bool(np.all(done.metrics["finite"][:, columns])),
            compile_seconds=round(done.compile_seconds, 1),
            seconds=round(time.perf_counter() - start, 1),
        )
        found.append(result)
    return found


COLUMNS = {
    "AUC": (lambda result: result.auc, "{:.1f}"),
    "final": (lambda result: result.final, "{:.1f}"),
    "position": (lambda result: result.position, "{:.2f}"),
    "first goal": (lambda result: result.first, "{:.0f}"),
    "later goals": (lambda result: result.later, "{:.0f}"),
    "loop F1": (lambda result: result.loop_f1, "{:.2f}"),
}
"""Of the tables: what they show of a result, `[S]`, and how."""


def write_table(results: Sequence[Result], path: Path) -> None:
    """A markdown table, one row a population: median (least to greatest) over seeds."""
    rows = []
    for result in results:
        cells = [common.spread(take(result), form) for take, form in COLUMNS.values()]
        rows.append([result.arm, *cells, f"{result.steps[-1]:,}", len(result.position)])
    path.write_text(common.table(["arm", *COLUMNS, "steps a seed", "seeds"], rows))


def write_figure(results: Sequence[Result], path: Path) -> None:
    """Medians over seeds along the budget, and their quartiles."""
    figure, ((axes,),) = common.figure(width=8, height=5)
    for i, result in enumerate(results):
        common.band(axes, result.steps, result.returns, result.arm, f"C{i}", ".-")
    axes.set(xlabel="agent steps of one seed", ylabel="episode return (training)", title=f"{ENV}, goal={results[0].goal}")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)


def report(goal: str, out: Path) -> None:
    """Table and figure of all rows of a goal that are in `out`, in the order of ARMS."""
    kept = [json.loads(path.read_text()) for path in out.glob(f"{goal}-*.json")]
    fields = [field.name for field in dataclasses.fields(Result)]
    found = [Result(**{name: values[name] for name in fields}) for values in kept]
    results = sorted(found, key=lambda result: list(ARMS).index(result.arm))
    write_table(results, out / f"{goal}.md")
    write_figure(results, out / f"{goal}.png")


def main() -> None:
    parser = common.parser(__doc__, GOALS, "nav_benchmark", seeds=3, steps=2_000_000)
    parser.add_argument(
        "--arms", nargs="+", metavar="NAME", choices=list(ARMS), default=list(ARMS), help=f"of: {'; '.join(ARMS)}"
    )
    options = common.parse(parser, GOALS)
    for goal in options.cases:
        for case in cases(goal, options.arms, options.steps):
            for result in run(case, options.seeds):
                kept = json.dumps(dataclasses.asdict(result))
                (options.out / f"{goal}-{result.arm.replace(', ', '_').replace(' ', '_')}.json").write_text(kept + "\n")
                common.emit("nav", **line(result))
            report(goal, options.out)


def line(result: Result) -> dict[str, Any]:
    """What is printed: all but the curve in figures that COLUMNS name."""
    return {
        "case": result.goal,
        "title": f"{ENV}, {result.goal} goal",
        "arm": result.arm,
        "control": result.arm == "untrained",
        "scores": {name: np.asarray(take(result)) for name, (take, _) in COLUMNS.items()},
        "finite": result.finite,
        "compile_seconds": result.compile_seconds,
        "seconds": result.seconds,
        "curve": common.curve(result.steps, result.returns),
    }


if __name__ == "__main__":
    main()
