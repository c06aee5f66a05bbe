"""Environments as the runtimes see them, and the one autoreset of the project.

Most environments are pure: subclass `JaxEnvironment`, describe ONE episode (`reset`, `step`), and never think of batches
or of what follows LAST. Environments whose state lives outside XLA (the ALE) subclass `Environment` and make their own
`VectorEnvironment`, which must give the same stream of time steps.
"""

import abc
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from podracer import rng, types
from podracer.types import Array, EnvironmentSpec, Key, Struct, TimeStep


class Unsupported(ValueError):
    """A request that an environment, agent or runtime cannot serve. Its text is one line that says what to do."""


class VectorEnvironment(abc.ABC):
    """`B` environments that step together, inside jit and `lax.scan`, and that reset themselves.

    The stream of each environment is FIRST, MID*, LAST, FIRST, ...: a step from LAST ignores the action and gives FIRST.
    """

    spec: EnvironmentSpec
    pure: bool = True
    """Whether the whole state is in the arrays that `reset` and `step` return: it can then be vmapped, sharded over devices
    and restored from a checkpoint bit for bit."""

    @abc.abstractmethod
    def reset(self, key: Key) -> tuple[Any, TimeStep]:
        """Starts all environments. `key` `[B]`; returns the state and FIRST time steps `[B]`."""

    @abc.abstractmethod
    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        """Steps all environments. `action` `[B, ...]`, `key` `[B]`; returns the state and time steps `[B]`."""

    def render(self, state: Any) -> np.ndarray | None:
        """The first environment as `[H, W, 3]` uint8 for people to look at, or None where there is no picture. On the host."""
        del state
        return None

    def close(self) -> None:  # noqa: B027 - most environments hold nothing
        """Releases what lives outside XLA."""


class HostEnvironment(abc.ABC):
    """`B` environments on the host, stepped from Python, which reset themselves as in `VectorEnvironment`.

    Time steps have NumPy leaves `[n, ...]` that are never written to again. One thread uses it at a time.
    """

    spec: EnvironmentSpec
    num_envs: int

    @abc.abstractmethod
    def reset(self, timeout: float) -> TimeStep:
        """Starts all environments; FIRST time steps `[B]`. Raises as `recv` does."""

    @abc.abstractmethod
    def send(self, action: np.ndarray, env_id: np.ndarray) -> None:
        """Begins a step of some environments, none of which is in the middle of one.

        Args:
          action: `[n, ...]`, as the specification has it. env_id: `[n]` int, of 0 to B - 1.
        """

    @abc.abstractmethod
    def recv(self, timeout: float) -> tuple[np.ndarray, TimeStep]:
        """Waits for environments that have finished their step.

        Args:
          timeout: seconds.

        Returns:
          `env_id` `[n]` of at least one, and their time steps `[n]`.

        Raises:
          TimeoutError: none did in time. EnvironmentFailed: one raised, or its process died.
        """

    def step(self, action: np.ndarray, timeout: float) -> TimeStep:
        """Steps all environments. `action` `[B, ...]`; time steps `[B]`, in order. Raises as `recv` does."""
        self.send(action, np.arange(self.num_envs))
        arrived = [self.recv(timeout)]
        while sum(len(env_id) for env_id, _ in arrived) < self.num_envs:
            arrived.append(self.recv(timeout))
        return in_order(arrived)

    def render(self) -> np.ndarray | None:
        """The first environment as `[H, W, 3]` uint8 for people to look at, or None where there is no picture."""
        return None

    def close(self) -> None:  # noqa: B027 - some hold nothing
        """Ends processes and threads. Safe to call twice, and after a failure."""


def in_order(arrived: Sequence[tuple[np.ndarray, TimeStep]]) -> TimeStep:
    """The time steps that `recv` gave, `[n]` in all, in the order of their environments' numbers."""
    ids = np.concatenate([env_id for env_id, _ in arrived])
    if len(arrived) == 1 and (ids[:-1] < ids[1:]).all():
        return arrived[0][1]
    order = np.argsort(ids)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[order], *(timestep for _, timestep in arrived))


class EnvironmentFailed(RuntimeError):
    """An environment on the host raised, or its process died. Its text is one line that names it and the cause."""


class Environment(abc.ABC):
    """An environment that a registry can make: its signature, and how to get many of it. Immutable."""

    spec: EnvironmentSpec

    @abc.abstractmethod
    def vectorize(self, num_envs: int, seed: int) -> VectorEnvironment:
        """`num_envs` copies behind one call. `seed` is for those whose randomness lies outside JAX; pure ones use keys.

        Raises:
          Unsupported: this environment cannot run inside an XLA program here.
        """

    def host(self, num_envs: int, seed: int, first_env: int = 0) -> HostEnvironment:
        """`num_envs` copies on the host, for the Sebulba runtime.

        Args:
          num_envs: `B`.
          seed: of the whole job. first_env: the global number of the first of these; no two share their randomness.

        Raises:
          Unsupported: this environment cannot run on the host.
        """
        raise Unsupported(f"{self.spec.name} does not run on the host, so not in Sebulba: use Anakin")


class JaxEnvironment(Environment):
    """One environment as pure functions of arrays. `state` is a pytree of fixed shapes."""

    @abc.abstractmethod
    def reset(self, key: Key) -> tuple[Any, TimeStep]:
        """Starts an episode. Returns the state and `types.restart(...)`."""

    @abc.abstractmethod
    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        """Takes one step within an episode. Returns the state and `types.transition(...)`. Never called on a finished one."""

    def render(self, state: Any) -> Array | None:
        """A state as `[H, W, 3]` uint8 for people to look at, or None. Called under jit."""
        del state
        return None

    def vectorize(self, num_envs: int, seed: int = 0) -> VectorEnvironment:
        del num_envs, seed
        return AutoReset(self)

    def host(self, num_envs: int, seed: int, first_env: int = 0) -> HostEnvironment:
        return JaxHost(self, num_envs, seed, first_env)


class _AutoResetState(Struct):
    inner: Any
    last: Any  # [B] bool: the next step is a reset


class AutoReset(VectorEnvironment):
    """Vectorizes a `JaxEnvironment`: after LAST the next step ignores its action and returns FIRST.

    Resets cost more than steps in many environments, so no more are computed than needed: none, those of up to a 16th of
    the batch, or all.
    """

    _FEW = 16

    def __init__(self, environment: JaxEnvironment):
        self.environment = environment
        self.spec = environment.spec
        self._render = jax.jit(lambda state: environment.render(jax.tree.map(lambda x: x[0], state.inner)))

    def reset(self, key: Key) -> tuple[Any, TimeStep]:
        state, timestep = strong(jax.vmap(self.environment.reset)(key))
        return _AutoResetState(inner=state, last=timestep.last()), timestep

    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        inner, timestep = strong(jax.vmap(self.environment.step)(state.inner, action, key))

        finished, num_envs = state.last, len(state.last)
        few = max(1, num_envs // self._FEW)
        index = jnp.nonzero(finished, size=few, fill_value=num_envs)[0]

        def reset_few(operand: Any) -> Any:
            fresh = strong(jax.vmap(self.environment.reset)(key[index]))
            return jax.tree.map(lambda old, new: old.at[index].set(new, mode="drop"), operand, fresh)

        def reset_all(operand: Any) -> Any:
            fresh = strong(jax.vmap(self.environment.reset)(key))
            return jax.tree.map(lambda old, new: _where(finished, new, old), operand, fresh)

        num_finished = jnp.sum(finished)
        branch = (num_finished > 0).astype(jnp.int32) + (num_finished > few)
        inner, timestep = jax.lax.switch(branch, (lambda operand: operand, reset_few, reset_all), (inner, timestep))
        return _AutoResetState(inner=inner, last=timestep.last()), timestep

    def render(self, state: Any) -> np.ndarray | None:
        frame = self._render(state)
        return None if frame is None else np.asarray(frame)


class JaxHost(HostEnvironment):
    """A `JaxEnvironment` on the host's CPU, with the very stream of time steps that it has in Anakin."""

    def __init__(self, environment: JaxEnvironment, num_envs: int, seed: int, first_env: int):
        self.environment, self.spec, self.num_envs = AutoReset(environment), environment.spec, num_envs
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            index = first_env + jnp.arange(num_envs)
            self._reset_keys, self._step_keys = environment_keys(jax.random.key(seed), index)
        self._reset = jax.jit(self.environment.reset)
        self._step = jax.jit(lambda state, action, keys, t: self.environment.step(state, action, rng.at(keys, t)))
        self._state: Any = None
        self._count = 0
        self._arrived: list[tuple[np.ndarray, TimeStep]] = []

    def reset(self, timeout: float) -> TimeStep:
        del timeout
        self._arrived.clear()
        self._state, timestep = self._reset(self._reset_keys)
        return jax.device_get(timestep)

    def send(self, action: np.ndarray, env_id: np.ndarray) -> None:
        """All environments at once: they are one batch."""
        if len(env_id) != self.num_envs:
            raise Unsupported(f"{self.spec.name} steps its {self.num_envs} environments together, not {len(env_id)}")
        in_order = np.empty_like(action)
        in_order[env_id] = action
        cpu = jax.device_put(in_order, self._step_keys.device)
        self._state, timestep = self._step(self._state, cpu, self._step_keys, np.int32(self._count))
        self._count += 1
        self._arrived.append((np.arange(self.num_envs), timestep))

    def recv(self, timeout: float) -> tuple[np.ndarray, TimeStep]:
        del timeout
        env_id, timestep = self._arrived.pop(0)
        return env_id, jax.device_get(timestep)

    def render(self) -> np.ndarray | None:
        return self.environment.render(self._state)


def environment_keys(seed_key: Key, index: Array) -> tuple[Key, Key]:
    """Keys `[B]` of a reset, and keys `[B]` from which `rng.at` makes those of each step, for global numbers `index` `[B]`."""
    return rng.columns(rng.stream(seed_key, "reset"), index), rng.columns(rng.stream(seed_key, "environment"), index)


def strong(tree: Any) -> Any:
    """`tree` without weak types, which Python numbers leave behind: a program compiled for a step would not fit a reset."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), tree)


def _where(mask: Array, new: Any, old: Any) -> Any:
    """`mask` `[B]` chooses between leaves `[B, ...]`, PRNG keys included."""
    return jnp.where(mask.reshape(mask.shape + (1,) * (old.ndim - mask.ndim)), new, old)


class TimeLimit(JaxEnvironment):
    """Truncates the episodes of `environment` after `max_steps` steps: LAST, with the discount left as it is."""

    def __init__(self, environment: JaxEnvironment, max_steps: int):
        if max_steps < 1:
            raise Unsupported(f"a time limit must be at least 1 step, not {max_steps}")
        self.environment, self.max_steps, self.spec = environment, max_steps, environment.spec

    def reset(self, key: Key) -> tuple[Any, TimeStep]:
        state, timestep = self.environment.reset(key)
        return (state, jnp.int32(0)), timestep

    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        inner, count = state
        inner, timestep = self.environment.step(inner, action, key)
        count = count + 1
        late = count >= self.max_steps
        return (inner, count), timestep.replace(step_type=jnp.where(late, types.LAST, timestep.step_type))

    def render(self, state: Any) -> Array | None:
        return self.environment.render(state[0])
