"""Parameters as actors see them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from podracer.types import Params


class Version(NamedTuple):
    """number: updates behind these parameters. params: on the actor's device; nobody writes to them or donates them."""

    number: int
    params: Params


class Parameters:
    """The newest parameters, once on each actor device. Readers take one reference and so never see half of a change."""

    def __init__(self, devices: Sequence[Any]):
        self._devices = list(devices)
        self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
        self._newest: tuple[Version, ...] = ()

    def publish(self, number: int, params: Params) -> None:
        """Replaces what actors will read next. `params`, on a learner device, may be donated afterwards."""
        own = self._copy(params)
        self._newest = tuple(Version(number, jax.device_put(own, device)) for device in self._devices)

    def newest(self, index: int) -> Version:
        """The newest version on the actor device number `index`."""
        return self._newest[index]
