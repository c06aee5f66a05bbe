"""Pong, one television frame at a time, in integers.

Every rule here was read off the ALE's Pong (ale-py 0.12.1) at frame skip 1, through its RAM and its pictures; nothing
was taken from the game's program. `benchmarks/pong_validation.py` holds it against the ALE: how many frames agree in
every position, in a game that is never corrected.

Coordinates are those of the game's RAM. A pixel column is `ball_x - 49`; the picture's rows are in rendering.py.
"""

import jax.numpy as jnp
import numpy as np

from podracer.types import Array, Struct

BALL_COLUMN = 49
"""`ball_x` minus the pixel column of the ball's left edge."""
PLAYER_COLUMN, ENEMY_COLUMN, PADDLE_WIDTH, PADDLE_HEIGHT = 140, 16, 4, 16
BALL_WIDTH, BALL_HEIGHT = 2, 4
FIELD_TOP, FIELD_BOTTOM = 34, 193
"""First and last pixel row between the walls. Nothing that moves is drawn, or collides, outside of them."""
WINNING_SCORE = 21
MAX_BALL_SPEED = 4
START_FRAMES, SCORE_FRAMES = 59, 63
"""Frames without a ball: before the first serve (of a game as the ALE hands it over), and after each point."""

_DIAL_STEP, _DIAL_END, _DIAL_START = 3, 100, 50
# What the game reads from the paddle controller at each setting of the dial. The ALE turns the dial by 23,000 ohms a frame
# between stops at 27,450 and 790,196; starting in the middle, it can only come to rest at these 101 settings.
DIAL_READING = np.array(
    [38] * 14
    + [40, 42, 44, 46, 48, 50, 52, 54, 54, 58, 60, 60, 64, 66, 66, 68, 72, 72, 74, 78, 78, 80, 82, 84, 86, 88, 90, 92, 94, 96]
    + [98, 100, 102, 104, 106, 106, 110, 112, 112, 114, 118, 118, 120, 124, 124, 126, 128, 130, 132, 134, 136, 138, 140, 142]
    + [144, 146, 148, 150, 152, 152, 156, 158, 158, 162, 164, 164, 166, 170, 170, 172, 174, 176, 178, 180, 182, 184, 186, 188]
    + [190, 192, 194, 196, 198, 198, 202, 204, 204],
    np.int32,
)

ACTION_TURN = np.array([0, 0, 0, -1, 1, 0, -1, 1, -1, 1, 0, -1, 1, 0, -1, 1, -1, 1], np.int32)
"""`[18]`: which way each action of the ALE's full set turns the dial. Right (-1) moves the paddle up, left (+1) down."""
ACTION_FIRE = np.array([0, 1] + [0] * 8 + [1] * 8, np.int32)
"""`[18]`: whether the action presses the button, which makes the ball faster if it is down when the player's paddle hits."""
MINIMAL_ACTIONS = np.array([0, 1, 3, 4, 11, 12], np.int32)


class PongState(Struct):
    """A frame of Pong. All `[]` int32.

    ball_x, ball_y: position. `ball_y` is 0 while no ball is in play.
    ball_dx, ball_dy: `ball_x` falls by `ball_dx` a frame (the player is at large x), `ball_y` grows by `ball_dy`.
    enemy_y, player_y: paddles, as drawn on this frame. player_next: the player's paddle as of the next frame.
    dial: setting of the paddle controller, 0 to 100.
    fire: whether the button was down on this frame.
    clock: frame counter, modulo 256.
    wait: frames until the serve, 0 in play.
    enemy_score, player_score: points, 0 to 21.
    """

    ball_x: Array
    ball_y: Array
    ball_dx: Array
    ball_dy: Array
    enemy_y: Array
    player_y: Array
    player_next: Array
    dial: Array
    fire: Array
    clock: Array
    wait: Array
    enemy_score: Array
    player_score: Array


def new_game() -> PongState:
    """The state in which the ALE hands over a game after its reset."""
    values = {
        "enemy_y": 22, "player_y": 109, "player_next": 109, "dial": _DIAL_START, "clock": 71, "wait": START_FRAMES,
    }  # fmt: skip
    names = PongState.__dataclass_fields__
    return PongState(**{name: jnp.int32(values.get(name, 0)) for name in names})


def frame(state: PongState, turn: Array, fire: Array) -> PongState:
    """The next frame.

    Args:
      state: a frame.
      turn: `[]` int32, -1, 0 or 1: the dial, from `ACTION_TURN`.
      fire: `[]` int32, 0 or 1: the button, from `ACTION_FIRE`.
    """
    clock = (state.clock + 1) & 255
    dial = jnp.clip(state.dial + _DIAL_STEP * turn, 0, _DIAL_END)
    # The game reads the controller on every other frame and goes half of the way to what it read.
    smoothed = (jnp.asarray(DIAL_READING)[dial] + state.player_next) >> 1
    player_next = jnp.where(clock & 1 == 0, smoothed, state.player_next)

    x, y, dx, dy, is_point, is_enemys = _ball_in_play(state)
    serve, waiting = state.wait == 1, state.wait > 1
    serve_dx = jnp.where(state.ball_dx >= 0, 1, -1)
    serve_dy = jnp.where(state.ball_dy >= 0, 1, -1)
    ball_x = jnp.where(waiting, state.ball_x, jnp.where(serve, 128 - serve_dx, x))
    ball_y = jnp.where(waiting, 0, jnp.where(serve, 128 + serve_dy, y))

    # The computer follows the ball by 2 a frame, and rests on one frame of eight: a ball of |dy| = 2 slowly outruns it.
    start = jnp.where(serve, 128, state.enemy_y)
    enemy_y = start + jnp.where(clock & 7 == 1, 0, 2 * jnp.sign(ball_y - start))
    return PongState(
        ball_x=ball_x,
        ball_y=ball_y,
        ball_dx=jnp.where(waiting, state.ball_dx, jnp.where(serve, serve_dx, dx)),
        ball_dy=jnp.where(waiting, state.ball_dy, jnp.where(serve, serve_dy, dy)),
        enemy_y=enemy_y,
        player_y=state.player_next,
        player_next=player_next,
        dial=dial,
        fire=fire,
        clock=clock,
        wait=jnp.where(is_point, SCORE_FRAMES, jnp.maximum(state.wait - 1, 0)),
        enemy_score=state.enemy_score + (is_point & is_enemys),
        player_score=state.player_score + (is_point & ~is_enemys),
    )


def ball_top(state: PongState) -> Array:
    """`[]` int32 first pixel row of the ball. On the right it is drawn a row early at odd `ball_y`."""
    return state.ball_y - 14 - ((state.ball_y & 1) & (state.ball_x >= 182))


def player_top(state: PongState) -> Array:
    """`[]` int32 first pixel row of the player's paddle, which moves in steps of two rows."""
    return state.player_y - 14 + (state.player_y & 1)


def enemy_top(state: PongState) -> Array:
    """`[]` int32 first pixel row of the computer's paddle."""
    return state.enemy_y - 15


def _ball_in_play(state: PongState) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Position and velocity of the ball after a frame in play; whether a point was made, and whether it is the computer's."""
    x, y, dx, dy = state.ball_x, state.ball_y, state.ball_dx, state.ball_dy
    wall = ((y <= 45) & (dy < 0)) | ((y >= 206) & (dy > 0))
    # A ball that is still inside the paddle on the next frame is hit again: a new angle, and faster still with the button.
    hits_player = ~wall & _touches(state, PLAYER_COLUMN, player_top(state))
    hits_enemy = ~wall & _touches(state, ENEMY_COLUMN, enemy_top(state))
    offset = y - jnp.where(hits_player, state.player_y, state.enemy_y)
    rebound = ((offset - 1) >> 2) - 1  # five zones of four rows, from steeply up to steeply down

    is_hit = hits_player | hits_enemy
    speed = jnp.abs(dx)
    faster = jnp.minimum(speed + state.fire, MAX_BALL_SPEED)
    new_dx = jnp.where(hits_player, faster, jnp.where(hits_enemy, -speed, dx))
    new_dy = jnp.where(is_hit, rebound, jnp.where(wall, -dy, dy))
    nudge = jnp.where(wall, jnp.sign(new_dy), 0)  # a wall pushes the ball one row further

    in_play = state.wait == 0
    is_enemys = x >= 205
    is_point = in_play & (is_enemys | (x <= 52))
    return (
        jnp.where(is_point, x, x - new_dx),
        jnp.where(is_point, y, y + new_dy + nudge),
        jnp.where(is_point, dx, new_dx),
        jnp.where(is_point, dy, new_dy),
        is_point,
        is_enemys,
    )


def _touches(state: PongState, column: int, top: Array) -> Array:
    """Whether the ball and the paddle at `column`, `top` share a pixel of this frame."""
    left, ball = state.ball_x - BALL_COLUMN, ball_top(state)
    columns = (left + BALL_WIDTH > column) & (left < column + PADDLE_WIDTH)
    first = jnp.maximum(jnp.maximum(ball, top), FIELD_TOP)
    last = jnp.minimum(jnp.minimum(ball + BALL_HEIGHT, top + PADDLE_HEIGHT) - 1, FIELD_BOTTOM)
    return columns & (first <= last)
