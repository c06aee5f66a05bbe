"""What must be set in the process before JAX is imported: a quiet terminal and the compilation cache."""

import os
import warnings
from pathlib import Path

from podracer.cache import cache_dir


def prepare() -> None:
    """Silences libraries that talk over our output, and turns the compilation cache on. Call before importing JAX.

    What a user has set in the environment stays as it is.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    if "PYTHONWARNINGS" not in os.environ:
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
    if _writable(cache_dir() / "xla"):  # else every program would warn
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_dir() / "xla"))
    # Small programs too: a cold start is many of them.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # pygame looks for loudspeakers when it draws
    # With its own stacks libtpu 0.0.42 overflows one, and takes the process along, where it weighs fusions of convolutions.
    os.environ.setdefault("LIBTPU_INIT_ARGS", "--fibers_default_thread_stack_size=4194304")


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)
