"""Finds residuals that were broadcast to a square matrix by mistake."""

from typing import TYPE_CHECKING

import numpy as np

from kormos import backend
from kormos.warn import warn

if TYPE_CHECKING:
    from kormos.objective.functions.residuals import ResidualObjective

# A square with fewer rows than the first number cannot show the structure. At
# most the second number of rows is examined. Our choice: they show it as well
# as all rows, and more would cost time.
_FEWEST_ROWS, _ENOUGH_ROWS = 3, 64
# A square matrix counts as of rank two if its third singular value is at most
# this many roundings of the first. Our choice: products of a column and a row
# round by less.
_ROUNDINGS = 100

HINT = (
    "a column of shape (n, 1) minus a vector of shape (n,) is a matrix of "
    "all pairs: give both the same shape, by `keras.ops.reshape`"
)


def warn_of_broadcasts(objective: "ResidualObjective") -> None:
    """Warns of square blocks of residuals made by broadcasting two vectors.

    The difference of a column and a row is a matrix of rank two or less, even
    if it is multiplied by a column or a row. Residuals of data in a square
    matrix have a higher rank.

    Args:
        objective: the objective.
    """
    squares = objective.grouped.squares()
    if not squares:
        return
    try:
        found = objective.own_residuals(objective.initial_position())
    except Exception as error:
        if backend.is_numerical(error):
            return  # The fit will report it.
        raise
    for name, size in squares.items():
        square = found[name].reshape(size, size)[:_ENOUGH_ROWS, :_ENOUGH_ROWS]
        if size < _FEWEST_ROWS or not np.isfinite(square).all():
            continue
        values = np.linalg.svd(square, compute_uv=False)
        least = _ROUNDINGS * objective.evaluation_eps * values[0]
        if 0 < values[0] and values[2] <= least:
            warn(
                f"Block '{name}' of the residuals has shape {(size, size)}, "
                f"and seems to be broadcast by mistake; {HINT}. Flatten the "
                "block if every pair is intended."
            )
