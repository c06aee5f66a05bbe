"""The real Reverb server as a process of its own: started, watched, ended, and started again from its checkpoint."""

import collections
import contextlib
import json
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from podracer.stores.reverb import install
from podracer.stores.reverb.connection import Connection
from podracer.stores.reverb.errors import PortInUse, ReverbError, ServerDied, Timeout
from podracer.stores.reverb.tables import Table

_SCRIPT = Path(__file__).with_name("server_script.py")
_KEPT = ("max_size", "max_times_sampled", "samples_per_insert", "min_size_to_sample", "min_diff", "max_diff")
_GRACE_S = 5.0  # between SIGTERM and SIGKILL; the script itself gives calls in progress 2 s


class ReverbServer:
    """A running server; a context manager. Safe to use from several threads.

    The process ends with `close`, and also when this process ends, however it does. Reverb knows neither users nor
    encryption: listen on other interfaces than loopback only in a network that you trust.

    address: "host:port" for `Client`.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        checkpoint_dir: Path | None = None,
        environment: Path | None = None,
        start_timeout_s: float = 60.0,
    ):
        """Starts the server and returns once it listens.

        Args:
          tables: at least one, names distinct.
          port: 0 takes a free one, which stays the same through `restart`.
          host: an IPv4 address to listen on; 0.0.0.0 is all interfaces.
          checkpoint_dir: where `Client.checkpoint` saves, and from where the newest checkpoint is loaded at the start. None
            is a temporary folder, which `close` removes. A table that comes from a checkpoint keeps the rate limiter and the
            size that it was saved with, whatever `tables` says (a limitation of Reverb): where those differ it is refused.
          environment: the folder of `install.install`; None looks for it (`install.find`).
          start_timeout_s: seconds until it must listen.

        Raises:
          NotInstalled: there is no environment for it.
          ServerDied: it ended before it listened: its text says why (a port that is taken, a checkpoint it cannot read).
          Timeout: it did not listen in time; it is ended.
          ReverbError: a table of the checkpoint is not as `tables` has it.
        """
        names = [table.name for table in tables]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"a server needs tables with distinct names, not {names}")
        self.tables = tuple(tables)
        self._host = host
        self._environment = environment or install.find()
        self._temporary = None if checkpoint_dir else tempfile.mkdtemp(prefix="podracer-reverb-")
        self.checkpoint_dir = Path(checkpoint_dir or str(self._temporary))
        self._lock = threading.RLock()
        self._closed = False
        self._tail: collections.deque[str] = collections.deque(maxlen=20)
        self._port = port
        try:
            self._start(start_timeout_s)
            if checkpoint_dir is not None:
                self._check_restored()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """Where clients on this machine reach it."""
        return f"{'127.0.0.1' if self._host == '0.0.0.0' else self._host}:{self._port}"

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._port

    @property
    def pid(self) -> int:
        """The process, for tests that kill it."""
        return self._process.pid

    def _start(self, timeout_s: float) -> None:
        self.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        self._tail.clear()
        self._process = subprocess.Popen(
            [str(install.interpreter(self._environment)), str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for us; we end the server in our own order
        )
        answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=_drain, args=(self._process.stderr, self._tail), daemon=True)
        self._reader.start()
        threading.Thread(
            target=lambda stream: answers.put(stream.readline()), args=(self._process.stdout,), daemon=True
        ).start()
        request = {
            "tables": [table.to_json() for table in self.tables],
            "port": self._port,
            "host": self._host,
            "checkpoint_dir": str(self.checkpoint_dir),
        }
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: the answer says so
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        try:
            line = answers.get(timeout=timeout_s)
        except queue.Empty:
            self._end()
            raise Timeout(f"waited {timeout_s:.0f} s for the Reverb server to listen, in vain{self._last_words()}") from None
        answer: dict[str, Any] = json.loads(line) if line.strip() else {}
        if "port" not in answer:
            self._end()
            reason = answer.get("error") or f"exit code {self._process.returncode}{self._last_words()}"
            if "Address already in use" in reason:
                raise PortInUse(f"port {self._port} of {self._host} is in use: choose another, or 0 for a free one")
            raise ServerDied(f"the Reverb server could not start: {' '.join(reason.split())}")
        self._port = int(answer["port"])

    def _check_restored(self) -> None:
        with Connection(self.address) as connection:
            restored = connection.server_info(_GRACE_S).tables
        for table in self.tables:
            for name in _KEPT:
                have, want = getattr(restored[table.name], name), getattr(table, name)
                if have != want:
                    raise ReverbError(
                        f"table {table.name!r} comes from a checkpoint in {self.checkpoint_dir} that has {name} {have:g}, not "
                        f"{want:g}, and Reverb keeps what was saved: say {have:g}, or use another folder"
                    )

    def alive(self) -> bool:
        """Whether the process runs."""
        return not self._closed and self._process.poll() is None

    def check(self) -> None:
        """Raises ServerDied where the process has ended by itself; call it now and then, or before waiting for the server."""
        with self._lock:
            if self._closed or self._process.poll() is None:
                return
            self._reader.join(timeout=1.0)
            code = self._process.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        words = "" if code == -signal.SIGKILL else self._last_words()  # whoever is killed so says nothing of it
        raise ServerDied(f"the Reverb server at {self.address} has died ({how}){words}")

    def wait(self, timeout_s: float) -> bool:
        """Waits until the process ends, at most so long. Whether it has ended."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """Ends the process as a crash would. `restart` starts it again."""
        with self._lock:
            self._process.kill()
            self._process.wait()

    def restart(self, start_timeout_s: float = 60.0) -> None:
        """Starts the server again, on the same port and from the newest checkpoint; ends it first where it runs.

        Raises what the constructor raises, and ReverbError after `close`.
        """
        with self._lock:
            if self._closed:
                raise ReverbError("a closed Reverb server cannot start again")
            self._end()
            deadline = time.monotonic() + start_timeout_s
            while True:
                try:
                    return self._start(max(deadline - time.monotonic(), 0.1))
                except PortInUse:
                    # Sockets of the killed process may hold the port for a moment.
                    if time.monotonic() > deadline:
                        raise
                time.sleep(0.1)

    def close(self) -> None:
        """Ends the process: SIGTERM, and SIGKILL after 5 s. May be called again."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if hasattr(self, "_process"):
                self._end()
            if self._temporary is not None:
                shutil.rmtree(self._temporary, ignore_errors=True)

    def _end(self) -> None:
        process = self._process
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._reader.join(timeout=1.0)
        for stream in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError, ValueError):
                if stream is not None:
                    stream.close()

    def _last_words(self) -> str:
        words = " | ".join(line for line in list(self._tail)[-3:])
        return f"; it said: {words}" if words else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _drain(stream: Iterator[str], tail: collections.deque[str]) -> None:
    """Reads what the server says, so that it never blocks on a full pipe, and keeps the end of it."""
    with contextlib.suppress(ValueError, OSError):
        for line in stream:
            if line.strip():
                tail.append(" ".join(line.split()))
