"""Rows of metrics, and what a run shows of them."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from podracer.metrics.log import MetricsLog
from podracer.metrics.meter import Meter
from podracer.metrics.progress import ProgressLine

pytestmark = pytest.mark.quick


def test_meter_weighs_by_what_a_mean_is_over() -> None:
    meter = Meter()
    for steps, episodes, episode_return, loss, num_updates, seconds in (
        (10, 1, 4.0, 1.0, 1, 1.0),
        (30, 3, 0.0, 3.0, 3, 1.0),
        (0, 0, np.nan, 2.5, 4, 2.0),
    ):
        values = {"agent_steps": steps, "episodes": episodes, "episode_return": episode_return, "loss": loss}
        meter.add({name: np.array([value]) for name, value in values.items()}, num_updates, seconds)
    row = meter.row()
    assert row == {"agent_steps": 40, "episodes": 4, "episode_return": 1.0, "loss": 2.5, "agent_steps_per_second": 10.0}


def test_metrics_are_strict_json_and_rows_behind_the_checkpoint_go(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for update in (1, 2, 3):
        log.write(
            {"num_updates": update, "num_agent_steps": 10 * update, "episode_return": float("nan"), "x": [1.0, float("inf")]}
        )
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"num_updates": 4, "num_ag')
    MetricsLog(tmp_path, 2).close()
    text = (tmp_path / "metrics.jsonl").read_text()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]
    assert [row["num_updates"] for row in rows] == [1, 2]
    assert rows[0]["x"] == [1.0, None]
    assert rows[0]["episode_return"] is None


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_a_terminal_shows_all_of_a_long_line(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    terminal = _Terminal()
    with ProgressLine(1000, "steps", terminal) as line:
        line.say("compiling ...")
        line.update(500, 100.0, "return 0.75  actors: " + ", ".join(f"thing-{number} 10%" for number in range(8)))
    shown = terminal.getvalue()
    assert "compiling ..." in shown
    for word in ("500/1k steps", "thing-7 10%", "ETA 0:00:05"):
        assert word in shown
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown


def test_elsewhere_lines_are_few_and_the_last_one_is_there() -> None:
    file = io.StringIO()
    with ProgressLine(1000, "steps", file) as line:
        for done in range(0, 1001, 100):
            line.update(done, 100.0)
    assert file.getvalue().splitlines() == ["0/1k steps  100 steps/s  ETA 0:00:10", "1k/1k steps  100 steps/s  ETA 0:00:00"]
