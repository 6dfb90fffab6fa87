"""The information about the parameters: a matrix, its range, its inverse.

Everything is computed from a root B of the inverse, A^-1 = BB', with a column
for every direction that the data determine. Because of the parameters' units,
the matrix may be badly scaled although the problem is not. So the test whether
data determine a direction uses columns of length one.
"""

from collections.abc import Callable
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import scipy.linalg

from kormos.types import Matrix
from kormos.types import Vector

# Singular values below this many roundings of the largest one, for each column,
# are zero. Our choice: exactly dependent columns leave a few roundings.
_ROUNDINGS = 8
# A parameter takes part in a direction if its share of it is larger than this
# many times the error of the direction, and at least the least share.
_SHARES, _LEAST_SHARE, _MOST_SHARE = 1e3, 1e-8, 1e-3
# Coefficients below this part of the largest one are not named.
_NAMED = 1e-6
# Entries of a direction below this part of its largest one are rounding.
_NOTHING = 1e-9


class Information(NamedTuple):
    """The inverse of an information matrix, on what it determines.

    Attributes:
        root: the matrix B, of shape `(size, rank)`.
        free: the directions that are not determined, `(size, count)`, in
            columns. In each, another parameter has coefficient 1.
        is_identified: for every parameter, whether it is determined.
        is_held: for every parameter, whether constraints hold it fixed.
        condition: the ratio of the largest and the smallest singular value of
            the unscaled matrix.
        negative: the number of directions along which the loss curves
            downwards, which are among the free ones.
    """

    root: Matrix
    free: Matrix
    is_identified: np.ndarray
    is_held: np.ndarray
    condition: float
    negative: int = 0

    @property
    def rank(self) -> int:
        """The number of directions that the data determine."""
        return self.root.shape[1]

    def combinations(self, name_of: Callable[[int], str]) -> list[str]:
        """The combinations of parameters that the data do not determine.

        Args:
            name_of: function from an index to the name of a parameter.
        """
        found = []
        for direction in self.free.T:
            largest = np.abs(direction).max()
            text = ""
            for i in np.flatnonzero(np.abs(direction) > _NAMED * largest):
                sign = "-" if direction[i] < 0 else "+" if text else ""
                size = f"{abs(direction[i]):.4g}"
                factor = "" if size == "1" else f"{size} "
                space = " " if text else ""
                text += f"{space}{sign}{space}{factor}{name_of(int(i))}"
            found.append(text)
        return found


def triangle(rows: Iterable[Matrix], size: int) -> Matrix:
    """A triangular matrix T with T'T = R'R, where R has all of the rows.

    Args:
        rows: matrices of shape `(n, size)`.
        size: the number of columns.
    """
    found = np.zeros((0, size))
    for part in rows:
        found = np.concatenate([found, part])
        if len(found) > size:
            found = np.asarray(np.linalg.qr(found, "r"))
    return found


def of_rows(
    factor: Matrix, active: Matrix, rounding: float = 2.0**-52
) -> Information:
    """The information of a matrix R'R.

    Args:
        factor: R, or another matrix with the same product, `(n, size)`.
        active: the derivatives of active constraints, `(m, size)`.
        rounding: the machine epsilon of the arithmetic of R.
    """
    scale = _positive(np.linalg.norm(factor, axis=0))
    tangent = _tangent(active / scale)
    _, values, right = np.linalg.svd(
        factor / scale @ tangent, full_matrices=True
    )
    count = right.shape[0]
    values = np.concatenate([values, np.zeros(count - len(values))])
    least = _ROUNDINGS * max(count, 1) * rounding
    kept = values > least * values.max(initial=0.0)
    vectors = tangent @ right.T
    root = vectors[:, kept] / values[kept] / scale[:, None]
    whole = np.linalg.svd(factor, compute_uv=False)
    smallest = whole[-1] if len(factor) >= factor.shape[1] else 0.0
    error = rounding * values.max(initial=0.0)
    gap = values[kept].min(initial=np.inf)
    return _information(
        root,
        vectors[:, ~kept],
        scale,
        error / gap,
        whole[0] / smallest if smallest else np.inf,
    )


def of_matrix(
    matrix: Matrix, active: Matrix, rounding: float = 2.0**-52
) -> Information:
    """The information of a symmetric matrix of second derivatives.

    Args:
        matrix: the matrix, `(size, size)`.
        active: see `of_rows`.
        rounding: see `of_rows`.
    """
    scale = _positive(np.sqrt(np.abs(np.diag(matrix))))
    tangent = _tangent(active / scale)
    scaled = tangent.T @ (matrix / scale / scale[:, None]) @ tangent
    values, right = np.linalg.eigh((scaled + scaled.T) / 2)
    largest = np.abs(values).max(initial=0.0)
    least = _ROUNDINGS * max(len(values), 1) * rounding * largest
    kept = values > least
    vectors = tangent @ right
    whole = np.abs(np.linalg.eigvalsh((matrix + matrix.T) / 2))
    return _information(
        vectors[:, kept] / np.sqrt(values[kept]) / scale[:, None],
        vectors[:, ~kept],
        scale,
        rounding * largest / values[kept].min(initial=np.inf),
        np.sqrt(whole.max() / whole.min()) if whole.min() else np.inf,
    )._replace(negative=int(np.sum(values < -least)))


def _information(
    root: Matrix, free: Matrix, scale: Vector, error: float, condition: float
) -> Information:
    """An `Information`.

    Args:
        root: the root of the inverse.
        free: the directions that are not determined, of scaled parameters.
        scale: the scale of the parameters.
        error: the error of a direction.
        condition: the condition number.
    """
    share = np.clip(_SHARES * error, _LEAST_SHARE, _MOST_SHARE)
    is_identified = np.linalg.norm(free, axis=1) <= share
    is_held = is_identified & ~root.any(axis=1)
    return Information(
        root,
        _readable(np.where(is_identified[:, None], 0.0, free), scale),
        is_identified,
        is_held,
        float(condition),
    )


def _readable(free: Matrix, scale: Vector) -> Matrix:
    """Directions with the same span, with few parameters in each.

    Args:
        free: directions of scaled parameters, in columns.
        scale: the scale.
    """
    count = free.shape[1]
    if not count:
        return free
    left, pivots = free.copy(), []
    for _ in range(count):
        lengths = np.linalg.norm(left, axis=1)
        # The first one of those that are large enough to divide by.
        pivot = int(np.argmax(lengths >= lengths.max() / 2))
        unit = left[pivot] / lengths[pivot]
        left = left - np.outer(left @ unit, unit)
        pivots.append(pivot)
    own = free[pivots]
    spread = free @ np.linalg.inv(own)
    # Otherwise rounding would decide whether a prediction is determined.
    spread[np.abs(spread) < _NOTHING * np.abs(spread).max(axis=0)] = 0.0
    return spread / scale[:, None] * scale[pivots]


def _tangent(active: Matrix) -> Matrix:
    """The directions that active constraints allow, in orthogonal columns."""
    size = active.shape[1]
    is_single = (active != 0).sum(axis=1) == 1
    held = (active[is_single] != 0).any(axis=0)
    basis = np.eye(size)[:, ~held]
    others = active[~is_single] @ basis
    if others.any():
        others = others / _positive(np.linalg.norm(others, axis=1))[:, None]
        basis = basis @ scipy.linalg.null_space(others)
    return basis


def _positive(scale: Vector) -> Vector:
    """The scale, with zeros replaced by ones."""
    return np.where(scale > 0, scale, 1.0)
