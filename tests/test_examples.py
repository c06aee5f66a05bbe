"""The examples run as they stand, and learn."""

import json
import os
import subprocess
import sys
from pathlib import Path

import xla

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, folder):
    environ = {**os.environ, "XLA_FLAGS": xla.flags()}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def evaluation(run_dir):
    return json.loads((run_dir / "summary.json").read_text())["eval_return_mean"]


def test_the_agent_learns_in_both_runtimes(tmp_path):
    run("q_learning.py", tmp_path)
    for runtime in ("anakin", "sebulba"):
        assert evaluation(tmp_path / "runs" / f"q_learning-{runtime}") > 0.8


def test_an_agent_learns_the_environment(tmp_path):
    run("cliff.py", tmp_path)
    assert evaluation(tmp_path / "runs" / "cliff") == 1.0


def test_a_population_is_drawn_evaluated_and_filmed(tmp_path):
    out = run("population.py", tmp_path)
    returns = [float(text) for text in out.split("100 episodes: ")[1].split(";")[0].split(", ")]
    assert len(returns) == 8
    assert max(returns) > 0.8
    assert {"seeds.png", "best.mp4"} <= {path.name for path in (tmp_path / "runs" / "population").iterdir()}
