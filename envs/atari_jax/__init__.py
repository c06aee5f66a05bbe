"""Atari games of our own in JAX, for accelerators and for speed. So far Pong; README.md says how it compares with the ALE's."""

from typing import Any

from podracer.envs.atari_jax.config import Config
from podracer.registry import Suite


def _make(task: str, config: Config) -> Any:
    from podracer.envs.atari_jax.pong import Pong

    del task  # there is one
    return Pong(config)


SUITE = Suite(
    make=_make,
    tasks=lambda: ("pong",),
    config=Config,
    summary="Atari Pong rewritten in JAX, frame by frame as in the ALE; on any device",
    default_task="pong",
)
