"""`podracer reverb serve` and `install`, and how the server's environment is found."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from podracer.stores.reverb import Client, NotInstalled, ReverbError, Table, install

pytestmark = pytest.mark.timeout(60)


def podracer(*arguments):
    return [sys.executable, "-m", "podracer.launch.cli", "reverb", *arguments]


@pytest.mark.usefixtures("reverb_installed")
def test_serve_saves_at_the_end_and_goes_on_from_there(tmp_path):
    tables = tmp_path / "tables.json"
    tables.write_text(json.dumps([Table.uniform("replay", 10, signature=[np.zeros(2)]).to_json()]))
    command = podracer(
        "serve", "--tables", str(tables), "--tables", "online=queue:4", "--checkpoint-dir", str(tmp_path / "saved")
    )
    for size in range(2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                line = process.stdout.readline()
                assert line.startswith("Reverb's server listens on 127.0.0.1:")
                with Client(line.split()[-1]) as client:
                    info = client.server_info().tables
                    assert set(info) == {"online", "replay"}
                    assert info["replay"].current_size == size
                    with client.writer() as writer:
                        writer.insert("replay", [np.ones(2)])
                process.send_signal(signal.SIGTERM)
                assert process.stdout.readline().startswith("saved ")
                assert process.wait(20) == 0
            finally:
                process.kill()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--tables", "online"], "'online' is no table"),
        (["--tables", "online=stack:3"], "'online=stack:3' is no table: write NAME=KIND:SIZE"),
        (["--tables", "online=queue:3:exponent=2"], "a queue has no such setting"),
        (["--tables", "online=queue:3"], "PODRACER_REVERB_ENV=nowhere holds no Reverb server: podracer reverb install"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, text):
    environment = {**os.environ, "PODRACER_REVERB_ENV": "nowhere"}
    done = subprocess.run(podracer("serve", *arguments), capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert text in done.stderr


def test_an_installation_that_is_not_complete_is_not_used(tmp_path, monkeypatch):
    monkeypatch.delenv("PODRACER_REVERB_ENV", raising=False)
    monkeypatch.setenv("PODRACER_CACHE_DIR", str(tmp_path))
    with pytest.raises(NotInstalled, match="podracer reverb install makes it"):
        install.find()
    for form in ("slim", "official"):
        python = install.interpreter(install.home() / form)
        python.parent.mkdir(parents=True)
        python.touch()
        assert not install.is_complete(install.home() / form)
        (install.home() / form / ".complete").touch()
        assert install.find() == install.home() / form


def test_what_pip_says_comes_through(tmp_path, monkeypatch):
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho WARNING: slow >&2\necho ERROR: no disk left >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setattr(install, "find_python", lambda: str(failing))
    with pytest.raises(ReverbError, match=r"-m venv .* failed: ERROR: no disk left"):
        install.install(slim=True, folder=tmp_path / "environment")
    assert not install.is_complete(tmp_path / "environment")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(ReverbError, match="holds something else"):
        install.install(folder=tmp_path / "other")
