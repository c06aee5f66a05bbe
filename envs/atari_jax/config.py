"""Options of `atari_jax/pong`. Apart from the environment, so that listing environments does not import JAX."""

import dataclasses
from typing import Literal

from podracer.config import require


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of `atari_jax/pong`; where `atari/pong` has the same option, it means the same and has the same default.

    observation: `pixels`, `[image_height, image_width, stack]` uint8, newest frame last; or `objects`, `[9]` float32, positions
      and velocities (`objects.features`), which is about a hundred times faster.
    repeat_action_probability: on each frame, the chance that the previous frame's action is used once more (sticky actions).
    full_action_space: 18 actions, or the 6 that differ.
    frame_skip: frames of an agent step. Pixels are the brighter of its last two frames.
    stack: images in an observation.
    noop_max: an episode starts after 1 to `noop_max` idle frames, at random (1 for 0, as in `atari/pong`).
    image_height, image_width: size of the image.
    max_frames: time limit of an episode in frames.
    """

    observation: Literal["pixels", "objects"] = "pixels"
    repeat_action_probability: float = 0.25
    full_action_space: bool = True
    frame_skip: int = 4
    stack: int = 4
    noop_max: int = 0
    image_height: int = 84
    image_width: int = 84
    max_frames: int = 108_000

    def __post_init__(self) -> None:
        require(self, "repeat_action_probability", at_least=0, at_most=1)
        require(self, "frame_skip", "stack", "image_height", "image_width", at_least=1)
        require(self, "noop_max", at_least=0)
        require(self, "max_frames", at_least=self.frame_skip)
