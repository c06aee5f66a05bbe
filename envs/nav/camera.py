"""Where the pixels of a picture and of the label `depth` look, in whatever world it is. Imports no jax."""

import numpy as np

DEPTH_SHAPE = (4, 16)
"""Rows and columns of the label `depth`."""
DEPTH_BAND = 0.5
"""Share of the view's height that the label `depth` covers, in the middle; it covers all of the width."""


def spread(count: int, extent: float) -> np.ndarray:
    """Middles of `count` equal parts of [-extent, extent]: `[count]` float64."""
    return extent * ((2 * np.arange(count) + 1) / count - 1)


def of_label(extent: float) -> tuple[np.ndarray, np.ndarray]:
    """Tangents of the angles at which rows `[4]` and columns `[16]` of the label look; down and right are positive.

    extent: tangent of half the angle of the view, which is the same upwards.
    """
    rows, columns = DEPTH_SHAPE
    return spread(rows, DEPTH_BAND * extent), spread(columns, extent)
