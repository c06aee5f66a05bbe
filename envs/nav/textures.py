"""The textures of `ray_maze`: drawn by rule, once, with noise. Hard edges and no mipmaps, so that they shimmer far away."""

import numpy as np

TEXELS = 16
"""Side of a texture, which covers a square."""
WALL_COLOURS, WALL_PATTERNS = 4, 4
FLOOR = WALL_COLOURS * WALL_PATTERNS
CEILING = FLOOR + WALL_COLOURS
GOAL, APPLE, STRAWBERRY = range(CEILING + WALL_COLOURS, CEILING + WALL_COLOURS + 3)
"""Numbers of the other textures. That of a wall is `colour * WALL_PATTERNS + pattern`; those of floor and ceiling come in the
same colours, or a sum of pixels would tell how much of a view is wall, and so how deep it is."""

_WALLS = np.array([[190, 80, 70], [80, 150, 90], [90, 110, 200], [190, 160, 70]])
_NOISE = 28


def _patterns() -> np.ndarray:
    """Bricks, planks, tiles, and a picture of blocks: `[4, TEXELS, TEXELS]`, how bright, 0 to 1."""
    row, column = np.divmod(np.arange(TEXELS**2).reshape(TEXELS, TEXELS), TEXELS)
    bricks = np.where((row % 4 == 3) | ((column + 4 * (row // 4 % 2)) % 8 == 7), 0.25, 0.85)
    planks = np.where(column % 4 == 3, 0.3, 0.6 + 0.4 * (column // 4 % 2))
    tiles = np.where((row // 4 + column // 4) % 2 == 0, 1.0, 0.45)
    blocks = np.kron(np.random.default_rng(3).choice([0.35, 0.65, 1.0], (4, 4)), np.ones((4, 4)))
    return np.stack([bricks, planks, tiles, blocks])


def _table() -> np.ndarray:
    """All of them as one word a texel, `[STRAWBERRY + 1, TEXELS, TEXELS]` uint32: red, green, blue from the lowest byte on."""
    patterns, rng = _patterns(), np.random.default_rng(11)
    walls = (patterns[None, ..., None] * _WALLS[:, None, None, None]).reshape(-1, TEXELS, TEXELS, 3)
    row, column = np.divmod(np.arange(TEXELS**2).reshape(TEXELS, TEXELS), TEXELS)
    checks, waves = (
        np.where((row // 8 + column // 8) % 2, 0.85, 0.5),
        np.where((row + 4 * (column // 4 % 2)) % 8 < 4, 0.9, 0.45),
    )
    floor, ceiling = (pattern[..., None] * _WALLS[:, None, None] for pattern in (checks, waves))
    rings = (np.hypot(row - 7.5, column - 7.5) // 2 % 2)[..., None]
    goal = np.where(rings, [250, 240, 60], [230, 60, 230])
    apple = np.broadcast_to([60, 230, 60], goal.shape)
    strawberry = np.where(((row + column) % 4 == 0)[..., None], [255, 230, 120], [240, 30, 50])
    colours = np.concatenate([walls, floor, ceiling, np.stack([goal, apple, strawberry])])
    grain = rng.integers(-_NOISE, _NOISE + 1, (*colours.shape[:-1], 1)) + rng.integers(-8, 9, colours.shape)
    rgb = np.clip(colours + grain, 0, 255).astype(np.uint32)
    return rgb[..., 0] | rgb[..., 1] << 8 | rgb[..., 2] << 16


TABLE = _table()
