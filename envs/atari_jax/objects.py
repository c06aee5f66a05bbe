"""What there is in a frame of Pong as one vector, the same from our own Pong and from the RAM of the ALE's."""

import jax.numpy as jnp

from podracer.types import Array

NUM_FEATURES = 9
_ENEMY_Y, _PLAYER_Y, _BALL_X, _BALL_Y, _BALL_DX, _BALL_DY = 50, 51, 49, 54, 58, 56  # addresses in the ALE's RAM


def features(
    ball: tuple[Array, Array, Array, Array], paddles: tuple[Array, Array], paddles_tm1: tuple[Array, Array], frame_skip: int
) -> Array:
    """The observation `objects`.

    Args:
      ball: x, y, dx, dy `[...]` int32, as in `physics.PongState`. y is 0 while no ball is in play.
      paddles: y of the player and of the computer, `[...]` int32.
      paddles_tm1: the same one agent step ago (the same values again on FIRST).
      frame_skip: frames of an agent step.

    Returns:
      `[..., 9]` float32, each within about -1..1: ball in play (0 or 1), ball x, y, velocity in x (towards the player is
      positive) and y (0 where no ball is in play); player's paddle y and velocity; the computer's paddle y and velocity.
    """
    x, y, dx, dy = ball
    in_play = y != 0
    (player, enemy), (player_tm1, enemy_tm1) = paddles, paddles_tm1
    when_in_play = [(x - 128) / 64, (y - 125) / 80, -dx / 4, dy / 3]
    always = [
        (player - 120) / 80,
        jnp.clip((player - player_tm1) / (6 * frame_skip), -1, 1),
        (enemy - 125) / 125,
        jnp.clip((enemy - enemy_tm1) / (2 * frame_skip), -1, 1),
    ]
    values = [in_play, *(jnp.where(in_play, value, 0) for value in when_in_play), *always]
    return jnp.stack([jnp.asarray(value, jnp.float32) for value in values], axis=-1)


def from_ram(ram: Array, ram_tm1: Array, frame_skip: int) -> Array:
    """`features` from the ALE's RAM: `[..., 128]` uint8 now and one agent step ago."""

    def signed(address: int) -> Array:
        return ram[..., address].astype(jnp.int8).astype(jnp.int32)

    def unsigned(memory: Array, address: int) -> Array:
        return memory[..., address].astype(jnp.int32)

    ball = (unsigned(ram, _BALL_X), unsigned(ram, _BALL_Y), signed(_BALL_DX), signed(_BALL_DY))
    paddles = (unsigned(ram, _PLAYER_Y), unsigned(ram, _ENEMY_Y))
    return features(ball, paddles, (unsigned(ram_tm1, _PLAYER_Y), unsigned(ram_tm1, _ENEMY_Y)), frame_skip)
