"""Learning curves of the command line: an agent on a task beside a control that must not learn it, or a baseline.

    python benchmarks/learning.py [muesli_catch ...] [--seeds N] [--steps N]

Every arm is `podracer launch` in a process of its own: in Anakin with `--seeds`, in Sebulba a command for each seed. Budgets
are cut to what two cores make in some minutes; --steps and --seeds take the place of a case's own. Prints one JSON line an arm:
commands, the returns of training episodes, and what each seed was evaluated at in the end.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import common
import numpy as np

from podracer.metrics.log import read_rows


@dataclasses.dataclass(frozen=True)
class Arm:
    """A line of a figure. settings: of `--set`. share: of the case's budget; a control that stands still needs no more."""

    settings: tuple[str, ...] = ()
    control: bool = False
    share: float = 1.0


@dataclasses.dataclass(frozen=True)
class Case:
    """A figure. words: what `podracer launch` is given, without steps and seeds. arms: by label."""

    title: str
    words: str
    steps: int
    seeds: int
    arms: Mapping[str, Arm]


_FROZEN = Arm(("agent.learning_rate=0",), control=True, share=0.3)
_ONE_STEP = ("agent.acting=prior", "agent.targets=one_step", "agent.evaluation.act=sample")
_CARTPOLE = "sebulba --agent {} --env gymnasium/CartPole-v1"
CASES = {
    "muesli_catch": Case(
        "Muesli on Catch, Anakin",
        "anakin --agent muesli --env catch",
        130_000,
        5,
        {"Muesli": Arm(), "control: learning rate 0": _FROZEN},
    ),
    "impala_cartpole": Case(
        "IMPALA on CartPole, Sebulba",
        _CARTPOLE.format("impala"),
        1_500_000,
        3,
        {
            "in turns (the preset)": Arm(),
            "a lag of up to 2 updates": Arm(("sebulba.sync=false", "sebulba.max_lag=2")),
            "control: learning rate 0": dataclasses.replace(_FROZEN, share=0.1),
        },
    ),
    "muesli_cartpole": Case(
        "Muesli on CartPole, Sebulba",
        _CARTPOLE.format("muesli"),
        400_000,
        2,
        {"queue in the process": Arm(), "through Reverb": Arm(("sebulba.store=reverb",))},
    ),
    "muzero_key_door": Case(
        "MuZero on a key and a door, Anakin",
        "anakin --agent muzero --env gridworld/key_door --set eval_episodes=100",
        120_000,
        3,
        {"search in the environment": Arm(), "baseline: One-Step, the same network": Arm(_ONE_STEP, control=True)},
    ),
    "muzero_sokoban": Case(
        "MuZero on Sokoban (mini), Anakin",
        "anakin --agent muzero --env sokoban/mini --set agent.decay_updates=4688",
        300_000,
        1,
        {"search in the environment": Arm(), "baseline: One-Step, the same network": Arm(_ONE_STEP, control=True)},
    ),
    "r2d2_tmaze": Case(
        "R2D2 on a T-maze, Anakin",
        "anakin --agent r2d2 --env gridworld/tmaze",
        400_000,
        3,
        {"R2D2": Arm(), "control: without a memory": Arm(("agent.core.kind=none",), control=True, share=0.5)},
    ),
}


def command_of(case: Case, arm: Arm, steps: int, seeds: int, seed: int | None) -> list[str]:
    """The words after `podracer launch`; seed: of a single one, None for a population."""
    words = [*case.words.split(), "--steps", str(round(arm.share * steps))]
    words += ["--seeds", str(seeds)] if seed is None else ["--seed", str(seed)]
    return words + [word for setting in arm.settings for word in ("--set", setting)]


def run(words: list[str], run_dir: Path) -> tuple[np.ndarray, np.ndarray, list[float], float]:
    """Trains and evaluates: steps `[P]`, returns `[P, S]`, evaluation of each seed, agent steps/s."""
    command = [sys.executable, "-m", "podracer.launch.cli", "launch", *words, "--run-dir", str(run_dir)]
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode:
        raise SystemExit(f"podracer launch {' '.join(words)} ended with exit code {done.returncode}")
    summary = json.loads((run_dir / "summary.json").read_text())
    each = summary.get("seeds", [summary])
    rows = [row for row in read_rows(run_dir) if row.get("episode_return") is not None]
    steps = np.array([row["num_agent_steps"] / len(each) for row in rows])
    returns = np.array([np.atleast_1d(row["episode_return"]) for row in rows], np.float64)
    length = np.diff(steps, prepend=0.0)  # the first and the last row can be, in which only the shortest episodes ended
    returns[length < 0.5 * np.median(length)] = np.nan
    return steps, returns, [seed["eval_return_mean"] for seed in each], summary["agent_steps_per_second"]


def arm_line(name: str, label: str, steps: int, seeds: int) -> dict[str, Any]:
    """What `main` prints of one arm."""
    case = CASES[name]
    arm, start = case.arms[label], time.perf_counter()
    together = case.words.startswith("anakin")
    commands = [command_of(case, arm, steps, seeds, None if together else seed) for seed in ([0] if together else range(seeds))]
    with tempfile.TemporaryDirectory() as folder:
        found = [run(words, Path(folder) / str(i)) for i, words in enumerate(commands)]
    seen = [(steps[kept], seed[kept]) for steps, returns, *_ in found for seed in returns.T for kept in [np.isfinite(seed)]]
    # Rows come about one a second, so those of two processes are at other steps.
    grid = np.linspace(max(steps[0] for steps, _ in seen), min(steps[-1] for steps, _ in seen), 80)
    at_grid = [np.interp(grid, *rows) for rows in seen]
    return {
        "case": name,
        "title": case.title,
        "arm": label,
        "control": arm.control,
        "commands": [f"podracer launch {' '.join(words)}" for words in commands],
        "num_steps": round(arm.share * steps),
        "curve": common.curve(grid.round(), np.stack(at_grid, axis=1)),
        "evaluation": [value for *_, evaluation, _ in found for value in evaluation],
        "agent_steps_per_second": [rate for *_, rate in found],
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    parser = common.parser(__doc__, tuple(CASES))
    parser.add_argument("--seeds", type=int, help="in the place of each case's own")
    parser.add_argument("--steps", type=int, help="agent steps of one seed, in the place of each case's own")
    options = common.parse(parser, tuple(CASES))
    for name in options.cases:
        case = CASES[name]
        for label in case.arms:
            common.emit("learning", **arm_line(name, label, options.steps or case.steps, options.seeds or case.seeds))


if __name__ == "__main__":
    main()
