"""The rows of data at an estimate, each with its derivatives and its error.

The loss of a row is a function of its outputs, with Hessian H = S'S. With the
Jacobian J of the outputs, the whitened rows are R = SJ, and the Gauss-Newton
matrix is R'R. The whitened error e is defined by R'e being the gradient of the
row's loss. For a sum of squares, R and e are the regressors and the residuals
of a linear regression, weighted.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from kormos.objective.base import FlatObjective
from kormos.objective.functions.residuals import ResidualObjective
from kormos.objective.gauss_newton.host import HostGaussNewton
from kormos.objective.gauss_newton.linearization import Linearization
from kormos.processes import Processes
from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Vector


class RowBlock(NamedTuple):
    """Some rows of data, each of them one observation.

    Attributes:
        penalty_loss: the part of the penalty that belongs to these rows.
        matrix: the whitened rows R, of shape `(n, k, size)`.
        errors: the whitened errors e, `(n, k)`.
        scores: the gradient of the loss of each row, without penalty,
            `(n, size)`.
        weights: the diagonal of the Hessian in the outputs, `(n, k)`.
        slopes: the derivatives of the loss in the outputs, `(n, k)`.
        penalty: the diagonal of the Hessian of the penalty, `(size,)`.
    """

    penalty_loss: float
    matrix: Array
    errors: Matrix
    scores: Matrix
    weights: Matrix
    slopes: Matrix
    penalty: Vector

    @property
    def flat(self) -> Matrix:
        """The whitened rows, one for each output: `(n * k, size)`."""
        return self.matrix.reshape(-1, self.matrix.shape[-1])


def row_blocks(objective: FlatObjective, theta: Vector) -> Iterator[RowBlock]:
    """Yields the rows of an objective's data at a point, in their order.

    Args:
        objective: an objective with a Gauss-Newton matrix.
        theta: the point.

    Raises:
        ValueError: if the loss has no curvature in outputs, or several
            processes share the data.
    """
    check_alone(objective.processes)
    gauss_newton = objective.gauss_newton()
    assert isinstance(gauss_newton, HostGaussNewton)
    for term, at in gauss_newton.linearizations(theta):
        yield _split(_block(at, theta.size), _parts(objective, term))


def check_alone(processes: Processes) -> None:
    """Refuses several processes, because a summary needs all rows in one."""
    if not processes.is_alone:
        raise ValueError(
            "A summary is computed by one process, from all of the data: "
            "compute it in a program without other processes. Received: "
            "processes with a part of the data each"
        )


def _parts(objective: FlatObjective, term: int) -> int | None:
    """The number of observations in a row; `None` if each row is one.

    A block of residuals that depends on no data counts as a single row. It has
    as many observations as the size of its first dimension.
    """
    if not isinstance(objective, ResidualObjective):
        return None
    return objective.program.terms[term].observations


def _block(at: Linearization, size: int) -> RowBlock:
    jacobian = np.asarray(at.blocks[0], "float64")
    slopes, weights = (
        np.array(values, "float64") for values in (at.slope, at.weights)
    )
    if weights.ndim == 2:
        roots = np.sqrt(np.maximum(weights, 0))
        matrix = roots[:, :, None] * jacobian
        errors = slopes / np.where(roots > 0, roots, np.inf)
        diagonal = weights
    else:
        roots, inverses = _roots(weights)
        matrix = roots @ jacobian
        errors = np.einsum("nkl,nl->nk", inverses, slopes)
        diagonal = np.diagonal(weights, axis1=1, axis2=2)
    return RowBlock(
        float(at.penalty),
        matrix,
        errors,
        np.einsum("nk,nkp->np", slopes, jacobian),
        diagonal,
        slopes,
        np.zeros(size) + np.asarray(at.diagonal, "float64"),
    )


def _roots(weights: Array) -> tuple[Array, Array]:
    """For each matrix H = S'S of a stack, S and the inverse of S'.

    It is an inverse on the range of H only: probabilities of classes add up to
    one, so that H has a direction without curvature.
    """
    values, vectors = np.linalg.eigh((weights + weights.swapaxes(1, 2)) / 2)
    largest = values.max(axis=1, initial=0.0, keepdims=True)
    is_curved = values > 64 * np.finfo(float).eps * largest
    sizes = np.sqrt(np.where(is_curved, values, 0.0))[:, :, None]
    turned = vectors.swapaxes(1, 2)
    return sizes * turned, turned / np.where(sizes > 0, sizes, np.inf)


def _split(block: RowBlock, parts: int | None) -> RowBlock:
    """The block, with a row for each of its observations.

    Args:
        block: the block, which has a single row if `parts` is given.
        parts: the number of observations of that row, or `None`.
    """
    if parts is None:
        return block
    size = block.matrix.shape[-1]
    errors, weights, slopes = (
        a.reshape(parts, -1)
        for a in (block.errors, block.weights, block.slopes)
    )
    matrix = block.matrix.reshape(parts, -1, size)
    scores = np.einsum("nk,nkp->np", errors, matrix)
    return block._replace(
        matrix=matrix,
        errors=errors,
        weights=weights,
        slopes=slopes,
        scores=scores,
    )
