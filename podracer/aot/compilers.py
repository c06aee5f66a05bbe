"""Compilers for chips that are not here: libtpu, and JAX's CUDA plugin.

They stand in folders of their own: in JAX's own environment each makes every process on a host without such chips look for
some, and say at length that there are none. Only the process that analyses a job gets them to see.
"""

import importlib.util
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from podracer.cache import cache_dir
from podracer.config import ConfigError

_EXTRAS = {"tpu": ("tpu", ("libtpu",)), "gpu": ("cuda12-local", ("jax-cuda12-plugin", "jax-cuda12-pjrt"))}
_MODULES = {"tpu": "libtpu", "gpu": "jax_cuda12_plugin"}
NAMES = {"tpu": "libtpu", "gpu": "JAX's CUDA plugin"}


def folder(platform: str) -> Path:
    """Where the compiler for `tpu` or `gpu` is, or would be."""
    return cache_dir() / "compilers" / platform


def installed(platform: str) -> bool:
    """Whether it is there, or in this environment all the same."""
    return (folder(platform) / ".complete").exists() or importlib.util.find_spec(_MODULES[platform]) is not None


def install(platform: str) -> Path:
    """Fetches the version that this JAX asks for, unless it is there. Returns its folder. Raises ConfigError."""
    place = folder(platform)
    if (place / ".complete").exists():
        return place
    extra, packages = _EXTRAS[platform]
    wanted = [Requirement(text) for text in metadata.requires("jax") or ()]
    found = [f"{one.name}{one.specifier}" for one in wanted if one.name in packages and one.marker and _asks(one, extra)]
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror}; PODRACER_CACHE_DIR says where else") from error
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--upgrade"]
    done = subprocess.run([*command, "--target", str(place), *found], capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [f"exit code {done.returncode}"]
        raise ConfigError(f"pip install {' '.join(found)} failed: {errors[-1]}")
    (place / ".complete").write_text("\n".join(found) + "\n")
    return place


def _asks(requirement: Requirement, extra: str) -> bool:
    assert requirement.marker is not None
    return requirement.marker.evaluate({"extra": extra})
