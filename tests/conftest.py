"""Before JAX is imported: eight simulated devices, and a compilation cache that all test processes share."""

import os
from pathlib import Path

import pytest
import xla

_CACHE = Path(os.environ.get("PODRACER_CACHE_DIR") or "~/.cache/podracer").expanduser() / "tests-xla"

if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{xla.flags(num_devices=8)} {os.environ.get('XLA_FLAGS', '')}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads it when it is imported
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@pytest.fixture(scope="session")
def reverb_installed() -> None:
    """Skips, and says how to install it, where Reverb's server is missing (`make setup` installs it)."""
    from podracer.stores.reverb import NotInstalled, install

    try:
        install.find()
    except NotInstalled as missing:
        pytest.skip(str(missing))
