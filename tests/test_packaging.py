"""What `python -m build` makes holds all that a run needs, puts one package on the path, and works outside the checkout."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import podracer

ROOT = Path(__file__).parents[1]
TOP = ("agents", "envs", "launch")
DATA = {"podracer/stores/reverb/wire.proto", "podracer/stores/reverb/wire.binpb"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel, made from the sdist, and the sdist, made from what git knows here."""
    folder = tmp_path_factory.mktemp("built")
    names = _run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=ROOT).split("\0")
    for name in filter(None, names):
        to = folder / "source" / name
        to.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, to, follow_symlinks=False)
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, folder / "source")
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel alone in it; what it depends on is this environment's."""
    folder = tmp_path_factory.mktemp("installed")
    _run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, built[0])
    return folder


def _run(*command: object, cwd: Path | None = None, **environ: str) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env={**os.environ, **environ}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_all_modules_and_data_and_no_other_package(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names} == {"podracer", f"podracer_rl-{podracer.__version__}.dist-info"}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "podracer").rglob("*.py")}
    modules |= {f"podracer/{path.relative_to(ROOT)}" for top in TOP for path in (ROOT / top).rglob("*.py")}
    assert len(modules) > 150
    assert modules | DATA <= names
    others = {name for name in names if not name.endswith(".py") and ".dist-info/" not in name}
    assert others == DATA


def test_the_sdist_can_be_tested_and_has_the_docs(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"tests/conftest.py", "tests/launch/tiny_parts.py", "docs/plan.md", "constraints.txt", "CHANGELOG.md"} <= names


def test_the_changelog_begins_with_this_version() -> None:
    found = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert found is not None
    assert found.group(1) == podracer.__version__


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--version"], podracer.__version__),
        (["--help"], "podracer doctor"),
        (["doctor"], "ready"),
        (["agents"], "muesli"),
        (["envs"], "atari_jax"),
        (["plan", "anakin", "--agent", "impala", "--env", "catch"], "cost of a device"),
    ],
)
def test_commands_work_outside_the_checkout(installed: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    command = (sys.executable, installed / "bin" / "podracer", *arguments)
    assert words in _run(*command, cwd=tmp_path, PYTHONPATH=str(installed))
    where = _run(sys.executable, "-c", "import podracer; print(podracer.__file__)", cwd=tmp_path, PYTHONPATH=str(installed))
    assert Path(where.strip()).is_relative_to(installed)


def test_it_trains_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    options = ("--agent", "impala", "--env", "catch", "--steps", "20000", "--run-dir", "run")
    _run(sys.executable, installed / "bin" / "podracer", "launch", "anakin", *options, cwd=tmp_path, PYTHONPATH=str(installed))
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
def test_it_works_in_an_environment_of_its_own(built: tuple[Path, Path], tmp_path: Path) -> None:
    """As `pip install` of a user would make it: the base alone, from the package index."""
    _run(sys.executable, "-m", "venv", tmp_path / "venv")
    _run(tmp_path / "venv/bin/pip", "install", "--quiet", "-c", ROOT / "constraints.txt", built[0], PYTHONPATH="")
    command = tmp_path / "venv/bin/podracer"
    told = _run(command, "doctor", cwd=tmp_path, PYTHONPATH="", HOME=str(tmp_path), PODRACER_CACHE_DIR="")
    assert told.endswith("ready\n")
    assert "pip install 'podracer-rl[ray]'" in told
    assert "podracer reverb install" in told
    options = ("--agent", "muesli", "--env", "catch", "--steps", "20000", "--run-dir", "run")
    _run(command, "launch", "anakin", *options, cwd=tmp_path, PYTHONPATH="", HOME=str(tmp_path))
    assert (tmp_path / "run" / "summary.json").exists()
