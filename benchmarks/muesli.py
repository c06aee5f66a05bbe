"""Effects that the Muesli paper reports, made small: Hessel et al. 2021, https://arxiv.org/abs/2104.06159.

    python benchmarks/muesli.py [R1 R2 R3 R4] [--out DIR] [--seeds N] [--steps N]

* R1, figure 4: the scale of advantages from 1e-3 to 1e3, with CMPO's clip and without it.
* R2, section 4.5: rewards times 1000, nothing else changed.
* R3, figures 6a and 7a: Muesli without one of its parts at a time.
* R4, figure 6b: how many actions estimate the CMPO loss, of 18.

Prints a JSON line for each row of the tables, and leaves for each reproduction a table (R1.md) and a figure (R1.png) in
`--out`. A row is a population of seeds; rows that differ only in numbers share a program of the Anakin runtime. A score is the
mean return of the training episodes (played by the target network's policy, as in the paper) that end in the last fifth of the
budget; median, least and greatest over seeds are shown, bands are the quartiles.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer.agents.muesli.agent import Muesli
from podracer.environment import JaxEnvironment
from podracer.launch import job as jobs
from podracer.types import Array, Key, Metrics, Params, TimeStep, TrainState, Trajectory

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
        late = self.steps > (1 - common.LAST_SHARE) * self.steps[-1]
        weights = np.where(np.isfinite(self.returns), self.episodes, 0)[late]
        return np.sum(weights * np.nan_to_num(self.returns[late]), axis=0) / np.maximum(np.sum(weights, axis=0), 1)

    def line(self) -> dict[str, Any]:
        """What is printed."""
        scores = self.scores()
        return {
            "case": self.case.experiment,
            "title": f"Muesli on {self.case.env}",
            "arm": self.label,
            "control": False,
            "settings": self.case.settings,
            "numbers": self.case.members[self.label],
            "num_steps": self.case.num_steps,
            "return_median": np.median(scores),
            "return_min": np.min(scores),
            "return_max": np.max(scores),
            "returns": scores,
            "finite": self.finite,
            "compile_seconds": self.compile_seconds,
            "seconds": self.seconds,
            "curve": common.curve(self.steps[self.whole], self.returns[self.whole]),
        }

    @property
    def whole(self) -> np.ndarray:
        """`[P]`: the points with enough episodes for a mean; the first call and the last are short."""
        return np.asarray(np.all(self.episodes > 0.25 * np.median(self.episodes, axis=0), axis=1))


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
    request = jobs.Request(
        runtime="anakin",
        agent="muesli",
        env=case.env,
        steps=case.num_steps,
        seeds=num_seeds * len(case.members),
        settings=case.settings,
    )
    wrap = PaddedActions if case.padded else lambda environment: environment
    runtime, *_ = common.population(request, agent=Sweep, wrap=wrap)
    state, each = runtime.init(), list(case.members.values())
    numbers = {name: np.array([own[name] for own in each]) for name in each[0]}
    extra = (state.train_state.extra, common.members(numbers, num_seeds, state))
    done = common.train(runtime, case.num_steps, state.replace(train_state=state.train_state.replace(extra=extra)))
    returns, episodes, finite = (
        np.split(done.metrics[name], len(each), axis=1) for name in ("episode_return", "episodes", "finite")
    )
    return [
        Result(case, label, done.steps, own, counts, bool(np.all(fine)), done.compile_seconds, done.seconds)
        for label, own, counts, fine in zip(case.members, returns, episodes, finite, strict=True)
    ]


def write_table(results: Sequence[Result], path: Path) -> None:
    """A markdown table, one row a case."""
    rows = []
    for result in results:
        scores = result.scores()
        figures = [f"{value:.2f}" for value in (np.median(scores), scores.min(), scores.max())]
        rows.append([result.label, *figures, f"{result.case.num_steps:,}", len(scores)])
    path.write_text(common.table(["case", "median", "least", "greatest", "steps a seed", "seeds"], rows))


def write_figure(results: Sequence[Result], path: Path) -> None:
    """Learning curves, median over seeds and quartiles; for R1 also scores against the scale."""
    by_scale = results[0].case.experiment == "R1"
    figure, ((curves, *rest),) = common.figure(2 if by_scale else 1, width=5.5 if by_scale else 7)
    for i, result in enumerate(results):
        style = "--" if by_scale and i >= len(SCALES) else "-"
        colour = f"C{i % len(SCALES)}" if by_scale else f"C{i}"
        common.band(curves, result.steps[result.whole], result.returns[result.whole], result.label, colour, style)
    curves.set(xlabel="agent steps of one seed", ylabel="episode return (training)", title=results[0].case.env)
    curves.legend(fontsize="x-small")
    for axes in rest:
        for i, clip in enumerate(CLIPS):
            scores = [result.scores() for result in results[i * len(SCALES) : (i + 1) * len(SCALES)]]
            common.band(axes, SCALES, scores, f"clip {clip}", f"C{i}", ".--" if i else ".-")
        axes.set(xscale="log", xlabel="scale of advantages", ylabel="return at the end of the budget")
        axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = common.parser(__doc__, EXPERIMENTS, "muesli_benchmark", seeds=5)
    parser.add_argument("--steps", type=int, help="agent steps of one seed, in the place of each case's own")
    options = common.parse(parser, EXPERIMENTS)
    for name in options.cases:
        results: list[Result] = []
        for case in cases(name):
            results += run(dataclasses.replace(case, num_steps=options.steps or case.num_steps), options.seeds)
            for result in results[-len(case.members) :]:
                common.emit("muesli", **result.line())
        write_table(results, options.out / f"{name}.md")
        write_figure(results, options.out / f"{name}.png")


if __name__ == "__main__":
    main()
