"""The picture of Pong: whole frames in colour for people, and the small grey images that agents see.

A frame is a still background, the score, and three rectangles. The average over an area of an image is linear and separable, so
the image that an agent sees is a sum of outer products of how much of each image row and column a rectangle covers.
No frame of 210x160 pixels is ever drawn for it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from podracer.envs.atari_jax import physics
from podracer.envs.atari_jax.physics import PongState
from podracer.types import Array

HEIGHT, WIDTH = 210, 160
BACKGROUND, PLAYER, ENEMY, WHITE = (144, 72, 17), (92, 186, 92), (213, 130, 74), (236, 236, 236)
GREY = {BACKGROUND: 87, PLAYER: 147, ENEMY: 148, WHITE: 236}
"""The ALE's grey for each colour."""

_DIGITS = (  # 3x5 blocks, of 4x4 pixels each
    "111101101101111",
    "010010010010010",
    "111001111100111",
    "111001011001111",
    "101101111001001",
    "111100111001111",
    "100100111101111",
    "111001001001001",
    "111101111101111",
    "111101111001001",
)
_SCORE_TOP, _SCORE_LEFT = 1, {ENEMY: 20, PLAYER: 100}

Rows = tuple[Array, Array]
"""First pixel, and one past the last; empty where they are equal."""


def frame_rgb(state: PongState) -> Array:
    """One frame as the ALE shows it, `[210, 160, 3]` uint8."""
    image = _paint(jnp.asarray(_background(rgb=True)), _score_masks(ENEMY)[state.enemy_score], ENEMY)
    image = _paint(image, _score_masks(PLAYER)[state.player_score], PLAYER)
    enemy, player, ball, ball_columns = _rectangles(state)
    for rows, columns, colour in (
        (enemy, _paddle_columns(physics.ENEMY_COLUMN), ENEMY),
        (player, _paddle_columns(physics.PLAYER_COLUMN), PLAYER),
        (ball, ball_columns, WHITE),
    ):
        image = _paint(image, _inside(rows, HEIGHT)[:, None] & _inside(columns, WIDTH)[None], colour)
    return image


def observe(state_tm1: PongState, state: PongState, height: int, width: int) -> Array:
    """The image for an agent: the brighter of two frames in each pixel, in grey, averaged over areas.

    The score is that of the second frame alone.

    Args:
      state_tm1, state: the last two frames of an agent step (one frame twice, for no pooling).
      height, width: size of the image.

    Returns:
      `[height, width]` uint8.
    """
    rows, columns = jnp.asarray(_coverage(HEIGHT, height)), jnp.asarray(_coverage(WIDTH, width))
    still = jnp.asarray(_small(_background(), height, width))
    score = _score_images(ENEMY, height, width)[state.enemy_score] + _score_images(PLAYER, height, width)[state.player_score]
    image = still.at[: score.shape[0]].add(score)

    terms: list[tuple[Array, Array, float]] = []  # rows [height], columns [width], grey above the background
    (enemy1, player1, ball1, across1), (enemy2, player2, ball2, across2) = _rectangles(state_tm1), _rectangles(state)
    both = _cut(ball1, ball2), _cut(across1, across2)
    white = GREY[WHITE] - GREY[BACKGROUND]
    terms += [
        (_cover(rows, ball1), _cover(columns, across1), white),
        (_cover(rows, ball2), _cover(columns, across2), white),
        (_cover(rows, both[0]), _cover(columns, both[1]), -white),
    ]
    for paddle1, paddle2, column, colour in (
        (enemy1, enemy2, physics.ENEMY_COLUMN, ENEMY),
        (player1, player2, physics.PLAYER_COLUMN, PLAYER),
    ):
        across, grey = _paddle_columns(column), GREY[colour] - GREY[BACKGROUND]
        union = _cover(rows, paddle1) + _cover(rows, paddle2) - _cover(rows, _cut(paddle1, paddle2))
        terms.append((union, _cover(columns, across), grey))
        # Where the ball is drawn over the paddle, the paddle must not count. The paddle's two places overlap or touch there.
        hull = jnp.minimum(paddle1[0], paddle2[0]), jnp.maximum(paddle1[1], paddle2[1])
        under1, under2 = (_cut(ball1, hull), _cut(across1, across)), (_cut(ball2, hull), _cut(across2, across))
        shared = _cut(under1[0], under2[0]), _cut(under1[1], under2[1])
        for part, sign in ((under1, -1), (under2, -1), (shared, 1)):
            terms.append((_cover(rows, part[0]), _cover(columns, part[1]), sign * grey))
    vertical = jnp.stack([term[0] * term[2] for term in terms])
    horizontal = jnp.stack([term[1] for term in terms])
    image += jnp.einsum("kh,kw->hw", vertical, horizontal, precision=jax.lax.Precision.HIGHEST)
    return jnp.floor(image + 0.5).astype(jnp.uint8)


def _rectangles(state: PongState) -> tuple[Rows, Rows, Rows, Rows]:
    """Rows of the computer's paddle, of the player's, and of the ball, and the ball's columns. Cut to the field."""
    field = jnp.int32(physics.FIELD_TOP), jnp.int32(physics.FIELD_BOTTOM + 1)

    def cut(top: Array, height: Array | int) -> Rows:
        return _cut((top, top + height), field)

    ball_height = jnp.where(state.ball_y > 0, physics.BALL_HEIGHT, 0)
    left = jnp.clip(state.ball_x - physics.BALL_COLUMN, 0, WIDTH)
    return (
        cut(physics.enemy_top(state), physics.PADDLE_HEIGHT),
        cut(physics.player_top(state), physics.PADDLE_HEIGHT),
        cut(physics.ball_top(state), ball_height),
        (left, jnp.minimum(left + physics.BALL_WIDTH, WIDTH)),
    )


def _paddle_columns(column: int) -> Rows:
    return jnp.int32(column), jnp.int32(column + physics.PADDLE_WIDTH)


def _cut(a: Rows, b: Rows) -> Rows:
    start = jnp.maximum(a[0], b[0])
    return start, jnp.maximum(jnp.minimum(a[1], b[1]), start)


def _cover(coverage: Array, rows: Rows) -> Array:
    """How much of each row of the small image `rows` cover, `[n]` float32."""
    limit = coverage.shape[0] - 1  # an empty interval may lie outside
    return coverage[jnp.clip(rows[1], 0, limit)] - coverage[jnp.clip(rows[0], 0, limit)]


def _inside(rows: Rows, size: int) -> Array:
    position = jnp.arange(size)
    return (position >= rows[0]) & (position < rows[1])


def _paint(image: Array, mask: Array, colour: tuple[int, int, int]) -> Array:
    return jnp.where(mask[..., None], jnp.asarray(colour, jnp.uint8), image)


@functools.cache
def _area(large: int, small: int) -> np.ndarray:
    """`[small, large]` float64: the mean over areas as a matrix."""
    edges = np.arange(small + 1) * (large / small)
    pixel = np.arange(large)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return np.maximum(overlap, 0) * (small / large)


@functools.cache
def _coverage(large: int, small: int) -> np.ndarray:
    """`[large + 1, small]` float32: entry `i` is what the first `i` pixels cover."""
    return np.concatenate([np.zeros((1, small)), np.cumsum(_area(large, small).T, axis=0)]).astype(np.float32)


def _small(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return (_area(HEIGHT, height) @ image @ _area(WIDTH, width).T).astype(np.float32)


@functools.cache
def _background(rgb: bool = False) -> np.ndarray:
    """`[210, 160]` float64 in grey, or `[210, 160, 3]` uint8."""
    image = np.empty((HEIGHT, WIDTH, 3), np.uint8) if rgb else np.empty((HEIGHT, WIDTH))
    image[:] = BACKGROUND if rgb else GREY[BACKGROUND]
    for rows in (slice(24, physics.FIELD_TOP), slice(physics.FIELD_BOTTOM + 1, HEIGHT)):
        image[rows] = WHITE if rgb else GREY[WHITE]
    image[0, :8] = 0  # the console blanks these pixels
    return image


@functools.cache
def _score_masks_np(colour: tuple[int, int, int]) -> np.ndarray:
    masks = np.zeros((physics.WINNING_SCORE + 1, HEIGHT, WIDTH), bool)
    for score, mask in enumerate(masks):
        for place, digit in ((1, score % 10), (0, score // 10)):
            if place == 1 or digit:
                glyph = np.array(list(_DIGITS[digit])).reshape(5, 3) == "1"
                left = _SCORE_LEFT[colour] + 16 * place
                mask[_SCORE_TOP : _SCORE_TOP + 20, left : left + 12] = np.kron(glyph, np.ones((4, 4))) > 0
    return masks


def _score_masks(colour: tuple[int, int, int]) -> Array:
    return jnp.asarray(_score_masks_np(colour))


@functools.cache
def _score_images_np(colour: tuple[int, int, int], height: int, width: int) -> np.ndarray:
    grey = GREY[colour] - GREY[BACKGROUND]
    images = np.stack([_small(mask * float(grey), height, width) for mask in _score_masks_np(colour)])
    return images[:, : np.flatnonzero(images.any((0, 2))).max() + 1]


def _score_images(colour: tuple[int, int, int], height: int, width: int) -> Array:
    """`[22, n, width]` float32: what each score adds to the first `n` rows of the background."""
    return jnp.asarray(_score_images_np(colour, height, width))
