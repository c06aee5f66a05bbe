"""The processes of one host: started, watched through their output, and never left behind."""

import collections
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# Becomes the command once the kernel knows that it is to die with whoever started it, however that ends.
_SHIM = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) or os._exit(137); os.execv(sys.argv[2], sys.argv[2:])"
)
_TAIL = 60


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of a process since the last report.

    code: its exit code, as of subprocess, or None while it runs. lines: that it wrote. idle: seconds since its work went on,
    below 0 while none is expected, None before it ever did. pid: its number. tail: the last lines it wrote.
    """

    code: int | None
    lines: Sequence[str]
    idle: float | None
    pid: int
    tail: Sequence[str]


class Processes:
    """The processes that one thread, which must live on, has started on this host."""

    def __init__(self) -> None:
        self._started: dict[str, _Process] = {}

    def start(self, name: str, command: Sequence[str], environ: Mapping[str, str], folder: str, progress: str = "") -> None:
        """Starts a process.

        Args:
          name: to ask for it; another one of that name must have ended.
          command: program and arguments. environ: besides the variables of this process. folder: to run in.
          progress: a file of `Hosts.progress`, for `Report.idle`; one that is left over is removed.
        """
        if progress:
            Path(progress).parent.mkdir(parents=True, exist_ok=True)
            Path(progress).unlink(missing_ok=True)
        self._started[name] = _Process(command, environ, folder, progress)

    def report(self, name: str) -> Report:
        """Raises KeyError for a name that was never started."""
        return self._started[name].report()

    def send(self, name: str, number: int) -> None:
        """Sends a signal, where the process still runs."""
        self._started[name].send(number)

    def kill(self, name: str) -> None:
        """Ends a process, and returns once it has ended. Names that were never started are ignored."""
        if name in self._started:
            self._started[name].send(signal.SIGKILL)
            self._started[name].wait()

    def kill_all(self) -> None:
        """As `kill`, of all."""
        for name in self._started:
            self.kill(name)


class _Process:
    def __init__(self, command: Sequence[str], environ: Mapping[str, str], folder: str, progress: str):
        self._progress = progress
        self._lines: collections.deque[str] = collections.deque()
        self._tail: collections.deque[str] = collections.deque(maxlen=_TAIL)
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _SHIM, str(os.getpid()), *command],
            env={**os.environ, **environ, "PYTHONUNBUFFERED": "1"},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for whoever started it
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def report(self) -> Report:
        code = self._process.poll()
        if code is not None:
            self._reader.join(timeout=1.0)
        lines = [self._lines.popleft() for _ in range(len(self._lines))]
        return Report(code, lines, self._idle(), self._process.pid, tuple(self._tail))

    def send(self, number: int) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self) -> None:
        self._process.wait()

    def _idle(self) -> float | None:
        try:
            return time.time() - os.stat(self._progress).st_mtime if self._progress else None
        except FileNotFoundError:
            return None

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line.rstrip("\n"))
            self._tail.append(line.rstrip("\n"))


def free_port(address: str) -> int:
    """A port of this host that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
