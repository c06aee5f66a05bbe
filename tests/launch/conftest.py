"""Runs the command line, in this process or as a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).parent


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def podracer(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`podracer(*arguments)` as the shell would run it, but in this process."""
    from podracer.launch import cli

    monkeypatch.chdir(HERE)  # where `tiny_parts` is found

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["podracer", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 0
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return run


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Starts `podracer *arguments` as a process."""

    def run(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "podracer.launch.cli", *map(str, arguments)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(command, cwd=HERE, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    return run
