"""The far side of `podracer.processes`: one environment, and the process that steps a slice of them.

Nothing here, and nothing that an environment in a worker imports, may import jax: a worker starts in half a second and
weighs what NumPy weighs. `tests/test_processes.py` holds us to it.
"""

import abc
import dataclasses
import fcntl
import os
import pickle
import random
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from mmap import mmap
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

FIRST, MID, LAST = 0, 1, 2
"""As in `podracer.types`, which imports jax."""

RESET, STEP, RENDER, QUIT = b"r", b"s", b"v", b"q"
"""Commands; RESET and STEP are followed by environment numbers of the pool, int32."""
DONE, ERROR, PICTURE = b"d", b"e", b"p"
"""Answers: DONE with the same numbers, ERROR with one number and text, PICTURE with a pickled array or None."""


class SingleEnvironment(abc.ABC):
    """One environment, one episode after another, as a worker process sees it. Batches and autoreset are not its business.

    An observation is a pytree of dictionaries, tuples and arrays, as `EnvironmentSpec.observation` has it.
    """

    @abc.abstractmethod
    def reset(self) -> Any:
        """Starts an episode; returns its first observation."""

    @abc.abstractmethod
    def step(self, action: Any) -> tuple[Any, float, float, bool]:
        """Takes one step within an episode. Never called on a finished one.

        Args:
          action: an int, or an array of the specification's shape and dtype.

        Returns:
          The observation, the reward, the discount (0 where the episode has terminated, 1 where it goes on or was cut off),
          and whether this is the last step of the episode.
        """

    def aux(self) -> Any:
        """Labels that belong to the newest observation, a pytree as `EnvironmentSpec.aux` has it."""
        return ()

    def render(self) -> np.ndarray | None:
        """`[H, W, 3]` uint8 for people to look at, or None."""
        return None

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Releases what it holds."""


Factory = Callable[[int, int], SingleEnvironment]
"""`(number of the environment, its own seed) -> environment`. Picklable, from a module that does not import jax."""


@dataclasses.dataclass(frozen=True)
class Field:
    """Where one array of the pool lies in the shared memory."""

    shape: tuple[int, ...]
    dtype: str
    offset: int

    def view(self, memory: mmap) -> np.ndarray:
        """The array itself, writable."""
        count = int(np.prod(self.shape, dtype=np.int64))
        return np.frombuffer(memory, self.dtype, count, self.offset).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Layout:
    """All arrays that parent and workers share.

    step_type, reward, discount: `[B]`. action: `[B, ...]`. observation, aux: leaves `[B, ...]`, in the order of `flatten`.
    working_on: `[W]` int32, the environment that each worker is busy with, which tells a timeout whom to name.
    """

    step_type: Field
    reward: Field
    discount: Field
    action: Field
    working_on: Field
    observation: tuple[Field, ...]
    aux: tuple[Field, ...]


class Views:
    """The arrays of a `Layout`, writable."""

    def __init__(self, layout: Layout, memory: mmap):
        self.step_type, self.reward = layout.step_type.view(memory), layout.reward.view(memory)
        self.discount, self.action = layout.discount.view(memory), layout.action.view(memory)
        self.working_on = layout.working_on.view(memory)
        self.observation = [field.view(memory) for field in layout.observation]
        self.aux = [field.view(memory) for field in layout.aux]


@dataclasses.dataclass(frozen=True)
class Task:
    """What a worker is told when it starts.

    worker: its number. numbers: of its environments in the pool. seeds: theirs. first_env: added to a number, the global one.
    """

    worker: int
    numbers: tuple[int, ...]
    seeds: tuple[int, ...]
    first_env: int
    size: int
    layout: Layout


def flatten(tree: Any) -> list[Any]:
    """The leaves of nested dictionaries (by key) and tuples."""
    return list(_leaves(tree))


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict):
        for key in sorted(tree):
            yield from _leaves(tree[key])
    elif isinstance(tree, tuple | list):
        for item in tree:
            yield from _leaves(item)
    else:
        yield tree


def unflatten(like: Any, leaves: Iterator[Any]) -> Any:
    """A tree of the structure of `like` with other leaves, in the order of `flatten`."""
    if isinstance(like, dict):
        return {key: unflatten(like[key], leaves) for key in sorted(like)}
    if isinstance(like, tuple | list):
        return tuple(unflatten(item, leaves) for item in like)
    return next(leaves)


def main(commands: int, lifeline: int, memory: int) -> None:
    """The worker process. Arguments are file descriptors: a socket, a pipe that closes when the parent ends, shared memory."""
    _end_with_parent(lifeline)
    connection = Connection(commands)
    try:
        task: Task = connection.recv()
        factory = connection.recv_bytes()
        worker = _Worker(task, mmap(memory, task.size), connection)
        os.close(memory)
        if worker.make(factory):
            worker.serve()
        else:
            while connection.recv_bytes() != QUIT:  # a closed connection would hide the cause
                pass
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has gone, or has closed the pool


def _end_with_parent(lifeline: int) -> None:
    """Ends this process once the other end of a pipe is closed, even while the main thread hangs in an environment."""

    def wait() -> None:
        os.read(lifeline, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    if sys.platform == "linux":  # no thread runs while C code holds the interpreter's lock; SIGIO, unhandled, still ends it
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


class _Worker:
    """A slice of the pool's environments."""

    def __init__(self, task: Task, memory: mmap, connection: Connection):
        self._task, self._connection, self._shared = task, connection, Views(task.layout, memory)
        self._scalar_action = self._shared.action.ndim == 1
        self._observation = [(view, view.shape[1:]) for view in self._shared.observation]
        self._aux = [(view, view.shape[1:]) for view in self._shared.aux]
        self._envs: dict[int, SingleEnvironment] = {}
        self._finished: dict[int, bool] = {}

    def make(self, pickled: bytes) -> bool:
        """Builds the environments. Returns False, and has said why, where one cannot be built."""
        number = self._task.numbers[0]
        random.seed(self._task.seeds[0])  # for environments that draw from the global generators
        np.random.seed(self._task.seeds[0] % 2**32)
        try:
            factory: Factory = pickle.loads(pickled)
            for number, seed in zip(self._task.numbers, self._task.seeds, strict=True):
                self._shared.working_on[self._task.worker] = number
                self._envs[number] = factory(self._task.first_env + number, seed)
                self._finished[number] = False
        except Exception as error:
            self._complain(number, error)
            return False
        return True

    def serve(self) -> None:
        """Answers commands until QUIT."""
        while True:
            message = self._connection.recv_bytes()
            command, numbers = message[:1], message[1:]
            if command == QUIT:
                for env in self._envs.values():
                    env.close()
                return
            if command == RENDER:
                self._connection.send_bytes(PICTURE + pickle.dumps(self._picture()))
            else:
                self._advance(np.frombuffer(numbers, np.int32).tolist(), numbers, reset=command == RESET)

    def _advance(self, numbers: Sequence[int], raw: bytes, reset: bool) -> None:
        """Resets or steps some environments, and answers once all are done or one has failed."""
        for number in numbers:
            self._shared.working_on[self._task.worker] = number
            try:
                if reset or self._finished[number]:
                    self._reset(number)
                else:
                    self._step(number)
            except Exception as error:
                self._complain(number, error)
                return
        self._connection.send_bytes(DONE + raw)

    def _reset(self, number: int) -> None:
        env = self._envs[number]
        self._store(number, env, env.reset())
        self._arrive(number, FIRST, 0.0, 1.0)

    def _step(self, number: int) -> None:
        env = self._envs[number]
        action = self._shared.action[number]
        observation, reward, discount, last = env.step(action.item() if self._scalar_action else action.copy())
        self._store(number, env, observation)
        self._arrive(number, LAST if last else MID, reward, discount)

    def _arrive(self, number: int, step_type: int, reward: float, discount: float) -> None:
        shared = self._shared
        shared.step_type[number], shared.reward[number], shared.discount[number] = step_type, reward, discount
        self._finished[number] = step_type == LAST

    def _store(self, number: int, env: SingleEnvironment, observation: Any) -> None:
        _write(self._observation, number, observation, "observation")
        if self._aux:
            _write(self._aux, number, env.aux(), "aux")

    def _picture(self) -> np.ndarray | None:
        try:
            return self._envs[self._task.numbers[0]].render()
        except Exception as error:  # no picture must not end a run
            print(f"podracer: no picture of an environment: {_one_line(error)}", file=sys.stderr)
            return None

    def _complain(self, number: int, error: Exception) -> None:
        text = f"{_one_line(error)}\n{traceback.format_exc()}"
        self._connection.send_bytes(ERROR + np.int32(number).tobytes() + text.encode())


def _write(views: list[tuple[np.ndarray, tuple[int, ...]]], number: int, tree: Any, what: str) -> None:
    leaves = [tree] if isinstance(tree, np.ndarray) else flatten(tree)
    if len(leaves) != len(views):
        raise ValueError(f"{what} has {len(leaves)} arrays, its spec {len(views)}")
    for (view, shape), leaf in zip(views, leaves, strict=True):
        if (leaf.shape if isinstance(leaf, np.ndarray) else np.shape(leaf)) != shape:  # assignment would broadcast
            raise ValueError(f"{what} has shape {np.shape(leaf)}, its spec says {shape}")
        view[number] = leaf


def _one_line(error: BaseException) -> str:
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}".rstrip(": ")
