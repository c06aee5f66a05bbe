"""The server's own environment: how it is made, and where it is found.

dm-reverb 0.14.0 needs CPython 3.8 to 3.11, TensorFlow 2.15's core library and numpy below 2, so it cannot share an
environment with a current JAX. `official` is what its authors support. `slim` leaves out all of TensorFlow but the one
library that the server links: a tenth of the size; it has Reverb's server, and not its Python client.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from podracer.cache import cache_dir
from podracer.stores.reverb.errors import NotInstalled, ReverbError

REVERB = "dm-reverb==0.14.0"
TENSORFLOW = "tensorflow-cpu==2.15.1"
NUMPY = "numpy==1.26.4"
FORMS = ("official", "slim")
FRAMEWORK = "tensorflow/libtensorflow_framework.so.2"
_COMPLETE = ".complete"  # a file that is there once all the rest is
_HELP = "podracer reverb install makes it"


def home() -> Path:
    """Where environments are made."""
    return cache_dir() / "reverb"


def is_complete(folder: Path) -> bool:
    """Whether an installation in this folder was finished."""
    return (folder / _COMPLETE).exists() and interpreter(folder).exists()


def interpreter(folder: Path) -> Path:
    """The environment's Python."""
    return folder / "bin" / "python"


def find() -> Path:
    """The environment to run the server in: `$PODRACER_REVERB_ENV`, else the official one, else the slim one.

    Raises NotInstalled.
    """
    chosen = os.environ.get("PODRACER_REVERB_ENV")
    if chosen:
        folder = Path(chosen).expanduser()
        if not is_complete(folder):
            raise NotInstalled(
                f"PODRACER_REVERB_ENV={folder} holds no Reverb server: podracer reverb install --folder makes it"
            )
        return folder
    for form in FORMS:
        if is_complete(home() / form):
            return home() / form
    raise NotInstalled(f"Reverb's server is not installed in {home()}: {_HELP}")


def install(*, slim: bool = False, folder: Path | None = None, say: Callable[[str], None] = lambda _: None) -> Path:
    """Makes the environment, unless it is there. Safe to call from several processes at once. Returns its folder.

    Args:
      slim: the small form; see the module.
      folder: where; None is a folder of the form's name in `home()`. An unfinished installation there is made anew.
      say: gets a line before what takes long.

    Raises:
      ReverbError: no Python that dm-reverb has packages for, a folder that holds something else, or pip's failure.
    """
    folder = home() / FORMS[slim] if folder is None else folder.expanduser()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f".{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_complete(folder):
            return folder
        if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").exists():
            raise ReverbError(f"{folder} holds something else: choose an empty folder")
        python = find_python()
        say(f"installing Reverb's server ({FORMS[slim]} form) into {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        _run([python, "-m", "venv", str(folder)])
        if slim:
            _install_slim(folder)
        else:
            _pip(folder, "install", REVERB, TENSORFLOW)
        (folder / _COMPLETE).write_text(f"{FORMS[slim]}\n")
    return folder


def find_python() -> str:
    """A CPython that dm-reverb has packages for: this one, or python3.11 to python3.9 on the path. Raises ReverbError."""
    if (3, 9) <= sys.version_info[:2] <= (3, 11):
        return sys.executable
    for name in ("python3.11", "python3.10", "python3.9"):
        path = shutil.which(name)
        # A version manager's shim is on the path for versions that are not there.
        if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            return path
    raise ReverbError("Reverb's server needs CPython 3.9 to 3.11, and there is none on the path: install python3.11")


def _install_slim(folder: Path) -> None:
    _pip(folder, "install", NUMPY)
    _pip(folder, "install", "--no-deps", REVERB)
    packages = next(folder.glob("lib/python3*/site-packages"))
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        # No cache: the wheel is 200 MB, and one file of it is kept.
        _pip(folder, "download", "--no-deps", "--no-cache-dir", "--dest", scratch, TENSORFLOW)
        with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
            wheel.extract(FRAMEWORK, packages)


def _pip(folder: Path, command: str, *arguments: str) -> None:
    _run([str(interpreter(folder)), "-m", "pip", command, "--quiet", "--disable-pip-version-check", *arguments])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise ReverbError(f"{' '.join(command[1:4])} failed: {' '.join(errors) or f'exit code {done.returncode}'}")
