"""The processes of one job, one a host: how they find each other, agree, and make one array of their parts and back.

A single process is a group of one, for which everything here is nothing. What must be the same in all of them (how many
updates a call makes, when to save, when to stop) one decides and tells the others; a collective that only some enter hangs.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from podracer import rng
from podracer.config import ConfigError

_HEARTBEAT_SECONDS = 30
_SHUTDOWN_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Hosts:
    """This process among `num`; `index` 0 is the one that writes files and talks to people.

    generation: of the whole group, counted from 1 by what started it. progress: a file whose time says when work last went on.
    """

    num: int = 1
    index: int = 0
    generation: int = 0
    progress: str = ""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0

    def agree(self, *numbers: int) -> tuple[int, ...]:
        """What process 0 passes, in all. All call it, with as many numbers."""
        return tuple(int(number) for number in self._gather(numbers)[0])

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether any process passes true, for each flag. All call it."""
        return tuple(total > 0 for total in self.sum(flags))

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Sums over processes, of as many numbers. All call it."""
        return self._gather(numbers).sum(axis=0).tolist()

    def went_on(self, then: float = 0.0) -> None:
        """Notes that work went on, for whoever watches; nothing is expected for the next `then` seconds."""
        if self.progress:
            Path(self.progress).touch()
            now = time.time() + then
            os.utime(self.progress, (now, now))

    def wait(self, name: str, seconds: float) -> None:
        """Returns when all processes have called it with this name. Raises RuntimeError after so many seconds."""
        if self.num > 1:
            _client().wait_at_barrier(name, int(seconds * 1000))

    def _gather(self, numbers: Sequence[float]) -> np.ndarray:
        """`[num, N]` float64."""
        own = np.asarray(numbers, np.float64)
        if self.num == 1:
            return own[None]
        from jax.experimental import multihost_utils

        # Devices hold no float64: its bits travel as integers.
        bits = np.asarray(multihost_utils.process_allgather(own.view(np.uint32)))
        return np.ascontiguousarray(bits.reshape(self.num, -1)).view(np.float64)


def join(environ: Mapping[str, str] = os.environ) -> Hosts:
    """Joins the group that a launcher tells of in environment variables; without them it is a group of one.

    PODRACER_HOSTS: how many. PODRACER_HOST: which one this is. PODRACER_COORDINATOR: HOST:PORT where the first one listens.
    PODRACER_GENERATION, PODRACER_PROGRESS: see `Hosts`. Call it before any device is touched.

    Raises:
      ConfigError: they make no sense. RuntimeError: the others do not come.
    """
    if "PODRACER_HOSTS" not in environ:
        return Hosts()
    try:
        num, index = int(environ["PODRACER_HOSTS"]), int(environ["PODRACER_HOST"])
        generation, coordinator = int(environ.get("PODRACER_GENERATION", 1)), environ["PODRACER_COORDINATOR"]
    except (KeyError, ValueError) as error:
        raise ConfigError(f"PODRACER_HOSTS is set, but of its companions {error} is missing or no number") from error
    if not 0 <= index < num:
        raise ConfigError(f"PODRACER_HOST={index} must lie between 0 and {num - 1} (PODRACER_HOSTS={num})")
    if num > 1:
        # Our own answer to SIGTERM (launch/signals.py) saves; JAX's service would swallow the signal.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            coordinator,
            num,
            index,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
            initialization_timeout=_SHUTDOWN_SECONDS,
        )
    return Hosts(num, index, generation, environ.get("PODRACER_PROGRESS", ""))


def devices(num_hosts: int, choose: Callable[[list[Any]], Sequence[Any]], everywhere: Sequence[Any] | None = None) -> list[Any]:
    """Devices of a mesh, host by host.

    Args:
      num_hosts: of the group.
      choose: which of one host's devices, in their order; as many of each.
      everywhere: those of all hosts, host by host and as many of each, where they are not the ones that are here.
    """
    if everywhere is None:
        groups = [[device for device in jax.devices() if device.process_index == host] for host in range(num_hosts)]
    else:
        each = len(everywhere) // num_hosts
        groups = [list(everywhere[host * each :][:each]) for host in range(num_hosts)]
    return [device for group in groups for device in choose(group)]


def place(tree: Any, shardings: Any) -> Any:
    """Global arrays from what every process holds whole (numpy arrays, local arrays, keys). shardings: a tree prefix."""
    shardings = jax.tree.broadcast(shardings, tree)
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def one(leaf: Any, sharding: NamedSharding) -> Any:
        if rng.is_key(leaf):
            return jax.random.wrap_key_data(one(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(one, tree, shardings)


def join_columns(tree: Any, axis: int, local: NamedSharding, whole: NamedSharding) -> Any:
    """Global arrays whose columns are those of all processes in turn.

    Args:
      tree: this process's columns `[..., B, ...]`, along `axis`.
      local: over this process's devices. whole: over all processes' devices.
    """
    pieces = jax.device_put(tree, local)
    if jax.process_count() == 1:
        return pieces

    def one(leaf: jax.Array) -> jax.Array:
        shape = list(leaf.shape)
        shape[axis] *= whole.num_devices // local.num_devices
        return jax.make_array_from_single_device_arrays(tuple(shape), whole, [shard.data for shard in leaf.addressable_shards])

    return jax.tree.map(one, pieces)


def own_columns(tree: Any, axis: int) -> Any:
    """The part of global arrays that this process holds, on the host; `axis` is the one they are sharded over."""

    def one(leaf: jax.Array) -> np.ndarray:
        if leaf.is_fully_addressable:
            return np.asarray(leaf)
        shards = sorted(leaf.addressable_shards, key=lambda shard: shard.index[axis].start or 0)
        return np.concatenate([np.asarray(shard.data) for shard in shards], axis=axis)

    return jax.tree.map(one, tree)


def local(tree: Any) -> Any:
    """Replicated global arrays as arrays of this process alone; nothing is copied."""
    if jax.process_count() == 1:
        return tree

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        if rng.is_key(leaf):
            return jax.random.wrap_key_data(one(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        return leaf.addressable_data(0)

    return jax.tree.map(one, tree)


def whole(leaf: Any) -> Any:
    """All of a global array (no key), on every host. All processes call it, in the same order."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(leaf)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def _client() -> Any:
    from jax._src import distributed

    return distributed.global_state.client
