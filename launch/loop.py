"""The loop of training as a generator, so that statistics, checkpoints and signals stay outside it and outside runtimes."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

_SECONDS_PER_CALL = 1.0
_LEAST_SECONDS = 0.05
_GROWTH = 8


@dataclasses.dataclass(frozen=True)
class Counters:
    """How far a run is. Python integers, which do not overflow.

    num_updates: of each seed. agent_steps: of each seed, without slots in which an environment reset.
    wall_seconds: spent in this run, over all its processes. timed_steps, timed_seconds: agent steps over all seeds, and
    time, without the first call of each process, which compiles.
    """

    num_updates: int = 0
    agent_steps: tuple[int, ...] = (0,)
    wall_seconds: float = 0.0
    timed_steps: int = 0
    timed_seconds: float = 0.0

    @property
    def num_agent_steps(self) -> int:
        """Over all seeds."""
        return sum(self.agent_steps)

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Counters":
        """From a checkpoint."""
        return cls(**{**values, "agent_steps": tuple(values["agent_steps"])})


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a runtime.

    num_updates: that it ran, fewer than asked for where someone wants to stop. metrics: name to `[num_seeds]`. seconds: since
    the call before, whatever was done between included. compiled: it is the first of its process.
    """

    num_updates: int
    metrics: Mapping[str, np.ndarray]
    seconds: float
    compiled: bool


def updates(
    runtime: Any,
    state: Any,
    counters: Counters,
    num_steps: int,
    clock: Callable[[], float] = time.perf_counter,
    agree: Callable[[int], int] = lambda number: number,
) -> Iterator[tuple[Any, Counters, Call]]:
    """Runs updates until every seed has taken `num_steps` agent steps.

    Where it stops does not depend on how updates fall into calls: an update takes at most `steps_per_update` agent steps,
    so a call of `ceil(left / steps_per_update)` updates cannot pass the first update that reaches the budget.

    Args:
      runtime: has `run` and `plan`. Its plan's `updates_per_call` fixes the size of calls; 0 aims at a second each,
        less in the first seconds.
      state: donated; use the one that is yielded, and only until the next step of this generator.
      counters: of the state.
      num_steps: budget of one seed.
      clock: seconds.
      agree: makes the size of a call, which depends on time, the same on all hosts.

    Yields:
      The state, its counters and the call that led to them.
    """
    plan = runtime.plan
    largest = max(1, (2**31 - 1) // plan.steps_per_update)
    size, compiled, mark = 1, True, clock()
    while (left := num_steps - min(counters.agent_steps)) > 0:
        num_updates = agree(min(size, largest, math.ceil(left / plan.steps_per_update)))
        state, metrics = runtime.run(state, num_updates)
        now = clock()
        made = int(metrics["updates"][0]) if "updates" in metrics else num_updates
        call = Call(num_updates=made, metrics=metrics, seconds=now - mark, compiled=compiled)
        mark = now
        counters = _count(counters, call)
        yield state, counters, call
        if plan.updates_per_call:
            size = plan.updates_per_call
        elif not compiled:
            # A tenth of the time so far, so that a run of a few seconds has a curve too.
            aim = np.clip(0.1 * counters.timed_seconds, _LEAST_SECONDS, _SECONDS_PER_CALL)
            size = int(np.clip(num_updates * aim / max(call.seconds, 1e-6), 1, _GROWTH * num_updates))
        compiled = False


def _count(counters: Counters, call: Call) -> Counters:
    steps = [int(n) for n in np.asarray(call.metrics["agent_steps"]).reshape(-1)]
    before = counters.agent_steps if len(counters.agent_steps) == len(steps) else (0,) * len(steps)
    return Counters(
        num_updates=counters.num_updates + call.num_updates,
        agent_steps=tuple(a + b for a, b in zip(before, steps, strict=True)),
        wall_seconds=counters.wall_seconds + call.seconds,
        timed_steps=counters.timed_steps + (0 if call.compiled else sum(steps)),
        timed_seconds=counters.timed_seconds + (0.0 if call.compiled else call.seconds),
    )
