"""An estimate, and how to evaluate the loss that it minimizes."""

import dataclasses
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import numpy as np

from kormos.free_memory import check_square
from kormos.objective.base import FlatObjective
from kormos.solvers.problem import Constraint
from kormos.statistics.likelihoods import Likelihood
from kormos.statistics.rows import RowBlock
from kormos.statistics.rows import row_blocks
from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Vector

# The matrices that are held at once: the information and the covariance, their
# factors, products and workspace.
_MATRICES = 8


@dataclasses.dataclass(frozen=True)
class Fit:
    """An estimate, and how to evaluate the loss that it minimizes.

    Attributes:
        objective: the loss, at all data.
        theta: the estimate, `(size,)`.
        likelihood: the relation of the loss to the probability of the data.
        active: the derivatives of the active constraints, `(m, size)`.
        scores: the gradient of the loss of every row, `(n, size)`, if the loss
            is not a function of outputs but its rows are known; or `None`.
        targets: the targets, `(n, k)`, or `None`.
        channels: for each of the k entries of a row, the number of the output
            channel whose mean it shares; or `None` if each has its own.
        function: function of data that predicts, with `keras.ops`, or `None`.
        box: the lower and upper bounds, or a pair of `None`.
        is_constrained: whether the fit has constraints besides bounds.
        deviations: the standard deviations by which the function's residuals
            were divided, `(n, m)` where m divides k, or `(1, 1)`; or `None`.
    """

    objective: FlatObjective
    theta: Vector
    likelihood: Likelihood
    active: Matrix
    scores: Matrix | None = None
    targets: Matrix | None = None
    channels: Array | None = None
    function: Callable[..., Any] | None = None
    box: tuple[Vector | None, Vector | None] = (None, None)
    is_constrained: bool = False
    deviations: Matrix | None = None

    @property
    def has_rows(self) -> bool:
        """Whether the loss is a function of outputs of rows."""
        try:
            self.objective.gauss_newton()
        except ValueError:
            return False
        return True

    def gradient(self) -> Vector:
        """The gradient of the loss; zero at an optimum, also at L1's kinks."""
        parts = self.objective.in_parts(None, None)
        if parts is not None:
            return parts.least_subgradient(self.theta)
        return np.asarray(self.objective.value_and_grad(self.theta)[1])

    def check_refits(self) -> None:
        """Refuses to refit a model with constraints.

        Raises:
            ValueError: if there are constraints besides bounds.
        """
        if self.is_constrained:
            raise ValueError(
                "Profiles and bootstraps can fit again within bounds, but "
                "not under constraints: use `method='wald'`. Received: a fit "
                "with constraints"
            )

    def rows(self) -> Iterator[RowBlock]:
        """Yields the rows of the data."""
        first = 0
        for block in row_blocks(self.objective, self.theta):
            last = first + len(block.errors)
            yield self._weighted(block, slice(first, last))
            first = last

    def _weighted(self, block: RowBlock, rows: slice) -> RowBlock:
        """A block with the weights of the residuals that were divided."""
        if self.deviations is None:
            return block
        own = self.deviations
        own = own[rows] if len(own) > 1 else own
        own = np.repeat(own, block.weights.shape[1] // own.shape[1], axis=1)
        return block._replace(weights=block.weights / own**2)

    def check_size(self) -> None:
        """Refuses matrices that are too large.

        Raises:
            ValueError: if they are.
        """
        check_square(
            "The covariance of all parameters is a dense matrix",
            self.objective.size,
            _MATRICES,
            "Request only some of them by `parameters=[...]` (an empty list "
            "is enough for `predict`), or freeze layers by `trainable = "
            "False`.",
        )


def active_constraints(
    theta: Vector,
    box: tuple[Vector | None, Vector | None],
    constraints: Sequence[Constraint],
    tolerance: float,
) -> Matrix:
    """The derivatives of the constraints that are active at a point.

    Args:
        theta: the point.
        box: the lower and upper bounds, or a pair of `None`.
        constraints: the constraints.
        tolerance: the largest value, as a part of the gradient's 1-norm in
            units of the parameters, that counts as zero.
    """
    size = theta.size
    lower, upper = box
    found: list[Array] = [np.zeros((0, size))]
    if lower is not None and upper is not None:
        is_held = (theta <= lower) | (theta >= upper)
        places = np.flatnonzero(is_held)
        rows = np.zeros((places.size, size))
        rows[np.arange(places.size), places] = 1.0
        found.append(rows)
    for constraint in constraints:
        values, rows = constraint.fun(theta), constraint.jac(theta)
        scale = np.abs(rows) @ np.maximum(np.abs(theta), 1.0)
        is_active = np.abs(values) <= tolerance * scale
        is_equation = np.full(len(values), constraint.type == "eq")
        found.append(rows[is_active | is_equation])
    return np.concatenate(found)
