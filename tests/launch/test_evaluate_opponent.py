"""`podracer evaluate RUN --opponent NAME`: one line of results, or one line that says why not."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_parts import TINY

from podracer.launch import job as jobs

HERE = Path(__file__).parent

RUN = ("launch", "anakin", *TINY, "--set", "eval_episodes=4", "--set", "agent.replay_share=0", "--steps", 200)
GAME = ("--env", "tiny_parts:GAME")
LINE = re.compile(
    r"^(seed \d+: )?(?P<games>\d+) games against (?P<name>.+): (?P<won>\d+) won, (?P<drawn>\d+) drawn, (?P<lost>\d+) lost "
    r"\(as first player (?P<first>.+); as second (?P<second>.+)\); "
    r"mean return (?P<mean>-?[\d.]+) \(standard error (?P<error>[\d.]+|nan)\)$",
    re.MULTILINE,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `game` and `seeds` (two of them) of a game for two, and `alone`, which has not begun."""
    folder = tmp_path_factory.mktemp("runs")
    for name, options in {"game": (), "seeds": ("--seeds", 2)}.items():
        command = [sys.executable, "-m", "podracer.launch.cli", *map(str, (*RUN, *GAME, *options, "--run-dir", folder / name))]
        subprocess.run(command, cwd=HERE, check=True, capture_output=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(HERE)  # where `tiny_parts` is found
        (folder / "alone").mkdir()
        jobs.save_job(folder / "alone", *jobs.new_job(jobs.Request("anakin", TINY[1], TINY[3])))
    return folder


def _lines(result: Any) -> list[dict[str, str]]:
    assert (result.code, result.err) == (0, ""), result
    return [found.groupdict() for found in LINE.finditer(result.out)]


def _total(results: str) -> int:
    return sum(int(number) for number in re.findall(r"\d+", results))


@pytest.mark.parametrize("opponent", ["random", "right", "tiny_parts:always_right"])
def test_one_line_says_who_won(podracer: Callable[..., Any], runs: Path, opponent: str) -> None:
    (line,) = _lines(podracer("evaluate", runs / "game", "--opponent", opponent, "--episodes", 21))
    assert (line["games"], line["name"]) == ("21", opponent)
    assert int(line["won"]) + int(line["drawn"]) + int(line["lost"]) == 21
    assert (_total(line["first"]), _total(line["second"])) == (11, 10)
    if opponent != "random":  # the agent has learned next to nothing
        assert float(line["mean"]) < 0 < float(line["error"])


@pytest.mark.parametrize(("name", "said"), [("game", ""), ("seeds", ", seed 0")])
def test_another_run_is_an_opponent(podracer: Callable[..., Any], runs: Path, name: str, said: str) -> None:
    (line,) = _lines(podracer("evaluate", runs / "game", "--opponent", runs / name, "--episodes", 8))
    assert re.fullmatch(rf"tiny_parts:TinyAgent of {re.escape(str(runs / name))} after \d+ updates{said}", line["name"])


def test_every_seed_plays(podracer: Callable[..., Any], runs: Path) -> None:
    result = podracer("evaluate", runs / "seeds", "--opponent", "right", "--episodes", 8, "--video", runs / "film.mp4")
    assert len(_lines(result)) == 2
    assert "over 2 seeds: median" in result.out
    assert (runs / "film.mp4").stat().st_size > 0


@pytest.mark.parametrize(
    ("run", "opponent", "message"),
    [
        ("alone", "random", "tiny_parts:SUITE is no game for two"),
        ("game", "rigth", "unknown opponent 'rigth': did you mean right?"),
        ("game", "perfect", "unknown opponent 'perfect': there are random, right for tiny_parts:GAME"),
        ("game", "{runs}/alone", "plays tiny_parts:SUITE, not tiny_parts:GAME"),
        ("game", "{runs}", "holds no run"),
        ("game", "{runs}/nowhere", "unknown opponent"),
        ("game", "nowhere:player", "opponent 'nowhere:player': no module 'nowhere'"),
        ("game", "tiny_parts:nobody", "has no attribute 'nobody'"),
        ("game", "tiny_parts:TINY", "neither a function"),
        ("game", "tiny_parts:not_an_action", "must play integers"),
    ],
)
def test_a_mistake_is_one_line(podracer: Callable[..., Any], runs: Path, run: str, opponent: str, message: str) -> None:
    result = podracer("evaluate", runs / run, "--opponent", opponent.format(runs=runs))
    assert (result.code, result.err.count("\n")) == (2, 1), result
    assert message in result.err
    assert not LINE.search(result.out)


def test_settings_over_those_of_the_run(podracer: Callable[..., Any], runs: Path) -> None:
    shorter, unknown, budget = (
        podracer("evaluate", runs / "game", "--episodes", 4, "--set", setting)
        for setting in ("env.longest=1", "env.lognest=1", "num_steps=5")
    )
    assert "length 1.0" in shorter.out
    for refused, message in ((unknown, "did you mean env.longest?"), (budget, "settings of agent.* and env.* alone")):
        assert (refused.code, refused.err.count("\n")) == (2, 1), refused
        assert message in refused.err


def test_tic_tac_toe_has_a_perfect_opponent(podracer: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("pgx", reason="pip install 'podracer-rl[pgx]'")
    job = ("--agent", "impala", "--env", "pgx/tic_tac_toe", "--steps", 100, "--set", "eval_episodes=4", "--run-dir", tmp_path)
    assert podracer("launch", "anakin", *job, "--set", "anakin.num_envs=8").code == 0
    (line,) = _lines(podracer("evaluate", tmp_path, "--opponent", "perfect", "--episodes", 100))
    assert line["won"] == "0"
    assert int(line["lost"]) > 50  # it has learned nothing yet
