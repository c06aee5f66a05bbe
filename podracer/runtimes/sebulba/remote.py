"""Actors in other processes than the learner: unrolls and parameters as they travel through `stores.exchange`."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from podracer.runtimes.sebulba.actor import ACTIVITIES, COUNTS, Unroll
from podracer.runtimes.sebulba.crew import Crew, example
from podracer.runtimes.sebulba.parameters import Parameters, Version
from podracer.stores.exchange import Remote, Ticket
from podracer.types import Trajectory

_POLL_SECONDS = 0.2
_STOP_SECONDS = 5.0


def pack(unroll: Unroll) -> dict[str, Any]:
    """An unroll as a tree of arrays."""
    return {
        "trajectory": unroll.trajectory,
        "version": np.int64(unroll.version),
        "actor": np.int64(unroll.actor),
        "counts": np.array([unroll.counts[name] for name in COUNTS], np.float64),
        "seconds": np.array([unroll.seconds[name] for name in ACTIVITIES], np.float64),
    }


def unpack(tree: dict[str, Any], trajectory: Trajectory, replay_keys: Sequence[int]) -> Unroll:
    """The unroll of `pack`, with what has become of its trajectory."""
    return Unroll(
        trajectory=trajectory,
        version=int(tree["version"]),
        actor=int(tree["actor"]),
        counts=dict(zip(COUNTS, tree["counts"].tolist(), strict=True)),
        seconds=dict(zip(ACTIVITIES, tree["seconds"].tolist(), strict=True)),
        replay_keys=replay_keys,
    )


def packed_example(trajectory: Trajectory) -> dict[str, Any]:
    """The shapes of `pack`, from those of a trajectory."""
    nothing = dict.fromkeys((*COUNTS, *ACTIVITIES), 0.0)
    return pack(Unroll(trajectory, 0, 0, nothing, nothing))


class Outbox:
    """`stores.handover`, for actors, through a learner's exchange."""

    def __init__(self, remote: Remote):
        self._remote = remote
        self.begin, self.cancel = remote.begin, remote.cancel

    def put(self, ticket: Ticket, unroll: Unroll) -> bool:
        """See `Handover.put`."""
        return self._remote.put(ticket, pack(unroll))


class RemoteActors:
    """The actors of a process without a learner. They join a running job, and may leave it at any time."""

    def __init__(self, remote: Remote, crew: Crew):
        """`remote`: connected, owned from now on. Raises ReverbError where the learner's data are of another shape."""
        self._remote, self._crew = remote, crew
        trajectory, params = example(crew.agent, crew.environment, crew.num_envs)
        remote.expect(packed_example(trajectory), params)
        self._parameters = Parameters(crew.devices)
        self._lock = threading.Lock()

    def run(self, should_stop: Callable[[], bool], say: Callable[[str], None]) -> str:
        """Acts until the run is over or `should_stop()` holds; says now and then what was sent.

        Returns:
          Why it ended.

        Raises:
          ActorsFailed: actors fail too often. ReverbError: the learner cannot be reached any more.
        """
        supervisor = self._crew.start(0, self._newest, Outbox(self._remote), jax.device_get)
        told = time.monotonic()
        try:
            while not should_stop() and not self._remote.over:
                supervisor.check()
                if self._remote.failure is not None:
                    raise self._remote.failure
                time.sleep(_POLL_SECONDS)
                if time.monotonic() - told > 10.0:
                    told = time.monotonic()
                    say(f"{supervisor.num_unrolls:,} unrolls sent; {supervisor.waiting_for()}")
            return "the run is over" if self._remote.over else "asked to stop"
        finally:
            supervisor.stop(_STOP_SECONDS)
            self._remote.close()

    def _newest(self, device: int, ticket: Ticket) -> Version:
        with self._lock:
            fetched = self._remote.fetch(ticket.version)
            if fetched is not None:
                self._parameters.publish(*fetched)
            return self._parameters.newest(device)
