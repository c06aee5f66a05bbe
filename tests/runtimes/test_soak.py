"""The soak of benchmarks/soak.py, short: processes and connections die, and all invariants hold."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import xla

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("reverb_installed")
def test_a_run_in_which_everything_dies_once_or_more():
    command = [sys.executable, str(SCRIPT), "--seconds", "30", "--every", "4"]
    environment = {**os.environ, "XLA_FLAGS": xla.flags()}
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    report = json.loads(result.stdout.splitlines()[-1]) if result.stdout else {}
    assert (result.returncode, report.get("broken")) == (0, []), result.stderr
    assert set(report["faults"]) == {"actor killed", "server killed", "network cut", "environment killed"}
    assert report["updates"] > 20
