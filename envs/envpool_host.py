"""What `atari/<game>` and `envpool/<id>` share: a pool of envpool, or one with the same calls, as a `HostEnvironment`.

envpool resets an environment at the step after its episode's end: that step ignores the action, and is our FIRST. Nothing
that envpool returns says so reliably (after a lost life in the ALE, `elapsed_step` goes on): it is known from the step before.
"""

import abc
import queue
import threading
import time
import warnings
import weakref
from typing import Any

import numpy as np

from podracer.environment import EnvironmentFailed, HostEnvironment, Unsupported, in_order
from podracer.processes import check_finite
from podracer.types import FIRST, LAST, MID, EnvironmentSpec, TimeStep


def arrive(xp: Any, first: Any, reward: Any, terminated: Any, truncated: Any, observation: Any) -> TimeStep:
    """Time steps `[n]` from what envpool returned.

    Args:
      xp: `numpy`, or `jax.numpy` within a program.
      first: `[n]` bool, the previous step ended the episode.
      reward: `[n]`. terminated, truncated: `[n]` bool; termination wins.
      observation: leaves `[n, ...]`.
    """
    over = terminated | truncated
    return TimeStep(
        step_type=xp.where(first, FIRST, xp.where(over, LAST, MID)).astype(xp.int32),
        reward=xp.where(first, 0.0, reward).astype(xp.float32),
        discount=xp.where(terminated & ~first, 0.0, 1.0).astype(xp.float32),
        observation=observation,
    )


_QUIET = threading.Lock()
"""Of those who silence warnings, which is a setting of the process."""
_GRACE = 1.0  # seconds that a step under way gets to end when the pool is closed


class EnvpoolHost(HostEnvironment):
    """One pool of envpool. Subclasses say what of its output is an observation, and when an episode is over.

    envpool gives out time steps in batches of a fixed size, each as soon as that many environments have finished.
    """

    def __init__(self, spec: EnvironmentSpec, env_id: str, options: dict[str, Any], first_env: int = 0, batch_size: int = 0):
        """Makes the pool.

        Args:
          options: of `envpool.make`, `num_envs` among them.
          first_env: global number of the first environment, for messages.
          batch_size: of `recv`; it must divide the number of environments; 0 is all of them, the fastest.

        Raises:
          Unsupported: `batch_size` does not divide the number of environments.
        """
        self.spec, self.num_envs, self.first_env = spec, options["num_envs"], first_env
        self._batch = batch_size or self.num_envs
        if self.num_envs % self._batch:
            raise Unsupported(f"{spec.name}: env.batch_size={batch_size} must divide the pool's {self.num_envs} environments")
        self._pool = self._make(env_id, options)
        self._busy = np.zeros(self.num_envs, bool)
        self._first = np.zeros(self.num_envs, bool)
        self._num_sent = self._num_asked = self._num_received = 0
        self._ask: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # envpool's recv has no timeout, so a thread waits in it. It must not hold `self`, or no pool would ever be freed.
        self._thread = threading.Thread(target=_receive, args=(self._pool, self._ask, self._arrived), daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, self._ask.put, False)

    def _make(self, env_id: str, options: dict[str, Any]) -> Any:
        """The pool."""
        import envpool

        with _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that bounds lose precision
            pool: Any = envpool.make(env_id, **options, batch_size=self._batch)
            assert pool.observation_space is not None  # made now, since making it is what warns
        return pool

    @abc.abstractmethod
    def _observe(self, observation: Any, info: dict[str, Any], first: np.ndarray, env_id: np.ndarray) -> Any:
        """The observation, leaves `[n, ...]`, of environments `env_id` `[n]`."""

    def _terminated(self, terminated: np.ndarray, info: dict[str, Any], first: np.ndarray, env_id: np.ndarray) -> np.ndarray:
        """`[n]` bool. `terminated` is envpool's, false where a time limit was reached at the same step."""
        del info, first, env_id
        return terminated

    def reset(self, timeout: float) -> TimeStep:
        deadline = time.monotonic() + timeout
        while self._busy.any():
            self._recv(deadline, timeout)
        self._pool.async_reset()
        self._first[:] = True
        self._begin(np.arange(self.num_envs))
        return self._recv_all(deadline, timeout)

    def send(self, action: np.ndarray, env_id: np.ndarray) -> None:
        if self._pool is None:
            raise EnvironmentFailed(f"{self.spec.name}: the environments are closed")
        if self._busy[env_id].any():
            raise ValueError(f"environment {env_id[self._busy[env_id]][0]} is in the middle of a step: recv it first")
        self._pool.send(np.asarray(action), np.asarray(env_id))
        self._begin(env_id)

    def recv(self, timeout: float) -> tuple[np.ndarray, TimeStep]:
        """As in HostEnvironment. Raises ValueError where fewer than a batch are in the middle of a step: it would never end."""
        return self._recv(time.monotonic() + timeout, timeout)

    def step(self, action: np.ndarray, timeout: float) -> TimeStep:
        self.send(action, np.arange(self.num_envs))
        return self._recv_all(time.monotonic() + timeout, timeout)

    def render(self) -> np.ndarray | None:
        """The first environment in colour, or None where it has no picture, is in the middle of a step, or closed."""
        if self._pool is None or self._busy.any():
            return None
        modules = [base.__module__ for base in type(self._pool).__mro__]
        if any("mujoco" in name for name in modules):  # there it ends the process for want of OpenGL
            return None
        try:
            return np.asarray(self._pool.render(env_ids=[0])[0], np.uint8)
        except RuntimeError:
            return None

    def close(self) -> None:
        """Ends the thread, unless it hangs, and lets go of the pool, with which the emulators go."""
        self._end()
        self._thread.join(_GRACE)
        self._pool = None

    def _begin(self, env_id: np.ndarray) -> None:
        self._busy[env_id] = True
        self._num_sent += len(env_id)
        while self._num_sent - self._num_asked >= self._batch:
            self._num_asked += self._batch
            self._ask.put(True)

    def _recv(self, deadline: float, timeout: float) -> tuple[np.ndarray, TimeStep]:
        if self._num_received == self._num_asked:
            waiting = int(self._busy.sum())
            raise ValueError(f"recv waits for {self._batch} environments, but {waiting} are in the middle of a step: send more")
        try:
            arrived = self._arrived.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            late = self.first_env + np.flatnonzero(self._busy)
            some = ", ".join(map(str, late[:4])) + (", ..." if len(late) > 4 else "")
            raise TimeoutError(f"{self.spec.name}: environments {some} took longer than {timeout:g} s") from None
        if isinstance(arrived, Exception):
            raise EnvironmentFailed(f"{self.spec.name}: {type(arrived).__name__}: {str(arrived).partition(chr(10))[0]}")
        observation, reward, terminated, truncated, info = arrived
        env_id = info["env_id"]
        self._num_received += len(env_id)
        self._busy[env_id] = False
        first = self._first[env_id]
        terminated = self._terminated(terminated, info, first, env_id)
        timestep = arrive(np, first, reward, terminated, truncated, self._observe(observation, info, first, env_id))
        self._first[env_id] = timestep.last()
        check_finite(self.spec.name, timestep, self.first_env + env_id)
        return env_id, timestep

    def _recv_all(self, deadline: float, timeout: float) -> TimeStep:
        """Waits until no environment is busy; the time steps of all, in order."""
        arrived = []
        while self._busy.any():
            arrived.append(self._recv(deadline, timeout))
        return in_order(arrived)


def _receive(pool: Any, ask: "queue.SimpleQueue[bool]", arrived: "queue.SimpleQueue[Any]") -> None:
    """A thread: one `recv` for each True in `ask`, until False."""
    while ask.get():
        try:
            arrived.put(pool.recv())
        except Exception as error:
            arrived.put(error)
