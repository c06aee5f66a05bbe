"""`podracer doctor`: what is installed, which devices there are, what is missing and how to get it."""

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

from packaging.requirements import Requirement

from podracer import registry
from podracer.cache import cache_dir
from podracer.config import one_line
from podracer.launch.words import many, row

_PACKAGE = "podracer-rl"
_KEY_LIBRARIES = ("jax", "jaxlib", "dm-haiku", "optax", "rlax", "mctx", "numpy", "envpool", "ale-py")
_FOR_DEVELOPERS = ("dev", "docs")


def examine() -> int:
    """Prints what there is, a line each. Returns 0, or 1 where something that every run needs is missing."""
    problems: list[str] = []
    _python()
    _say("machine", f"{platform.system()} {platform.machine()}, {many(os.cpu_count() or 1, 'CPU core')}")
    _libraries(problems)
    _devices(problems)
    _extras(_suites())
    _reverb()
    _ffmpeg()
    _planning()
    _cache()
    _here()
    print("something that every run needs is missing: " + ", ".join(problems) if problems else "ready")
    return 1 if problems else 0


def _say(name: str, text: str) -> None:
    row(name, text, 18)


def _python() -> None:
    tried = [name.removeprefix("Programming Language :: Python :: ") for name in _metadata("Classifier") if "Python ::" in name]
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    untried = f"; podracer was tried with {', '.join(tried)}" if tried and here not in tried else ""
    _say("python", f"{platform.python_version()} ({sys.executable}){untried}")


def _libraries(problems: list[str]) -> None:
    """What the base installation asks for. Says the versions of some, and each that is missing or of another version."""
    try:
        _say(_PACKAGE, importlib.metadata.version(_PACKAGE))
    except importlib.metadata.PackageNotFoundError:
        problems.append(_PACKAGE)
        _say(_PACKAGE, "MISSING, and with it all names of agents and environments: pip install podracer-rl, or -e .")
    for requirement in _requirements(""):
        version = _version(requirement.name)
        if version is None:
            problems.append(requirement.name)
            _say(requirement.name, f"MISSING: pip install '{requirement.name}{requirement.specifier}'")
        elif not requirement.specifier.contains(version, prereleases=True):
            problems.append(requirement.name)
            _say(requirement.name, f"{version}, TOO OLD OR NEW: pip install '{requirement.name}{requirement.specifier}'")
        elif requirement.name in _KEY_LIBRARIES:
            _say(requirement.name, version)


def _devices(problems: list[str]) -> None:
    try:
        import jax

        devices = jax.devices()
    except Exception as error:  # a driver that does not match fails in many ways
        problems.append("jax devices")
        _say("devices", f"NONE: {one_line(error, 200)}; JAX_PLATFORMS=cpu uses the CPU")
        return
    kinds = sorted({device.device_kind for device in devices})
    _say("devices", f"{len(devices)} x {', '.join(kinds)} ({devices[0].platform})")
    if devices[0].platform == "cpu":
        _say("", "for a GPU: pip install 'jax[cuda12]'; for a TPU: pip install 'jax[tpu]'")
        _say("", "XLA_FLAGS=--xla_force_host_platform_device_count=8 simulates 8 devices")


def _suites() -> set[str]:
    """Returns the extras that bring some."""
    extras = set()
    for name in registry.names(registry.ENVS):
        try:
            suite = registry.suite(name)
        except Exception as error:  # whatever a half-installed library does when it is imported
            _say(f"env {name}", f"BROKEN: {one_line(error, 200)}")
            continue
        extras.add(suite.extra)
        _say(f"env {name}", "present" if suite.available() else f"missing {suite.package}: {suite.how_to_get}")
    return extras


def _extras(told: set[str]) -> None:
    """The others; developers' ones are their own business."""
    for extra in _metadata("Provides-Extra"):
        if extra in told or extra in _FOR_DEVELOPERS:
            continue
        found = {one.name: _version(one.name) for one in _requirements(extra)}
        missing = [name for name, version in found.items() if version is None]
        there = ", ".join(f"{name} {version}" for name, version in found.items())
        _say(f"extra {extra}", f"missing: pip install '{_PACKAGE}[{extra}]'" if missing else there)


def _reverb() -> None:
    try:
        from podracer.stores.reverb import NotInstalled, install
    except Exception as error:
        _say("Reverb server", f"BROKEN: {one_line(error, 200)}")
        return
    try:
        folder = install.find()
    except NotInstalled as missing:
        _say("Reverb server", f"missing, so no --store reverb: {missing}")
        return
    _say("Reverb server", f"{folder}")
    official = install.home() / "official"
    none = "missing, which a test of compatibility alone needs: podracer reverb install, without --slim"
    _say("Reverb's client", f"{official}" if install.is_complete(official) else none)


def _ffmpeg() -> None:
    from podracer.metrics import pictures

    try:
        _say("ffmpeg", pictures.ffmpeg())
    except pictures.NoFfmpeg as missing:
        _say("ffmpeg", str(missing))


def _planning() -> None:
    from podracer.aot import compilers

    for kind, name in compilers.NAMES.items():
        missing = f"no {name}, so podracer plan compiles for none: podracer plan install {kind}"
        _say(f"plan {kind}", f"{name}: podracer plan compiles for it" if compilers.installed(kind) else missing)


def _cache() -> None:
    folder = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or cache_dir() / "xla")
    files = [path for path in folder.glob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 2**20
    if os.access(folder, os.W_OK):
        _say("compile cache", f"{folder}, {many(len(files), 'file')}, {size:.0f} MiB")
    else:
        _say("compile cache", f"{folder} is NOT WRITABLE, so every run compiles anew: set PODRACER_CACHE_DIR")


def _here() -> None:
    if not os.access(Path.cwd(), os.W_OK):
        _say("run folders", f"{Path.cwd()} is NOT WRITABLE: say --run-dir, or go elsewhere")


def _metadata(key: str) -> list[str]:
    try:
        return importlib.metadata.metadata(_PACKAGE).get_all(key) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _requirements(extra: str) -> list[Requirement]:
    """What `extra` asks for on this Python; the base, where it is empty."""
    found = [Requirement(text) for text in _metadata("Requires-Dist")]
    if not extra:
        return [one for one in found if one.marker is None or one.marker.evaluate({"extra": ""})]
    asks = (one for one in found if one.marker is not None and one.marker.evaluate({"extra": extra}))
    return [one for one in asks if one.marker is not None and not one.marker.evaluate({"extra": ""})]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
