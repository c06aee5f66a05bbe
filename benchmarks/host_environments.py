"""Speed of environments on the host: steps/s of random actions, all environments in step, as an actor of Sebulba takes them.

    python benchmarks/host_environments.py "atari/pong" "atari/pong env.backend=ale" [--num-envs 32] [--rounds 7] [--seconds 2]

A case is an environment's name and settings. They take turns within each round. Prints one JSON line a case: the median over
rounds of environment steps/s, and all of them.
"""

import dataclasses
import os
import statistics
import time
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import common
import numpy as np

from podracer import registry
from podracer.config import override
from podracer.environment import HostEnvironment

_TIMEOUT = 300.0


@dataclasses.dataclass(frozen=True)
class _Options:
    env: Any


class Case:
    """One of those that are compared."""

    def __init__(self, words: str, num_envs: int):
        name, *settings = words.split()
        found = registry.env(name)
        options = override(_Options(found.suite.config()), dict(setting.split("=", 1) for setting in settings))
        self.words, self.rates = words, list[float]()
        self.host: HostEnvironment = found.make(options.env).host(num_envs, 0)
        self.host.reset(_TIMEOUT)
        self._rng, self._spec = np.random.default_rng(0), self.host.spec

    def measure(self, seconds: float) -> float:
        """Steps/s over about that many seconds."""
        started, num_steps = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - started) < seconds:
            self.host.step(self._action(), _TIMEOUT)
            num_steps += self.host.num_envs
        return num_steps / elapsed

    def _action(self) -> np.ndarray:
        num_envs, action = self.host.num_envs, self._spec.action
        if self._spec.discrete:
            return self._rng.integers(self._spec.num_actions, size=num_envs, dtype=np.int32)
        return self._rng.uniform(-1, 1, (num_envs, *action.shape)).astype(action.dtype)


def main() -> None:
    """Measures and prints."""
    parser = common.parser(__doc__)
    parser.add_argument("cases", nargs="+")
    parser.add_argument("--num-envs", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    cases = [Case(words, options.num_envs) for words in options.cases]
    for case in cases:
        case.measure(options.seconds / 2)  # not counted
    for _ in range(options.rounds):
        for case in cases:
            case.rates.append(case.measure(options.seconds))
    for case in cases:
        facts = {"num_envs": options.num_envs, "unit": "steps/s", "per_second": statistics.median(case.rates)}
        common.emit("host_environments", case=case.words, **facts, all=case.rates)
        case.host.close()


if __name__ == "__main__":
    main()
