"""`podracer doctor` says what is missing, and how to get it, on a bare machine too."""

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_what_is_there_is_said_and_every_line_that_is_not_says_what_to_do(podracer: Callable[..., Any]) -> None:
    result = podracer("doctor")
    assert (result.code, result.err) == (0, "")
    assert result.out.endswith("ready\n")
    lines = {line[:18].strip(): line[18:].strip() for line in result.out.splitlines()}
    names = {
        "python",
        "machine",
        "podracer-rl",
        "jax",
        "devices",
        "env catch",
        "env pgx",
        "extra ray",
        "extra vizdoom",
        "extra wandb",
    }
    assert names | {"Reverb server", "ffmpeg", "plan tpu", "plan gpu", "compile cache"} <= set(lines)
    assert lines["env catch"] == "present"
    for name, text in lines.items():
        if "missing" in text:
            assert "install" in text, name


def test_a_machine_without_home_cache_and_right_to_write(tmp_path: Path) -> None:
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("PODRACER_", "JAX_"))}
    environ |= {"HOME": "", "PODRACER_CACHE_DIR": "/dev/null/cache", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", "podracer.launch.cli", "doctor"], cwd=tmp_path, env=environ, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "/dev/null/cache/xla is NOT WRITABLE, so every run compiles anew: set PODRACER_CACHE_DIR" in done.stdout
    assert "missing, so no --store reverb: Reverb's server is not installed in /dev/null/cache/reverb" in done.stdout
    assert "podracer plan install tpu" in done.stdout


def test_what_every_run_needs_and_is_not_there_or_too_old(
    podracer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "rlax":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "optax" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    result = podracer("doctor")
    assert result.code == 1
    assert "MISSING: pip install 'rlax>=" in result.out
    assert "0.1, TOO OLD OR NEW: pip install 'optax>=" in result.out
    assert result.out.endswith("something that every run needs is missing: optax, rlax\n")
