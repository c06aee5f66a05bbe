"""`podracer doctor`: what is installed, which devices there are, what is missing and how to get it."""

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

from podracer import registry

_LIBRARIES = (
    "podracer-rl",
    "jax",
    "jaxlib",
    "dm-haiku",
    "optax",
    "rlax",
    "mctx",
    "orbax-checkpoint",
    "numpy",
    "envpool",
    "ale-py",
)


def examine() -> int:
    """Prints what there is, a line each. Returns 0, or 1 where something that every run needs is missing."""
    problems: list[str] = []
    _say("python", f"{platform.python_version()} ({sys.executable})")
    _say("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores")
    for name in _LIBRARIES:
        try:
            _say(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            problems.append(name)
            _say(name, "MISSING: pip install podracer-rl (or make setup)")
    _devices(problems)
    _suites()
    _ffmpeg()
    _planning()
    _cache()
    print("something that every run needs is missing: " + ", ".join(problems) if problems else "ready")
    return 1 if problems else 0


def _say(name: str, text: str) -> None:
    print(f"{name:18} {text}", flush=True)


def _devices(problems: list[str]) -> None:
    try:
        import jax

        devices = jax.devices()
    except Exception as error:  # a driver that does not match fails in many ways
        problems.append("jax devices")
        _say("devices", f"NONE: {str(error).splitlines()[0]}; JAX_PLATFORMS=cpu uses the CPU")
        return
    kinds = sorted({device.device_kind for device in devices})
    _say("devices", f"{len(devices)} x {', '.join(kinds)} ({devices[0].platform})")
    if devices[0].platform == "cpu":
        _say("", "for a GPU: pip install 'jax[cuda12]'; for a TPU: pip install 'jax[tpu]'")
        _say("", "XLA_FLAGS=--xla_force_host_platform_device_count=8 simulates 8 devices")


def _suites() -> None:
    for name in registry.names(registry.ENVS):
        try:
            suite = registry.suite(name)
        except ImportError as error:
            _say(f"env {name}", f"BROKEN: {error}")
            continue
        if suite.available():
            _say(f"env {name}", "present")
        else:
            _say(f"env {name}", f"missing {suite.package}: {suite.how_to_get}")


def _ffmpeg() -> None:
    try:
        import imageio_ffmpeg

        _say("ffmpeg", imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        _say("ffmpeg", f"missing, so no videos: pip install 'imageio[ffmpeg]' ({error})")


def _planning() -> None:
    from podracer.aot import compilers

    for kind, name in compilers.NAMES.items():
        missing = f"no {name}, so podracer plan compiles for none: podracer plan install {kind}"
        _say(f"plan {kind}", f"{name}: podracer plan compiles for it" if compilers.installed(kind) else missing)


def _cache() -> None:
    folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", ""))
    if not str(folder) or not folder.exists():
        _say("compile cache", f"{folder} (empty: the first run fills it; PODRACER_CACHE_DIR moves it)")
        return
    files = [path for path in folder.iterdir() if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 2**20
    writable = "" if os.access(folder, os.W_OK) else "; NOT WRITABLE: set PODRACER_CACHE_DIR"
    _say("compile cache", f"{folder}, {len(files)} files, {size:.0f} MiB{writable}")
