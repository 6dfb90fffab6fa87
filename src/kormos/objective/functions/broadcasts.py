"""Residuals that are a square by mistake."""

from typing import Any

import numpy as np

from kormos import backend
from kormos.warn import warn

# Fewer rows and columns than this show no structure, and more no other.
_LEAST, _ENOUGH = 3, 64

HINT = (
    "a column of shape (n, 1) less a vector of shape (n,) is a square of every "
    "pair: give both one shape, by `keras.ops.reshape`"
)


def warn_of_broadcasts(objective: Any) -> None:
    """Warns of square blocks of residuals that a column and a row make.

    What is a function of its row plus one of its column, times such ones, has
    a rank of two at most: no data of a square's own have.

    Args:
        objective: a `ResidualObjective`.
    """
    squares = objective.squares()
    if not squares:
        return
    try:
        found = objective.residuals(objective.initial_position())
    except Exception as error:
        if backend.is_numerical(error):
            return  # The fit will say so.
        raise
    for name, size in squares.items():
        square = found[name].reshape(size, size)[:_ENOUGH, :_ENOUGH]
        if size < _LEAST or not np.isfinite(square).all():
            continue
        values = np.linalg.svd(square, compute_uv=False)
        if 0 < values[0] and values[2] <= 100 * objective.epsilon * values[0]:
            warn(
                f"Block '{name}' of the residuals has shape {(size, size)}, "
                f"and seems to be a broadcast by mistake; {HINT}. Flatten the "
                "block if every pair is meant."
            )
