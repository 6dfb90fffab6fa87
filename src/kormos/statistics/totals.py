"""Sums over all rows of data at an estimate."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from kormos.statistics.fits import Fit
from kormos.statistics.information import triangle
from kormos.statistics.rows import RowBlock
from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Vector

# Two numbers are the same if they differ by less than this part. Summing in
# another order changes far less.
_SAME = 1e-9


class Totals(NamedTuple):
    """Sums over all rows of data.

    Attributes:
        factor: a triangular matrix T; T'T is the Gauss-Newton matrix of the
            loss without its penalty.
        penalty: the diagonal of the Hessian of the penalty, `(size,)`.
        penalty_loss: the penalty.
        squares: the sum of the squared whitened errors.
        curvatures: the sum of the Hessian's diagonal in the outputs.
        logs: the sum of the logarithms of the positive entries of this
            diagonal.
        entries: the number of these entries.
        spread: the sum of the whitened squares of the targets around their
            mean, or around zero for a linear model without a constant; NaN
            without targets.
        means: the number of means around which the spread is.
    """

    factor: Matrix
    penalty: Vector
    penalty_loss: float
    squares: float
    curvatures: float
    logs: float
    entries: int
    spread: float
    means: int


class _Sums:
    """Adds up the sums of `Totals`, except for the factor."""

    def __init__(self, size: int) -> None:
        self.penalty = np.zeros(size)
        self.squares = self.curvatures = self.logs = 0.0
        self.penalty_loss = 0.0
        self.count = 0
        # R'v and v'v, where v is the whitened constant; and whether R theta is
        # the prediction.
        self.constants = np.zeros(size)
        self.unlike = self.predicted = 0.0
        self.kept: list[tuple[Matrix, Matrix]] = []

    def add(self, block: RowBlock) -> None:
        """Adds a block."""
        is_used = block.weights > 0
        self.penalty += block.penalty
        self.penalty_loss += block.penalty_loss
        self.squares += float(np.sum(block.errors**2))
        self.curvatures += float(np.sum(block.weights[is_used]))
        self.logs += float(np.sum(np.log(block.weights[is_used])))
        self.count += int(is_used.sum())

    def add_targets(
        self, block: RowBlock, targets: Matrix, theta: Vector
    ) -> None:
        """Adds the sums that R-squared needs.

        Args:
            block: the block, of a sum of squares.
            targets: its targets, `(n, k)`.
            theta: the estimate.
        """
        if targets.shape != block.errors.shape:
            raise ValueError(
                "The targets must have a value for each residual. Received: "
                f"targets of shape {targets.shape} for residuals of shape "
                f"{block.errors.shape}"
            )
        roots = np.sqrt(np.maximum(block.weights, 0))
        self.constants += block.flat.T @ roots.reshape(-1)
        predicted = roots * targets + block.errors
        linear = block.matrix @ theta
        self.unlike += float(np.sum((linear - predicted) ** 2))
        self.predicted += float(np.sum(predicted**2))
        self.kept.append((block.weights, targets))

    def totals(self, factor: Matrix, spread: float, means: int) -> Totals:
        """All sums, together with the given ones."""
        return Totals(
            factor,
            np.maximum(self.penalty, 0.0),
            self.penalty_loss,
            self.squares,
            self.curvatures,
            self.logs,
            self.count,
            spread,
            means,
        )

    def spread(
        self, factor: Matrix, channels: Array | None
    ) -> tuple[float, int]:
        """The spread of the targets, and the number of means it is around.

        Args:
            factor: see `Totals`.
            channels: see `Fit`.
        """
        if not self.kept:
            return np.nan, 1
        weights, targets = map(np.concatenate, zip(*self.kept, strict=True))
        is_linear = self.unlike <= _SAME**2 * self.predicted
        has_constant = True
        if is_linear:
            # The length of the constant's projection on the range of R.
            scale = np.linalg.norm(factor, axis=0)
            scale = np.where(scale > 0, scale, 1.0)
            _, values, right = np.linalg.svd(
                factor / scale, full_matrices=False
            )
            kept = values > 1e-12 * values.max(initial=0.0)
            part = (right[kept] @ (self.constants / scale)) / values[kept]
            total = weights.sum()
            has_constant = bool(abs(part @ part - total) <= 1e-6 * total)
        if not has_constant:
            return float(np.sum(weights * targets**2)), 0
        if channels is None:
            channels = np.arange(targets.shape[1])
        sums, totals = (
            np.bincount(channels, column.sum(axis=0))
            for column in (weights * targets, weights)
        )
        center = (sums / totals)[channels]
        return float(np.sum(weights * (targets - center) ** 2)), len(sums)


def sums_alone(fit: Fit) -> tuple[Totals, Vector]:
    """The sums over the rows without the factor, and its squared column norms.

    Args:
        fit: the fit.

    Returns:
        A `Totals` with no rows in its factor and no spread; and the diagonal
        of the Gauss-Newton matrix without the penalty, `(size,)`.
    """
    size = fit.theta.size
    sums, diagonal = _Sums(size), np.zeros(size)
    for block in fit.rows():
        sums.add(block)
        diagonal += np.einsum("nkp,nkp->p", block.matrix, block.matrix)
    return sums.totals(np.zeros((0, size)), np.nan, 1), diagonal


def totals(fit: Fit) -> Totals:
    """The sums over the rows of a fit, in one pass over the data."""
    size = fit.theta.size
    sums, first = _Sums(size), 0

    def rows() -> Iterator[Matrix]:
        nonlocal first
        for block in fit.rows():
            sums.add(block)
            last = first + len(block.errors)
            if fit.targets is not None:
                targets = fit.targets[first:last]
                sums.add_targets(block, targets, fit.theta)
            first = last
            yield block.flat

    factor = triangle(rows(), size)
    if fit.targets is not None and len(fit.targets) != first:
        raise ValueError(
            "The targets must have a value for each row that was fitted; with "
            "`nan_policy='omit'` these are the rows without NaN. Received: "
            f"{len(fit.targets)} targets for {first} rows"
        )
    if not (np.isfinite(factor).all() and np.isfinite(sums.squares)):
        raise ValueError(
            "The derivatives at the estimate are not finite, so that there "
            "are no standard errors: fit the model first, or look for the "
            "cause with `kormos.check`. Received: NaN or infinite derivatives"
        )
    return sums.totals(factor, *sums.spread(factor, fit.channels))
