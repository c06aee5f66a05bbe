"""The learner's side of a run over Reverb: the exchange of unrolls, replay, and the way in for this process's own actors."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from podracer.ops import columns
from podracer.plan import Plan
from podracer.runtimes.sebulba.actor import Unroll
from podracer.runtimes.sebulba.remote import Outbox, packed_example, unpack
from podracer.stores import replay
from podracer.stores.exchange import Exchange, Remote
from podracer.stores.reverb import ReverbError
from podracer.types import Params, Trajectory

_PAUSE_SECONDS = 2.0


class Hub:
    """Starts the server, and everything that talks to it.

    exchange: where the learner gets unrolls, and publishes parameters. outbox: where this process's actors put theirs.
    """

    def __init__(
        self,
        plan: Plan,
        trajectory: Trajectory,
        params: Params,
        job: bytes,
        folder: Path | None,
        deliver: Callable[[Trajectory], Trajectory],
    ):
        """Args:
        plan: of the job.
        trajectory, params: examples, arrays or shapes.
        job: what actors that join are told.
        folder: where replay is saved.
        deliver: moves a trajectory to the learner devices.

        Raises:
          ReverbError: the server is not installed, or does not start.
        """
        assert plan.actors is not None
        self._plan, self._deliver = plan, deliver
        one = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), jax.eval_shape(columns.batch_major, trajectory)
        )
        capacity = plan.replay_length * plan.envs_per_host
        host, _, port = plan.actors.listen.rpartition(":")
        self.exchange = Exchange(
            unroll=packed_example(trajectory),
            params=params,
            job=job,
            max_in_flight=plan.actors.max_lag + 1,
            receive=self._receive,
            timeout=plan.actors.timeout,
            max_restarts=plan.actors.max_restarts,
            host=host,
            port=int(port),
            replay=replay.table(one, capacity, plan.priority_exponent) if capacity else None,
            folder=folder if capacity else None,
        )
        self._replay: replay.Replay | None = None
        self._own: Remote | None = None
        try:
            if capacity:
                num = plan.envs_per_host * plan.replay_per_env
                self._replay = replay.Replay(self.exchange.client, one, plan.updates_per_unroll, num)
            self.exchange.start()
            self._own = Remote(self.exchange.address)
            self._own.expect(packed_example(trajectory), params)
        except BaseException:
            self.close()
            raise
        self.outbox = Outbox(self._own)
        self.joining = f"{host}:{self.exchange.server.port}"

    def draw(self, timeout: float) -> replay.Drawn | None:
        """What the next update learns from besides an online unroll, or None if there is nothing for `timeout` seconds.

        Raises:
          ReverbError: the server is given up.
        """
        assert self._replay is not None
        self.exchange.check()
        return self._replay.get(timeout)

    def unrolls(self, drawn: replay.Drawn) -> Trajectory:
        """What a draw holds for the learner, on the host, `[updates_per_unroll, columns, T+1, ...]`."""
        return drawn.unrolls.replace(importance=drawn.importance if self._plan.priority_exponent else ())

    def prioritize(self, unroll: Unroll, drawn: replay.Drawn, online: np.ndarray, replayed: np.ndarray) -> None:
        """Sets the priorities `[updates_per_unroll, columns]` that an update has given to online and to replayed columns."""
        assert self._replay is not None
        for keys, priorities in zip(drawn.keys, replayed, strict=True):
            self._replay.prioritize(keys, priorities)
        self._replay.prioritize(list(unroll.replay_keys), online[-1])

    def save(self) -> None:
        """Saves replay, where there is one, to the run's folder. Where that cannot be, says so, and the run goes on."""
        for last in (False, False, True):
            if self._replay is None:
                return
            try:
                return self.exchange.save()
            except ReverbError as error:  # a server that dies meanwhile is started again
                if last:
                    print(f"podracer: replay was not saved: {error}", file=sys.stderr)
                time.sleep(_PAUSE_SECONDS)

    def close(self) -> None:
        """Ends all of it, the server too. May be called again."""
        if self._own is not None:
            self._own.close()
        if self._replay is not None:
            self._replay.close()
        self.exchange.close()

    def _receive(self, tree: dict[str, Any]) -> Unroll:
        """An unroll has arrived, on the host; this is a thread of the exchange."""
        online = tree["trajectory"]
        keys = self._replay.insert(columns.batch_major(online)) if self._replay is not None else ()
        return unpack(tree, self._deliver(online), keys)
