"""The platform that programs are traced for: the one that is here, or that of a topology that is planned for."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_ASSUMED: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def platform() -> str:
    """`cpu`, `gpu` or `tpu`. Ask this, and not `jax.default_backend()`, wherever a program depends on it."""
    return _ASSUMED.get() or jax.default_backend()


@contextlib.contextmanager
def assume(name: str) -> Iterator[None]:
    """What is traced within is for this platform."""
    token = _ASSUMED.set(name)
    try:
        yield
    finally:
        _ASSUMED.reset(token)
