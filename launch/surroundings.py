"""What must be set in the process before JAX is imported: a quiet terminal and the compilation cache."""

import os
import warnings
from pathlib import Path


def prepare() -> None:
    """Silences libraries that talk over our output, and turns the compilation cache on. Call before importing JAX.

    What a user has set in the environment stays as it is.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    if "PYTHONWARNINGS" not in os.environ:
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir() / "xla"))
    # Small programs too: a cold start is many of them.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # pygame looks for loudspeakers when it draws
    # With its own stacks libtpu 0.0.42 overflows one, and takes the process along, where it weighs fusions of convolutions.
    os.environ.setdefault("LIBTPU_INIT_ARGS", "--fibers_default_thread_stack_size=4194304")


def cache_dir() -> Path:
    """`$PODRACER_CACHE_DIR`, or `~/.cache/podracer`."""
    return Path(os.environ.get("PODRACER_CACHE_DIR") or "~/.cache/podracer").expanduser()
