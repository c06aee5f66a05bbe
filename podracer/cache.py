"""Where what is made once for all runs is kept: compiled programs, Reverb's server, compilers for chips that are not here."""

import os
import pwd
from pathlib import Path


def cache_dir() -> Path:
    """`$PODRACER_CACHE_DIR`, or `~/.cache/podracer`; for someone without a home, a folder that nobody can write."""
    chosen = os.environ.get("PODRACER_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    try:
        home = os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:  # a number without a line in the list of users
        home = "/nonexistent"
    return Path(home) / ".cache" / "podracer"
