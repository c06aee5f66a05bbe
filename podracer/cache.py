"""Where what is made once for all runs is kept: compiled programs, Reverb's server, compilers for chips that are not here."""

import os
import tempfile
from pathlib import Path


def cache_dir() -> Path:
    """`$PODRACER_CACHE_DIR`, or `~/.cache/podracer`, or for someone without a home, a folder among the temporary ones."""
    try:
        return Path(os.environ.get("PODRACER_CACHE_DIR") or "~/.cache/podracer").expanduser()
    except RuntimeError:  # neither HOME nor a line in the list of users
        return Path(tempfile.gettempdir()) / f"podracer-{os.getuid()}"
