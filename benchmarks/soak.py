"""A Sebulba run over Reverb in which something dies every few seconds; in the end its invariants are checked.

    python benchmarks/soak.py --seconds 600

One learner with an actor of its own, and two actor processes, one of them behind a connection that can be cut. At random
moments one of these happens: an actor process is killed and another one started; Reverb's server is killed; the connection is
cut for two seconds; an environment's worker process of the learner's actor is killed. All with SIGKILL.

Prints one JSON line: how often each happened, the longest time without an update, the growth of memory and threads from the
second fifth of the run to its last tenth, and `broken`, the invariants that did not hold. Exit code 1 where there are any.
"""

import collections
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import common
import jax
import numpy as np
import psutil

from podracer.launch import job as jobs
from podracer.launch.surroundings import prepare

_MAX_LAG = 4


class Cable:
    """A TCP connection to the server that can be cut, and refuses new connections while it is."""

    def __init__(self, port: int):
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._whole = threading.Event()
        self._whole.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            inner = self._listener.accept()[0]
            try:
                if not self._whole.is_set():
                    raise OSError
                outer = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                inner.close()
                continue
            self._pairs.append((inner, outer))
            for source, sink in ((inner, outer), (outer, inner)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self, seconds: float) -> None:
        """Ends all connections, and refuses others so long."""
        self._whole.clear()
        pairs, self._pairs = self._pairs, []
        for end in (end for pair in pairs for end in pair):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        threading.Timer(seconds, self._whole.set).start()


class Faults:
    """Does something bad now and then, in a thread."""

    def __init__(self, address: str, server: Any, every: float, seed: int):
        self.counts: collections.Counter[str] = collections.Counter()
        self._server, self._every, self._random = server, every, random.Random(seed)
        self._cable = Cable(server.port)
        self._addresses = [address, f"127.0.0.1:{self._cable.port}"]
        self.actors = [self._join(place) for place in range(2)]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _join(self, place: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "podracer.launch.cli", "actor", "--connect", self._addresses[place], "--threads", "1"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _run(self) -> None:
        kinds = ["actor killed", "server killed", "network cut", "environment killed"]
        while not self._stop.wait(self._random.uniform(0.5, 1.5) * self._every):
            # Each in turn, so that a short run has all of them; what a fault meets is left to chance.
            kind = kinds[sum(self.counts.values()) % len(kinds)]
            if kind == "actor killed":
                place = self._random.randrange(2)
                self.actors[place].kill()
                self.actors[place].wait()
                self.actors[place] = self._join(place)
            elif kind == "server killed":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._server.pid, signal.SIGKILL)
            elif kind == "network cut":
                self._cable.cut(2.0)
            else:
                workers = _workers()
                if not workers:
                    continue
                self._random.choice(workers).kill()
            self.counts[kind] += 1

    def stop(self) -> None:
        """No more faults."""
        self._stop.set()
        self._thread.join()


def _workers() -> list[psutil.Process]:
    """Worker processes of this process's own environments."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any("podracer" in word and "worker" in word for word in child.cmdline()):
                found.append(child)
    return found


class Watcher:
    """Sees every unroll that the learner learns from, and counts for itself."""

    def __init__(self, program: Any):
        self._program = program
        self.seen: set[int] = set()
        self.num_updates = self.num_repeated = self.num_steps = self.num_bad = 0

    def __call__(self, state: Any, trajectory: Any, drawn: Any) -> Any:
        host = jax.device_get(trajectory)
        mark = zlib.crc32(b"".join(np.ascontiguousarray(x).tobytes() for x in jax.tree.leaves(host)))
        self.num_repeated += mark in self.seen
        self.seen.add(mark)
        arrivals = host.timestep.step_type[1:]
        self.num_steps += int((arrivals != 0).sum())
        self.num_updates += 1
        # First steps follow last ones, and only those: else an unroll was made of two episodes' halves.
        last, first = host.timestep.step_type[:-1] == 2, arrivals == 0
        finite = all(np.isfinite(x).all() for x in jax.tree.leaves(host.actor_output))
        self.num_bad += bool((last != first).any()) or not finite
        return self._program(state, trajectory, drawn)


def soak(seconds: float, every: float, seed: int) -> dict[str, Any]:
    """Runs, and returns what is printed."""
    settings = (
        "sebulba.store=reverb",
        "sebulba.actor_devices=1",
        "sebulba.learner_devices=1",
        "sebulba.threads=1",
        f"sebulba.max_lag={_MAX_LAG}",
        "sebulba.sync=false",
        "sebulba.max_restarts=100000",
        "sebulba.env_timeout=5",
        "anakin.num_envs=8",
        "agent.replay_share=0.5",
        "agent.replay_capacity=4000",
        "agent.unroll_length=10",
        "agent.torso.hidden=(16,)",
        "agent.dynamics.size=16",
    )
    job, preset = jobs.new_job(jobs.Request("sebulba", "muesli", "gymnasium/CartPole-v1", settings=settings))
    parts = jobs.build(job)
    with tempfile.TemporaryDirectory() as folder:
        runtime = jobs.make_runtime(job, parts, preset, Path(folder))
        watcher = runtime._program = Watcher(runtime._program)
        state, _ = runtime.run(runtime.init(), 1)
        exchange = runtime._handover
        faults = Faults(exchange.address, exchange.server, every, seed)
        process, samples, sums = psutil.Process(), [], collections.Counter({"updates": 1})
        sums["agent_steps"] = watcher.num_steps
        worst_lag, longest = 0, 0.0
        started = saved = time.monotonic()
        try:
            done = False
            while not done:
                now = time.monotonic()
                quiet = now > started + seconds
                if quiet:
                    faults.stop()
                # In the end, until unrolls come from all three processes: what was killed last has to start first.
                state, metrics = runtime.run(state, 30 if quiet else 1)
                done = quiet and (metrics["actors"][0] == 3 or now > started + seconds + 90)
                longest = max(longest, (time.monotonic() - now) / metrics["updates"][0])
                for name in ("updates", "agent_steps"):
                    sums[name] += int(metrics[name][0])
                worst_lag = max(worst_lag, int(metrics["lag_max"][0]))
                if now - saved > every:
                    saved = now
                    with contextlib.suppress(Exception):  # the server may be dead at this moment
                        runtime.checkpoint(state)
                samples.append((now - started, process.memory_info().rss, threading.active_count(), process.num_fds()))
            stats = {
                "server_restarts": exchange.num_restarts,
                "repeated": exchange.num_repeated,
                "replaced": exchange.num_replaced,
                "stale": runtime._num_stale,
                "actor_restarts": int(metrics["restarts"][0]),
                "replay": _replay(exchange),
            }
        finally:
            faults.stop()
            runtime.close()
        ends = [_end(actor) for actor in faults.actors]
    early = [s for s in samples if 0.2 * seconds < s[0] < 0.4 * seconds] or samples[:1]
    late = [s for s in samples if s[0] > 0.9 * seconds] or samples[-1:]
    growth = [float(np.median([s[i] for s in late]) - np.median([s[i] for s in early])) for i in (1, 2, 3)]
    left = [child.pid for child in psutil.Process().children(recursive=True)]
    broken = {
        "an unroll was learned from twice": watcher.num_repeated > 0,
        "an unroll was not whole": watcher.num_bad > 0,
        "updates are not counted exactly": not sums["updates"] == watcher.num_updates == int(state.num_updates),
        "agent steps are not counted exactly": sums["agent_steps"] != watcher.num_steps,
        "an unroll was older than max_lag": worst_lag > _MAX_LAG,
        "the server's deaths and restarts differ": stats["server_restarts"] != faults.counts["server killed"],
        "memory grows": growth[0] > 50e6 + 50e3 * seconds,
        "threads grow": growth[1] > 5,
        "file descriptors grow": growth[2] > 20,
        f"actor processes ended with {ends}": ends != [0, 0],
        "processes are left behind": bool(left),
    }
    return {
        "seconds": seconds,
        "faults": dict(faults.counts),
        "updates": sums["updates"],
        "agent_steps": sums["agent_steps"],
        "longest_stall_s": round(longest, 2),
        "lag_max": worst_lag,
        **stats,
        "growth": {"rss_mb": round(growth[0] / 1e6, 1), "threads": growth[1], "fds": growth[2]},
        "broken": [name for name, failed in broken.items() if failed],
    }


def _replay(exchange: Any) -> int:
    """Items that replay holds."""
    return int(exchange.client.server_info().tables["replay"].current_size)


def _end(actor: subprocess.Popen[bytes]) -> int | str:
    try:
        return actor.wait(30)
    except subprocess.TimeoutExpired:
        actor.kill()
        actor.wait()
        return "hung"


def main() -> None:
    """See the module."""
    parser = common.parser(__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="of the whole run")
    parser.add_argument("--every", type=float, default=8.0, help="seconds between two faults, on average")
    parser.add_argument("--seed", type=int, default=0, help="of the faults' times")
    options = common.parse(parser)
    line = common.emit("soak", **soak(options.seconds, options.every, options.seed))
    sys.exit(1 if line["broken"] else 0)


if __name__ == "__main__":
    prepare()
    main()
