"""A chunk's part of the Gauss-Newton matrix, as a product R'R."""

from typing import NamedTuple

import numpy as np
from keras import ops

from kormos import backend
from kormos.objective.compiled import Chunk
from kormos.objective.gauss_newton.linearization import TermDerivatives
from kormos.types import Array
from kormos.types import Scalar
from kormos.types import Tensor
from kormos.types import Vector

# The weight of an output without curvature. It is negligible compared with
# other weights, but its square root can still be divided by in float64.
_SMALLEST_WEIGHT = 2.0**-800


class Factor(NamedTuple):
    """A chunk's loss, gradient g + R's and Gauss-Newton matrix R'R + diag(d).

    Negative entries are removed only from the sum of d over all chunks.
    Compiled functions return a factor of tensors. `on_host` converts it to
    NumPy arrays, whose shapes are given here.

    Attributes:
        loss: the loss.
        grad: the vector g, of shape `(size,)`, or zero.
        diagonal: the vector d, of shape `(size,)`, or zero.
        roots: for each row of data, the square roots S of the Hessian in the
            outputs, H = S'S: of shape `(n, k)` where it is diagonal, or
            `(n, k, k)`.
        matrix: `[R, s]`, of shape `(n * k, size + 1)`, with a row for every
            output of every row of data.
    """

    loss: Scalar
    grad: Array
    diagonal: Array
    roots: Array
    matrix: Array

    def pulled_back(self, directional: Array) -> Vector:
        """J'H times a directional derivative of the outputs.

        Args:
            directional: the derivative, of shape `(n, k)`.

        Returns:
            A vector of shape `(size,)`.
        """
        return weighted(self.roots, directional) @ self.matrix[:, :-1]


def weighted(roots: Array, directional: Array) -> Vector:
    """Square roots S of Hessians times a directional derivative.

    Args:
        roots: see `Factor`.
        directional: the derivative, of shape `(n, k)`.

    Returns:
        A vector of shape `(n * k,)`, of the rows of R.
    """
    if roots.ndim == 2:
        return np.asarray(roots * directional).reshape(-1)
    product = np.einsum("nkl,nl->nk", roots, directional)
    return np.asarray(product).reshape(-1)


def factor_of(
    derivatives: TermDerivatives,
    chunk: Chunk,
    theta: Tensor,
    frozen: list[Tensor],
    term_factors: Tensor,
) -> Factor:
    """A `Factor` of tensors, except for Hessians that are not diagonal.

    Then its `roots` are these Hessians, and its `matrix` is `[J, 0]`:
    `on_host` multiplies it by their square roots.

    For diagonal Hessians, the gradient is left in the column s, because
    one more column of a matrix product takes less time than its own sum.
    """
    at = derivatives.linearize(theta, frozen, term_factors, chunk)
    grad, weights, blocks = at.grad, at.weights, at.blocks
    if len(weights.shape) == 2:
        weights = ops.where(
            weights > _SMALLEST_WEIGHT,
            weights,
            ops.full_like(weights, _SMALLEST_WEIGHT),
        )
        weights = ops.sqrt(weights)
        column = at.slope / weights
        blocks = [ops.expand_dims(weights, 2) * block for block in blocks]
    else:
        grad = grad + at.gradient()
        column = ops.zeros_like(at.slope)
    matrix = ops.concatenate([*blocks, ops.expand_dims(column, 2)], axis=2)
    return Factor(at.loss, grad, at.diagonal, weights, matrix)


def on_host(factor: Factor) -> Factor:
    """The `Factor` of NumPy arrays, from what `factor_of` returns."""
    loss, grad, diagonal, roots, matrix = map(backend.view, factor)
    if roots.ndim > 2:
        roots = _block_roots(roots)
        matrix = roots @ matrix
    matrix = matrix.reshape(-1, matrix.shape[-1])
    return Factor(float(loss), grad, diagonal, roots, matrix)


def _block_roots(weights: Array) -> Array:
    """For each matrix H of a stack, a matrix S with S'S = H."""
    values, vectors = np.linalg.eigh((weights + weights.swapaxes(1, 2)) / 2)
    roots = np.sqrt(np.maximum(values, 0))[:, :, None]
    return roots * vectors.swapaxes(1, 2)
