"""gymnasium's spaces as our specifications, and values between the two. For `gymnasium/<id>` and `envpool/<id>`.

Box: uint8 stays (pictures of three dimensions with the channels last), everything else becomes float32. Discrete and
MultiDiscrete: one-hot float32. MultiBinary: float32. Dict and Tuple: dictionaries and tuples. Text in a Dict is left out.

Imports no jax: worker processes use it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from dm_env import specs
from gymnasium import spaces

from podracer import dm


def observation_spec(space: spaces.Space, name: str = "observation") -> Any:
    """A pytree of specs. Raises TypeError for spaces that have none."""
    if isinstance(space, spaces.Dict):
        return {key: observation_spec(inner, key) for key, inner in _readable(space)}
    if isinstance(space, spaces.Tuple):
        return tuple(observation_spec(inner, f"{name}_{index}") for index, inner in enumerate(space.spaces))
    if isinstance(space, spaces.Discrete):
        return specs.BoundedArray((int(space.n),), np.float32, 0.0, 1.0, name=name)
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return specs.BoundedArray((int(space.nvec.sum()),), np.float32, 0.0, 1.0, name=name)
    if isinstance(space, spaces.MultiBinary):
        return specs.BoundedArray(space.shape, np.float32, 0.0, 1.0, name=name)
    if isinstance(space, spaces.Box):
        if space.dtype != np.uint8:
            return specs.Array(space.shape, np.float32, name=name)  # the bounds that environments state are not always kept
        shape = (*space.shape[1:], space.shape[0]) if _channels_first(space) else space.shape
        return specs.BoundedArray(shape, np.uint8, 0, 255, name=name)
    raise TypeError(f"observations of {type(space).__name__} are not supported")


def encoder(space: spaces.Space) -> Callable[[Any], Any]:
    """A function from values of `space`, with any number of batch dimensions in front, to what `observation_spec` says."""
    if isinstance(space, spaces.Dict):
        fields = {key: encoder(inner) for key, inner in _readable(space)}
        return lambda value: {key: encode(value[key]) for key, encode in fields.items()}
    if isinstance(space, spaces.Tuple):
        items = [encoder(inner) for inner in space.spaces]
        return lambda value: tuple(encode(item) for encode, item in zip(items, value, strict=True))
    if isinstance(space, spaces.Discrete):
        rows, start = np.eye(int(space.n), dtype=np.float32), int(space.start)
        return lambda value: rows[np.asarray(value) - start]
    if isinstance(space, spaces.MultiDiscrete):
        tables = [np.eye(int(n), dtype=np.float32) for n in space.nvec]
        return lambda value: np.concatenate(
            [rows[np.asarray(value)[..., i] - space.start[i]] for i, rows in enumerate(tables)], axis=-1
        )
    if isinstance(space, spaces.Box) and _channels_first(space):
        return lambda value: np.moveaxis(np.asarray(value, np.uint8), -3, -1)
    dtype = np.uint8 if space.dtype == np.uint8 else np.float32
    return lambda value: np.asarray(value, dtype)


def action_spec(space: spaces.Space) -> specs.Array:
    """Raises TypeError for spaces other than Discrete and Box of floats."""
    if isinstance(space, spaces.Discrete):
        return specs.DiscreteArray(int(space.n), name="action")
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return dm.action_spec(specs.BoundedArray(space.shape, space.dtype, space.low, space.high, name="action"))
    raise TypeError(f"actions of {type(space).__name__} ({space.dtype}) are not supported")


def decoder(space: spaces.Space) -> Callable[[Any], Any]:
    """A function from our actions, one or a batch, to those of `space`."""
    if isinstance(space, spaces.Discrete):
        start = int(space.start)
        return lambda action: action + start
    return lambda action: np.asarray(action, space.dtype)


def _readable(space: spaces.Dict) -> list[tuple[str, spaces.Space]]:
    return [(key, inner) for key, inner in space.spaces.items() if not isinstance(inner, spaces.Text)]


def _channels_first(space: spaces.Box) -> bool:
    """Whether this is a picture `[C, H, W]`: its first dimension is the smallest."""
    return space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[0] < min(space.shape[1:])
