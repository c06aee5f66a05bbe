"""Holds an environment to the time-step contract of `podracer.types.TimeStep`. For tests, ours and other people's:

from podracer.contract import Contract
Contract(environment).check(seed=0)
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer.environment import Environment, JaxEnvironment, VectorEnvironment, strong
from podracer.types import FIRST, LAST, MID, Array, EnvironmentSpec, Key, TimeStep


class ContractError(AssertionError):
    """An environment breaks the contract. Its text is one line that says where."""


class Contract:
    """Plays random legal actions and checks what comes back. Programs are compiled once, so that many seeds are cheap.

    Args:
      environment: what a suite made.
      num_envs: `B`, at least 2.
      num_steps: `T`; long enough for episodes to end, or nothing about their ends is checked.
      max_steps: the time limit that `environment` was given, where it was: below the length at which
        episodes end by themselves, or a termination on that very step can't be told from a truncation done wrong.
    """

    def __init__(self, environment: Environment, num_envs: int = 4, num_steps: int = 64, max_steps: int | None = None):
        self.environment, self.spec = environment, environment.spec
        self.num_envs, self.num_steps, self.max_steps = num_envs, num_steps, max_steps
        self._pure = environment.vectorize(num_envs, 0)
        self._run_pure = jax.jit(lambda keys, noise: rollout(self._pure, keys, noise))
        self._run_bare = jax.jit(lambda keys, noise: _bare_episode(environment, keys, noise))

    def check(self, seed: int = 0) -> TimeStep:
        """Runs every check. Returns the time steps `[T + 1, B]` that it saw. Raises ContractError."""
        keys, noise = self._inputs(seed)
        stream = self.run(keys, noise, seed)
        check_stream(self.spec, stream, self.max_steps)
        ignored = np.where(np.asarray(stream.step_type[:-1] == LAST)[..., None], 1 - noise, noise)
        _same(stream, self.run(keys, ignored, seed), "the action on LAST changes what follows, or the stream does not repeat")
        if not self._pure.pure:
            return stream
        turned = self.run(keys[np.roll(np.arange(self.num_envs), 1)], np.roll(noise, 1, axis=1), seed)
        _same(stream, jax.tree.map(lambda x: np.roll(x, -1, axis=1), turned), "environments of a batch depend on each other")
        if isinstance(self.environment, JaxEnvironment):
            self._check_terminal_observation(stream, keys, noise)
        return stream

    def run(self, keys: Key, noise: np.ndarray, seed: int) -> TimeStep:
        """Time steps `[T + 1, B]` for keys `[B]` and noise `[T, B, n]` in [0, 1), which chooses the actions."""
        if self._pure.pure:
            return jax.tree.map(np.asarray, self._run_pure(keys, noise))
        vector = self.environment.vectorize(self.num_envs, seed)  # state outside XLA: only a new one starts anew
        try:
            return jax.tree.map(np.asarray, jax.jit(lambda k, n: rollout(vector, k, n))(keys, noise))
        finally:
            vector.close()

    def close(self) -> None:
        """Releases the environments."""
        self._pure.close()

    def _inputs(self, seed: int) -> tuple[Key, np.ndarray]:
        keys = jax.random.split(jax.random.key(seed), self.num_envs)
        shape = (self.num_steps, self.num_envs, max(1, int(np.prod(self.spec.action.shape))))
        return keys, np.random.default_rng(seed).random(shape, np.float32)

    def _check_terminal_observation(self, stream: TimeStep, keys: Key, noise: np.ndarray) -> None:
        """The first episode of each environment against the same episode played without any autoreset."""
        bare = jax.tree.map(np.asarray, self._run_bare(keys, noise))
        for column in range(self.num_envs):
            ends = np.flatnonzero(stream.step_type[:, column] == LAST)
            stop = ends[0] + 1 if ends.size else self.num_steps + 1
            seen, expected = (jax.tree.map(lambda x, c=column, s=stop: x[:s, c], ts) for ts in (stream, bare))
            _same(expected, seen, "the first episode differs from one played without autoreset", rtol=1e-3, atol=1e-4)


def rollout(vector: VectorEnvironment, keys: Key, noise: Array) -> TimeStep:
    """Plays `T` steps. keys `[B]`; noise `[T, B, n]` in [0, 1). Returns time steps `[T + 1, B]`. Traceable."""

    def step(carry: tuple[Any, TimeStep], inputs: tuple[Array, Array]) -> tuple[tuple[Any, TimeStep], TimeStep]:
        state, timestep = carry
        t, noise_t = inputs
        action = jax.vmap(lambda n, o: choose_action(vector.spec, n, o))(noise_t, timestep.observation)
        state, timestep = vector.step(state, action, jax.vmap(jax.random.fold_in, (0, None))(keys, t))
        return (state, timestep), timestep

    state, first = vector.reset(keys)
    _, rest = jax.lax.scan(step, (state, first), (jnp.arange(1, len(noise) + 1), jnp.asarray(noise)))
    return jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, rest)


def choose_action(spec: EnvironmentSpec, noise: Array, observation: Any) -> Array:
    """The legal action that `noise` `[n]` in [0, 1) picks, uniformly. For one environment."""
    if not spec.discrete:
        low, high = spec.action.minimum, spec.action.maximum
        return (low + noise.reshape(spec.action.shape) * (high - low)).astype(spec.action.dtype)
    legal = jnp.ones((spec.num_actions,), bool)
    if isinstance(observation, dict) and "legal_actions" in observation:
        legal = observation["legal_actions"]
    rank = jnp.cumsum(legal) - 1
    chosen = jnp.floor(noise[0] * jnp.sum(legal)).astype(rank.dtype)
    return jnp.argmax(legal & (rank == chosen)).astype(jnp.int32)


def check_stream(spec: EnvironmentSpec, stream: TimeStep, max_steps: int | None = None) -> None:
    """Checks time steps `[T + 1, B]` that start with FIRST. `max_steps` is the time limit, if known. Raises ContractError."""
    _check_arrays(spec.observation, stream.observation, "observation")
    _check_arrays(spec.aux, stream.aux, "aux")
    for name, dtype in (("step_type", np.int32), ("reward", np.float32), ("discount", np.float32)):
        value = getattr(stream, name)
        _require(
            value.dtype == dtype and value.ndim == 2, f"{name} is {value.dtype}{list(value.shape[2:])}, not {dtype.__name__}"
        )
        _require(bool(np.isfinite(value).all()), f"{name} is not finite")
    kind, reward, discount = stream.step_type, stream.reward, stream.discount
    first, mid, last = kind == FIRST, kind == MID, kind == LAST
    _require(bool((first | mid | last).all()), "step_type is not FIRST, MID or LAST")
    _require(bool(first[0].all()), "the stream does not start with FIRST")
    _require(bool((first[1:] == last[:-1]).all()), "FIRST must follow LAST, and nothing else")
    _require(bool((reward[first] == 0).all()), "the reward on FIRST is not 0")
    _require(bool((discount[first] == 1).all()), "the discount on FIRST is not 1")
    _require(bool((discount[mid] != 0).all()), "discount 0 on MID: a terminated episode goes on")
    _require(bool((np.abs(discount) <= 1).all()), "a discount lies outside [-1, 1]")
    _require(spec.num_players == 2 or bool((discount >= 0).all()), "a negative discount, but there is one player")
    _check_own_last(stream.observation, last)
    if max_steps is not None:
        _check_time_limit(first, last, discount, max_steps)


def _check_own_last(observation: Any, last: np.ndarray) -> None:
    """The observation on LAST may equal that of the FIRST after it by chance, but not always."""
    flat = np.concatenate([x.reshape(*last.shape, -1).astype(np.float64) for x in jax.tree.leaves(observation)], axis=-1)
    at_last, at_first = flat[:-1][last[:-1]], flat[1:][last[:-1]]
    if len(at_last) > 1 and (flat != flat[0, 0]).any():
        _require(not (at_last == at_first).all(), "LAST carries the first observation of the next episode, not its own")


def _check_time_limit(first: np.ndarray, last: np.ndarray, discount: np.ndarray, max_steps: int) -> None:
    """None is longer; those that end before it are terminated; of several that reach it, some are truncated."""
    ends = []
    for column in range(first.shape[1]):
        start = 0
        for t in range(first.shape[0]):
            start = t if first[t, column] else start
            _require(t - start <= max_steps, f"an episode is longer than its limit of {max_steps} steps")
            if last[t, column]:
                ends.append((t - start, float(discount[t, column])))
    early = [d for length, d in ends if length < max_steps]
    _require(all(d == 0 for d in early), "an episode that ended before its time limit was truncated, not terminated")
    late = [d for length, d in ends if length == max_steps]
    _require(len(late) < 4 or any(d != 0 for d in late), "discount 0 at the time limit: truncation must keep the discount")


def _check_arrays(spec: Any, value: Any, name: str) -> None:
    """`value`, leaves `[T + 1, B, ...]`, against a pytree of specs."""
    expected, structure = jax.tree.flatten(spec)
    found: Any = jax.tree.structure(value)
    _require(found == structure, f"{name} has the structure {found}, not {structure}")
    for leaf, leaf_spec in zip(jax.tree.leaves(value), expected, strict=True):
        label = f"{name} {leaf_spec.name or ''}".strip()
        _require(leaf.shape[2:] == leaf_spec.shape, f"{label} has shape {leaf.shape[2:]}, its spec says {leaf_spec.shape}")
        _require(leaf.dtype == leaf_spec.dtype, f"{label} is {leaf.dtype}, its spec says {leaf_spec.dtype}")
        if np.issubdtype(leaf.dtype, np.floating):
            _require(bool(np.isfinite(leaf).all()), f"{label} is not finite")
        if isinstance(leaf_spec, specs.BoundedArray):
            inside = (leaf >= leaf_spec.minimum) & (leaf <= leaf_spec.maximum)
            _require(bool(inside.all()), f"{label} leaves the bounds of its spec")
        if leaf_spec.name == "legal_actions":
            _require(bool(leaf.any(axis=-1).all()), "no action is legal")


def _bare_episode(environment: Any, keys: Key, noise: Array) -> TimeStep:
    """`rollout` without autoreset: right until the first LAST, meaningless after it."""

    class Bare(VectorEnvironment):
        spec = environment.spec

        def reset(self, key: Key) -> tuple[Any, TimeStep]:
            return strong(jax.vmap(environment.reset)(key))

        def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
            return strong(jax.vmap(environment.step)(state, action, key))

    return rollout(Bare(), keys, noise)


def _same(expected: TimeStep, seen: TimeStep, complaint: str, rtol: float = 0.0, atol: float = 0.0) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        other = dict(jax.tree_util.tree_leaves_with_path(seen))[path]
        equal = np.allclose(leaf, other, rtol, atol) if rtol and leaf.dtype != bool else np.array_equal(leaf, other)
        _require(bool(equal), f"{complaint} ({jax.tree_util.keystr(path).strip('.')})")


def _require(condition: bool, complaint: str) -> None:
    if not condition:
        raise ContractError(complaint)
