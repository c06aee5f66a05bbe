"""Environments for the tests of worker processes. They are pickled into workers, so nothing here imports jax."""

import os
import signal
import sys
import time

import numpy as np

from podracer.workers import SingleEnvironment

SUITES = ("dm_control", "envpool", "gymnasium")
"""Registered suites of which no environment can be part of an XLA program. tests/envs/test_host.py has a case of each."""


class Counter(SingleEnvironment):
    """Counts steps; terminates at `length`, or is cut off at `limit`, whichever is first. Observes what it is told to be."""

    def __init__(self, number: int, seed: int, length: int = 3, limit: int = 1000):
        self.number, self.rng = number, np.random.default_rng(seed)
        self.length, self.limit, self.count = length, limit, 0

    def reset(self):
        self.count = 0
        return self._observe(-1)

    def step(self, action):
        self.count += 1
        terminated = self.count >= self.length
        return self._observe(action), float(self.count), 0.0 if terminated else 1.0, terminated or self.count >= self.limit

    def aux(self):
        return np.float32([self.number])

    def render(self):
        return np.full((2, 3, 3), self.number, np.uint8)

    def _observe(self, action):
        return {"count": np.float32([self.number, self.count, self.rng.random()]), "action": (np.int32(action),)}


class Faulty(Counter):
    """Environment 1 does something bad at its second step, or when it is made or reset."""

    def __init__(self, number: int, seed: int, fault: str):
        super().__init__(number, seed, length=100)
        self.fault = fault if number == 1 else ""
        self._fail("make")

    def reset(self):
        self._fail("reset")
        return super().reset()

    def step(self, action):
        observation, reward, discount, last = super().step(action)
        if self.count == 2:
            self._fail("step")
            if self.fault == "nan reward":
                reward = float("nan")
            if self.fault == "nan observation":
                observation["count"][2] = np.nan
            if self.fault == "shape":
                observation["count"] = observation["count"][:1]
            if self.fault == "hang":
                time.sleep(1000)
            if self.fault == "deaf":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                while True:
                    time.sleep(1000)
            if self.fault == "busy":
                sum(range(10**14))  # without a moment for other threads
            if self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "exit":
                os._exit(3)
            if self.fault == "slow":
                time.sleep(1)
        return observation, reward, discount, last

    def _fail(self, where: str) -> None:
        if self.fault == where:
            raise ValueError("the ball has left the court\nand rolls on")


class Modules(Counter):
    """Says whether jax was imported."""

    def step(self, action):
        _, reward, discount, last = super().step(action)
        return {"count": np.float32([self.number, self.count, "jax" in sys.modules]), "action": (0,)}, reward, discount, last


class Walk(SingleEnvironment):
    """Episodes of 9 steps. Observes its number, the steps of this episode, and all steps since it was made, resets included.

    Environment 1 hangs at step 63 of its life if the file `hangs` is there, which it takes away.
    """

    def __init__(self, number: int, seed: int, hangs: str):
        del seed
        self.number, self.hangs, self.count, self.life = number, hangs, 0, -1

    def reset(self):
        self.count = 0
        return self._observe()

    def step(self, action):
        self.count += 1
        observation = self._observe()
        if self.number == 1 and self.life == 63 and os.path.exists(self.hangs):
            os.remove(self.hangs)
            time.sleep(1000)
        over = self.count == 9
        return observation, 1.0, 0.0 if over else 1.0, over

    def _observe(self):
        self.life += 1
        return np.float32([self.number, self.count, self.life])
