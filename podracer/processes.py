"""Python environments in parallel processes, behind the `HostEnvironment` interface.

Each of `W` worker processes steps a slice of the environments (`podracer.workers`). Actions and time steps travel through
shared memory, a few bytes over a socket say whose turn it is. Workers are fresh interpreters: forking is not safe in a process
that has JAX's threads, and multiprocessing's spawn would import the user's main module, and JAX with it, in every worker.

The shared memory is an anonymous file that has no name to be left behind, however the process ends.
"""

import contextlib
import functools
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from mmap import mmap
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import jax
import numpy as np

from podracer import dm, workers
from podracer.config import one_line
from podracer.environment import Environment, EnvironmentFailed, HostEnvironment, Unsupported, VectorEnvironment
from podracer.types import EnvironmentSpec, TimeStep
from podracer.workers import Factory, Field, Layout, Task

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from podracer import workers; workers.main(*map(int, sys.argv[2:]))"
)
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # the parallelism is in the processes
_GRACE = 1.0  # seconds that workers get to end by themselves, and again after SIGTERM


class ProcessEnvironment(Environment):
    """An environment that runs in worker processes alone: a signature and a factory, `podracer.workers.Factory`."""

    def __init__(self, spec: EnvironmentSpec, factory: Factory, num_workers: int = 0):
        """Arguments are those of `ProcessPool`."""
        self.spec, self.factory, self.num_workers = spec, factory, num_workers

    @classmethod
    def from_dm_env(
        cls, name: str, factory: Callable[..., Any], max_steps: int = 0, num_workers: int = 0
    ) -> "ProcessEnvironment":
        """Environments that `factory` makes, of the class `dm_env.Environment`; one is made and closed to see its specs.

        Args:
          name: of the signature.
          factory: is called with `seed=`, an integer of each environment's own, if it has such a parameter, else without
            arguments. As in `ProcessPool`.
          max_steps: time limit; 0 keeps the environment's own.

        Raises:
          Unsupported: `factory` needs other arguments or returns something else, or the specs are of kinds that
            `podracer.dm` does not know.
        """
        try:
            env = dm.build(factory, 0)
            observation, action = dm.observation_spec(env.observation_spec()), dm.action_spec(env.action_spec())
        except TypeError as error:
            raise Unsupported(f"{name}: {one_line(error)}") from error
        env.close()
        spec = EnvironmentSpec(name=name, observation=observation, action=action)
        return cls(spec, functools.partial(dm.make, factory=factory, max_steps=max_steps), num_workers)

    def vectorize(self, num_envs: int, seed: int) -> VectorEnvironment:
        raise host_only(self.spec.name)

    def host(self, num_envs: int, seed: int, first_env: int = 0) -> "ProcessPool":
        return ProcessPool(self.spec, self.factory, num_envs, seed, first_env, self.num_workers)


def host_only(name: str) -> Unsupported:
    """What the `vectorize` of an environment called `name` raises that cannot be part of an XLA program."""
    return Unsupported(f"{name} runs on the host, outside XLA: use podracer launch sebulba --env {name}")


class ProcessPool(HostEnvironment):
    """`B` environments in worker processes.

    After EnvironmentFailed it can only be closed; after TimeoutError one may go on waiting.
    """

    def __init__(
        self, spec: EnvironmentSpec, factory: Factory, num_envs: int, seed: int, first_env: int = 0, num_workers: int = 0
    ):
        """Starts the processes; `reset` waits for them.

        Args:
          spec: the signature that the environments keep; a worker fails where shapes or structures differ.
          factory: makes environment `first_env + i` from that number and a seed, in a worker. Picklable (functions of the main
            module are, too); its module must not import jax.
          num_envs: `B`.
          seed: of the job. first_env: global number of the first environment. Each seed derives from both alone, so an
            environment does the same in whichever pool and process it lives.
          num_workers: processes, at most `B`; 0 is one per core that this process may use.
        """
        self.spec, self.num_envs, self.first_env = spec, num_envs, first_env
        num_workers = min(num_envs, num_workers or _num_cores())
        layout, size = _layout(spec, num_envs, num_workers)
        self._failure: EnvironmentFailed | None = None
        self._workers: list[_Process] = []
        self._selector = selectors.DefaultSelector()
        self._pending = np.zeros(num_envs, bool)
        self._owner = np.empty(num_envs, np.int32)
        descriptor = _anonymous_file(size)
        try:
            self._shared = workers.Views(layout, mmap(descriptor, size))
            pickled = cloudpickle.dumps(factory)
            for worker, numbers in enumerate(np.array_split(np.arange(num_envs), num_workers)):
                self._owner[numbers] = worker
                seeds = tuple(environment_seed(seed, first_env + int(number)) for number in numbers)
                task = Task(worker, tuple(numbers.tolist()), seeds, first_env, size, layout)
                process = _Process(descriptor, task, pickled)
                self._workers.append(process)
                self._selector.register(process.connection, selectors.EVENT_READ, process)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(descriptor)

    def reset(self, timeout: float) -> TimeStep:
        """Starts all environments, and lets steps that are under way end first. Their randomness goes on where it was."""
        deadline = time.monotonic() + timeout
        self._wait_for_all(deadline, timeout)
        self._command(workers.RESET, np.arange(self.num_envs))
        self._wait_for_all(deadline, timeout)
        return self._read(None)

    def send(self, action: np.ndarray, env_id: np.ndarray) -> None:
        self._check()
        if self._pending[env_id].any():
            raise ValueError(f"environment {env_id[self._pending[env_id]][0]} is in the middle of a step: recv it first")
        self._shared.action[env_id] = action
        self._command(workers.STEP, env_id)

    def recv(self, timeout: float) -> tuple[np.ndarray, TimeStep]:
        self._check()
        if not self._pending.any():
            raise ValueError("no environment is in the middle of a step: send first")
        arrived = self._wait(time.monotonic() + timeout, timeout)
        return arrived, self._read(arrived)

    def step(self, action: np.ndarray, timeout: float) -> TimeStep:
        self.send(action, np.arange(self.num_envs))
        self._wait_for_all(time.monotonic() + timeout, timeout)
        return self._read(None)

    def render(self) -> np.ndarray | None:
        """A picture of the first environment, or None where it has none or is in the middle of a step."""
        if self._failure is not None or self._pending.any():
            return None
        connection = self._workers[0].connection
        try:
            connection.send_bytes(workers.RENDER)
            answer = connection.recv_bytes()
        except (EOFError, OSError):
            raise self._fail(self._died(self._workers[0])) from None
        if answer[:1] != workers.PICTURE:
            raise self._fail(self._failed(answer))
        return cloudpickle.loads(answer[1:])

    def close(self) -> None:
        """Ends the workers: asks, terminates after a second, kills after another."""
        if self._failure is None:
            self._failure = EnvironmentFailed(f"{self.spec.name}: the environments are closed")
        for process in self._workers:
            process.ask_to_end()
        deadline = time.monotonic() + _GRACE
        for end in (subprocess.Popen.terminate, subprocess.Popen.kill):
            for process in self._workers:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.popen.wait(max(0.0, deadline - time.monotonic()))
            for process in self._workers:
                if process.popen.poll() is None:
                    end(process.popen)
            deadline = time.monotonic() + _GRACE
        for process in self._workers:
            process.popen.wait()
            process.close()
        self._workers = []
        self._selector.close()
        vars(self).pop("_shared", None)  # the memory goes with its last view

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _command(self, command: bytes, env_id: np.ndarray) -> None:
        self._check()
        owner = self._owner[env_id]
        self._pending[env_id] = True
        for worker, process in enumerate(self._workers):
            mine = env_id[owner == worker]
            if mine.size:
                try:
                    process.connection.send_bytes(command + mine.astype(np.int32).tobytes())
                except OSError:
                    raise self._fail(self._died(process)) from None

    def _wait_for_all(self, deadline: float, timeout: float) -> None:
        while self._pending.any():
            self._wait(deadline, timeout)

    def _wait(self, deadline: float, timeout: float) -> np.ndarray:
        """Numbers of the environments that have finished: those of all workers that are ready now, at least one."""
        self._check()
        ready = self._selector.select(max(0.0, deadline - time.monotonic()))
        if not ready:
            for process in self._workers:  # a grandchild may hold its end of the connection open
                if process.popen.poll() is not None:
                    raise self._fail(self._died(process))
            raise TimeoutError(self._whom_we_wait_for(timeout))
        arrived = []
        for key, _ in ready:
            try:
                answer = key.data.connection.recv_bytes()
            except (EOFError, OSError):
                raise self._fail(self._died(key.data)) from None
            if answer[:1] != workers.DONE:
                raise self._fail(self._failed(answer))
            arrived.append(np.frombuffer(answer[1:], np.int32))
        numbers = np.concatenate(arrived)
        self._pending[numbers] = False
        return numbers

    def _read(self, env_id: np.ndarray | None) -> TimeStep:
        """A copy of the time steps of some environments, or of all in order."""
        take = (lambda view: view.copy()) if env_id is None else (lambda view: view[env_id])  # an index copies, too
        shared = self._shared
        timestep = TimeStep(
            step_type=take(shared.step_type),
            reward=take(shared.reward),
            discount=take(shared.discount),
            observation=workers.unflatten(self.spec.observation, map(take, shared.observation)),
            aux=workers.unflatten(self.spec.aux, map(take, shared.aux)),
        )
        numbers = np.arange(self.num_envs) if env_id is None else env_id
        try:
            check_finite(self.spec.name, timestep, self.first_env + numbers)
        except EnvironmentFailed as error:
            raise self._fail(error) from None
        return timestep

    def _whom_we_wait_for(self, timeout: float) -> str:
        late = sorted({int(self._shared.working_on[worker]) for worker in set(self._owner[self._pending].tolist())})
        names = ", ".join(str(self.first_env + number) for number in late[:4]) + (", ..." if len(late) > 4 else "")
        waiting = int(self._pending.sum())
        return f"{self.spec.name}: environment {names} took longer than {timeout:g} s ({waiting} of {self.num_envs} unfinished)"

    def _died(self, process: "_Process") -> EnvironmentFailed:
        number = self.first_env + int(self._shared.working_on[process.worker])
        return EnvironmentFailed(f"{self.spec.name}: environment {number}: its process {process.cause_of_death()}")

    def _failed(self, answer: bytes) -> EnvironmentFailed:
        number = self.first_env + int(np.frombuffer(answer[1:5], np.int32)[0])
        line, _, trace = answer[5:].decode().partition("\n")
        error = EnvironmentFailed(f"{self.spec.name}: environment {number}: {line}")
        error.add_note(trace)
        return error

    def _fail(self, error: EnvironmentFailed) -> EnvironmentFailed:
        self._failure = error
        return error


class _Process:
    """The parent's end of one worker."""

    def __init__(self, memory: int, task: Task, factory: bytes):
        self.worker = task.worker
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        with theirs:
            try:
                descriptors = (theirs.fileno(), lifeline, memory)
                self.popen = subprocess.Popen(
                    [sys.executable, "-c", _BOOT, json.dumps(sys.path), *map(str, descriptors)],
                    pass_fds=descriptors,
                    stdin=subprocess.DEVNULL,
                    process_group=0,  # Ctrl-C and the like are for the parent, which may want another step before it ends
                    env={**dict.fromkeys(_ONE_THREAD, "1"), **os.environ},
                )
            except BaseException:
                os.close(self._lifeline)
                ours.close()
                raise
            finally:
                os.close(lifeline)
        self.connection = Connection(ours.detach())
        self._open = True
        with contextlib.suppress(OSError):  # it died at once: whoever waits for it will hear
            self.connection.send(task)
            self.connection.send_bytes(factory)

    def cause_of_death(self) -> str:
        try:
            code = self.popen.wait(_GRACE)
        except subprocess.TimeoutExpired:
            return "has closed its connection"
        return f"was killed by signal {-code}" if code < 0 else f"exited with status {code}"

    def ask_to_end(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.send_bytes(workers.QUIT)

    def close(self) -> None:
        if self._open:
            self._open = False
            self.connection.close()
            os.close(self._lifeline)


def environment_seed(seed: int, number: int) -> int:
    """The 31-bit seed of the environment with the global number `number` in a job with the seed `seed`."""
    return int(np.random.SeedSequence([seed % 2**64, number]).generate_state(1)[0] >> 1)


def check_finite(name: str, timestep: TimeStep, numbers: np.ndarray) -> None:
    """Looks for NaN and infinities in the rewards, discounts, observations and labels of time steps `[n, ...]`.

    Args:
      numbers: `[n]`, the global ones of the environments.

    Raises:
      EnvironmentFailed: names the first such environment.
    """
    floats = [leaf for leaf in jax.tree.leaves(timestep) if leaf.dtype.kind == "f"]
    if all(np.isfinite(leaf).all() for leaf in floats):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(timestep):
        if leaf.dtype.kind == "f" and not np.isfinite(leaf).all():
            bad = ~np.isfinite(leaf.reshape(len(leaf), -1)).all(axis=1)
            where = jax.tree_util.keystr(path).strip(".")
            raise EnvironmentFailed(f"{name}: environment {numbers[bad][0]}: {where} is not finite")


def _layout(spec: EnvironmentSpec, num_envs: int, num_workers: int) -> tuple[Layout, int]:
    """Where everything lies, and how many bytes that is. Every array starts on a cache line."""
    size = 0

    def place(count: int, shape: tuple[int, ...], dtype: Any) -> Field:
        nonlocal size
        field = Field((count, *shape), np.dtype(dtype).str, size)
        nbytes = np.dtype(dtype).itemsize * int(np.prod(field.shape, dtype=np.int64))
        size += -(-nbytes // 64) * 64
        return field

    layout = Layout(
        step_type=place(num_envs, (), np.int32),
        reward=place(num_envs, (), np.float32),
        discount=place(num_envs, (), np.float32),
        action=place(num_envs, spec.action.shape, spec.action.dtype),
        working_on=place(num_workers, (), np.int32),
        observation=tuple(place(num_envs, leaf.shape, leaf.dtype) for leaf in workers.flatten(spec.observation)),
        aux=tuple(place(num_envs, leaf.shape, leaf.dtype) for leaf in workers.flatten(spec.aux)),
    )
    return layout, size


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _anonymous_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("podracer")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, size)
    return descriptor
