"""Bounds and constraints of the flat vector, in SciPy's forms.

The vector holds the trainable variables in the model's order, each flattened.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import numpy as np
import scipy.optimize

from kormos.types import Matrix
from kormos.types import Vector


class Rows(NamedTuple):
    """Linear functions of the flat vector that a constraint restricts.

    Attributes:
        type: `"eq"` if they must be zero, `"ineq"` if zero or more.
        fun: function from a vector to their values.
        jac: function from a vector to their derivatives.
    """

    type: str
    fun: Callable[[Vector], Vector]
    jac: Callable[[Vector], Matrix]


def flat_bounds(bounds: Any, size: int) -> tuple[Vector, ...] | None:
    """Lower and upper bounds of every parameter, or `None` for other forms.

    Args:
        bounds: a `scipy.optimize.Bounds`, or a pair `(low, high)` for each
            parameter.
        size: the number of parameters.

    Returns:
        `(lower, upper)`, of shape `(size,)` each, or `None`.

    Raises:
        ValueError: if there are not as many pairs as parameters.
    """
    if isinstance(bounds, scipy.optimize.Bounds):
        pair = bounds.lb, bounds.ub
    elif _are_pairs(bounds):
        none = -np.inf, np.inf
        pairs = [
            [n if b is None else b for b, n in zip(entry, none, strict=True)]
            for entry in bounds
        ]
        pair = tuple(np.asarray(pairs, dtype="float64").T)
    else:
        return None
    shapes = [np.shape(side) for side in pair]
    if any(shape not in ((), (1,), (size,)) for shape in shapes) or (
        len(bounds if _are_pairs(bounds) else [0] * size) != size
    ):
        raise ValueError(
            "Bounds without names refer to the flat vector: pass a pair for "
            f"each of its {size} parameters, or bounds by variable, "
            "`{'dense/kernel': (low, high)}`. Received: "
            f"{max(map(np.size, pair))} pairs"
        )
    return tuple(np.broadcast_to(side, (size,)) for side in pair)


def _are_pairs(bounds: Any) -> bool:
    """Whether all entries are pairs of numbers or `None`."""
    if isinstance(bounds, np.ndarray):
        return bounds.ndim == 2 and bounds.shape[1] == 2
    return (
        isinstance(bounds, (list, tuple))
        and bool(bounds)
        and all(
            isinstance(entry, (list, tuple, np.ndarray))
            and len(entry) == 2
            and all(side is None or np.isscalar(side) for side in entry)
            and not isinstance(entry[0], str)
            for entry in bounds
        )
    )


def linear_rows(constraint: Any, size: int) -> list[Rows]:
    """The equations and inequalities of a `scipy.optimize.LinearConstraint`.

    Args:
        constraint: the constraint.
        size: the number of parameters.

    Raises:
        ValueError: if its matrix has another number of columns, or NaN; or if
            a lower limit is NaN, or above the upper one.
    """
    matrix = constraint.A
    matrix = matrix.toarray() if hasattr(matrix, "toarray") else matrix
    matrix = np.atleast_2d(np.asarray(matrix, dtype="float64"))
    if matrix.shape[1] != size:
        raise ValueError(
            "A `LinearConstraint` refers to the flat vector: its matrix "
            f"needs a column for each of the {size} parameters. Received: a "
            f"matrix of shape {matrix.shape}"
        )
    count = len(matrix)
    low, high = (
        np.broadcast_to(np.asarray(side, "float64"), (count,))
        for side in (constraint.lb, constraint.ub)
    )
    is_empty = (low > high) | (low == np.inf) | (high == -np.inf)
    if np.isnan([low, high]).any() or is_empty.any():
        raise ValueError(
            "The limits of a `LinearConstraint` must be numbers, with `lb` at "
            "most `ub`; `-np.inf` and `np.inf` are no limits. Received: "
            f"lb={constraint.lb}, ub={constraint.ub}"
        )
    if not np.isfinite(matrix).all():
        raise ValueError(
            "The matrix of a `LinearConstraint` must be finite. Received: "
            f"{int(np.sum(~np.isfinite(matrix)))} entries that are NaN or "
            "infinite"
        )
    is_equal = low == high
    above, below = (np.isfinite(side) & ~is_equal for side in (low, high))
    found = []
    if is_equal.any():
        found.append(_rows("eq", matrix[is_equal], low[is_equal]))
    if above.any():
        found.append(_rows("ineq", matrix[above], low[above]))
    if below.any():
        found.append(_rows("ineq", -matrix[below], -high[below]))
    return found


def _rows(kind: str, matrix: Matrix, least: Vector) -> Rows:
    return Rows(kind, lambda theta: matrix @ theta - least, lambda _: matrix)
