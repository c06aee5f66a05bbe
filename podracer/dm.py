"""Any `dm_env.Environment` as one of ours: `--env my_package.my_module:make_env`.

Observations: nested dictionaries and tuples of arrays. uint8 and bool stay, DiscreteArray becomes one-hot float32, everything
else float32. Actions: one DiscreteArray, one bounded integer, or one BoundedArray of floats, which becomes float32.

Imports no jax: worker processes use it.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import dm_env
import numpy as np
from dm_env import specs

from podracer.config import require
from podracer.workers import SingleEnvironment

_AS_THEY_ARE = (np.dtype(np.uint8), np.dtype(bool))


@dataclasses.dataclass(frozen=True)
class DmConfig:
    """Options of dm_env environments, and of gymnasium's.

    max_steps: time limit in steps; 0 keeps the environment's own. num_workers: processes; 0 is one per core.
    """

    max_steps: int = 0
    num_workers: int = 0

    def __post_init__(self) -> None:
        require(self, "max_steps", "num_workers", at_least=0)


class DmEnvironment(SingleEnvironment):
    """Any `dm_env.Environment` whose actions are one array. Subclass it to change what is observed."""

    def __init__(self, env: dm_env.Environment, max_steps: int = 0, action_repeat: int = 1):
        """max_steps: time limit in agent steps; 0 keeps the environment's own. action_repeat: its steps in one of ours, whose
        rewards are added and discounts multiplied."""
        self.env: Any = env
        self._action_dtype = env.action_spec().dtype
        self._max_steps, self._action_repeat, self._count = max_steps, action_repeat, 0

    def observe(self, observation: Any) -> Any:
        """The environment's observation as ours has it: the same."""
        return observation

    def reset(self) -> Any:
        self._count = 0
        return self.observe(self.env.reset().observation)

    def step(self, action: Any) -> tuple[Any, float, float, bool]:
        action, reward, discount, last = np.asarray(action, self._action_dtype), 0.0, 1.0, False
        for _ in range(self._action_repeat):
            timestep = self.env.step(action)
            if timestep.first():
                raise RuntimeError("the environment has reset itself within an episode")
            reward += 0.0 if timestep.reward is None else float(timestep.reward)
            discount *= 1.0 if timestep.discount is None else float(timestep.discount)
            if last := timestep.last():
                break
        self._count += 1
        return self.observe(timestep.observation), reward, discount, last or self._count == self._max_steps

    def close(self) -> None:
        self.env.close()


class AdaptedDmEnvironment(DmEnvironment):
    """With observations and actions as `observation_spec` and `action_spec` say."""

    def __init__(self, env: dm_env.Environment, max_steps: int = 0):
        super().__init__(env, max_steps)
        self._encode, self._least = encoder(env.observation_spec()), _least(env.action_spec())

    def observe(self, observation: Any) -> Any:
        return self._encode(observation)

    def step(self, action: Any) -> tuple[Any, float, float, bool]:
        return super().step(action + self._least)


def build(factory: Callable[..., Any], seed: int) -> dm_env.Environment:
    """What `factory` makes, which is given `seed=` where it has a parameter of that name.

    Raises:
      TypeError: `factory` needs other arguments, or returns something else. One line.
    """
    name = getattr(factory, "__qualname__", repr(factory))
    parameters = _parameters(factory)
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in kinds and p.name != "seed"]
    if needed:
        raise TypeError(f"{name} needs {', '.join(needed)}: only seed is given, so bind the rest in a function of your own")
    env = factory(seed=seed) if any(p.name == "seed" for p in parameters) else factory()
    if not isinstance(env, dm_env.Environment):
        raise TypeError(f"{name} returned a {type(env).__name__}, which is no dm_env.Environment")
    return env


def make(number: int, seed: int, factory: Callable[..., Any], max_steps: int) -> AdaptedDmEnvironment:
    """A `podracer.workers.Factory`, once the rest is bound."""
    del number
    return AdaptedDmEnvironment(build(factory, seed), max_steps)


def observation_spec(theirs: Any) -> Any:
    """A pytree of specs. Raises TypeError for leaves that are no arrays of numbers."""
    if isinstance(theirs, dict):
        return {key: observation_spec(value) for key, value in theirs.items()}
    if isinstance(theirs, tuple | list):
        return tuple(observation_spec(value) for value in theirs)
    if isinstance(theirs, specs.DiscreteArray):
        return specs.BoundedArray((theirs.num_values,), np.float32, 0.0, 1.0, name=theirs.name)
    if not isinstance(theirs, specs.Array) or np.dtype(theirs.dtype).kind not in "fiub":
        raise TypeError(f"observations of {theirs!r} are not supported")
    if theirs.dtype in _AS_THEY_ARE:
        return theirs
    return specs.Array(theirs.shape, np.float32, name=theirs.name)  # the bounds that environments state are not always kept


def encoder(theirs: Any) -> Callable[[Any], Any]:
    """A function from observations of these specs to what `observation_spec` says."""
    if isinstance(theirs, dict):
        fields = {key: encoder(value) for key, value in theirs.items()}
        return lambda value: {key: encode(value[key]) for key, encode in fields.items()}
    if isinstance(theirs, tuple | list):
        items = [encoder(value) for value in theirs]
        return lambda value: tuple(encode(item) for encode, item in zip(items, value, strict=True))
    if isinstance(theirs, specs.DiscreteArray):
        rows = np.eye(theirs.num_values, dtype=np.float32)
        return lambda value: rows[int(value)]
    dtype = theirs.dtype if theirs.dtype in _AS_THEY_ARE else np.float32
    return lambda value: np.asarray(value, dtype)


def action_spec(theirs: Any) -> specs.Array:
    """Raises TypeError for specs other than one bounded integer and one BoundedArray of floats."""
    if isinstance(theirs, specs.DiscreteArray):
        return specs.DiscreteArray(theirs.num_values, name=theirs.name)
    if isinstance(theirs, specs.BoundedArray):
        kind = np.dtype(theirs.dtype).kind
        if kind in "iu" and theirs.shape == ():
            return specs.DiscreteArray(int(theirs.maximum) - int(theirs.minimum) + 1, name=theirs.name)
        if kind == "f":
            with np.errstate(over="ignore"):  # the largest float64 stands for infinity
                low, high = (np.asarray(bound).astype(np.float32) for bound in (theirs.minimum, theirs.maximum))
            return specs.BoundedArray(theirs.shape, np.float32, low, high, name=theirs.name)
    raise TypeError(f"actions of {theirs!r} are not supported")


def _least(theirs: Any) -> int:
    return int(theirs.minimum) if np.dtype(theirs.dtype).kind in "iu" else 0


def _parameters(factory: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(factory).parameters.values())
    except ValueError:  # written in C
        return []
