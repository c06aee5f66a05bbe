"""A watch over a server's process: starts it again when it dies by itself."""

import sys
import threading
import time
from collections.abc import Callable

from podracer.stores.reverb.errors import ReverbError, ServerDied
from podracer.stores.reverb.server import ReverbServer

_POLL_S = 0.2
_BACKOFF_S = 0.5  # before the second start in a row, doubled before each further one
_LONGEST_BACKOFF_S = 10.0
_STEADY_S = 10.0  # a server that lived so long begins a new row


class Watch:
    """A thread that does so until `close`. It does not own the server.

    num_restarts: so far.
    """

    def __init__(self, server: ReverbServer, max_restarts: int = 10, on_restart: Callable[[], None] = lambda: None):
        """Args:
        server: to watch.
        max_restarts: after which a death is final.
        on_restart: called in the watch's thread whenever the server listens again. A ReverbError that it raises is final
          too, unless the server has died once more.
        """
        self._server, self._max_restarts, self._on_restart = server, max_restarts, on_restart
        self._closing = threading.Event()
        self._failure: ReverbError | None = None
        self.num_restarts = 0
        self._thread = threading.Thread(target=self._run, name=f"reverb-watch-{server.address}", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises ServerDied, or what `on_restart` raised, once the server is given up."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Ends the watch, not the server. May be called again."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        pause_s, lived_from = 0.0, time.monotonic()
        while not self._closing.is_set():
            if not self._server.wait(_POLL_S):
                continue
            try:
                self._server.check()
                return  # it was closed
            except ServerDied as died:
                if self.num_restarts >= self._max_restarts:
                    self._failure = ServerDied(f"{died}; {self.num_restarts} restarts were not enough")
                    return
                print(f"podracer: {died}: it starts again from its last checkpoint", file=sys.stderr, flush=True)
            if time.monotonic() - lived_from > _STEADY_S:
                pause_s = 0.0
            if self._closing.wait(pause_s):
                return
            pause_s = min(max(2 * pause_s, _BACKOFF_S), _LONGEST_BACKOFF_S)
            self.num_restarts += 1
            try:
                self._server.restart()
                self._on_restart()
            except ReverbError as error:
                if self._closing.is_set():
                    return
                if self._server.alive():  # else it has died once more
                    self._failure = error
                    return
            lived_from = time.monotonic()
