"""The Gauss-Newton matrix for solvers, whose arithmetic is NumPy's."""

import numpy as np

from kormos import backend
from kormos.arithmetic.vectors import number
from kormos.arithmetic.vectors import to_array
from kormos.objective.units import size_of

# Factors of more bytes than this are not kept.
_MOST_KEPT = 2**28


class HostGaussNewton:
    """A `GaussNewton` at given data, for float64 arrays of shape `(size,)`.

    Args:
        compiled: the `GaussNewton`.
        objective: the `FlatObjective` whose data it is.
    """

    def __init__(self, compiled, objective):
        self._compiled = compiled
        self._objective = objective
        # The latest point and its factors, or `None`.
        self._kept = None

    @property
    def outputs(self):
        """The number of outputs of all rows of data."""
        terms, counts = self._compiled.terms, self._objective.row_counts
        return sum(t.width * n for t, n in zip(terms, counts, strict=True))

    @property
    def has_penalty(self):
        """Whether a part of the loss depends on more than the outputs."""
        return any(term.has_penalty for term in self._compiled.terms)

    def normal_equations(self, theta, keep=False):
        """Loss, gradient `(size,)`, matrix `(size, size)`: upper triangle.

        Args:
            theta: the point.
            keep: whether to keep J for `bend`, where it is small.
        """
        if backend.on_cpu():
            return self._summed(theta, keep)
        compiled = self._compiled.normal_equations
        with backend.wide():
            loss, grad, matrix = self._objective.total(compiled, theta)
            return number(loss), to_array(grad), to_array(matrix)

    def _summed(self, theta, keep):
        """The normal equations by BLAS, which takes half as long as XLA."""
        size = len(theta)
        loss, total = 0.0, np.zeros((size + 1, size + 1))
        diagonal = np.zeros(size)
        matrix, grad = total[:-1, :-1], total[:-1, -1]
        for factor in self._factors(theta, keep):
            loss += factor.loss
            # Of a matrix and its own transpose NumPy computes one triangle.
            total += factor.matrix.T @ factor.matrix
            grad += factor.grad
            diagonal += factor.diagonal
        matrix[np.diag_indices(size)] += _positive(diagonal)
        return loss, grad, matrix

    def rows(self, theta, keep=False):
        """Loss, gradient, and R, whose R'R is the matrix; as above."""
        loss, grad, rows = 0.0, np.zeros(len(theta)), []
        diagonal = np.zeros(len(theta))
        for factor in self._factors(theta, keep):
            own, slope = factor.matrix[:, :-1], factor.matrix[:, -1]
            loss += factor.loss
            grad += factor.grad + own.T @ slope
            # It may be the device's own memory.
            rows.append(np.array(own))
            diagonal += factor.diagonal
        if diagonal.any():
            rows.append(np.diag(np.sqrt(_positive(diagonal))))
        return loss, grad, np.concatenate(rows)

    def _factors(self, theta, keep):
        """Yields the `Factor` of each chunk."""
        self._kept, factors = None, []
        is_small = 8 * self.outputs * (len(theta) + 1) <= _MOST_KEPT
        # Of a stream, no more than a batch is to be in memory.
        keep = keep and is_small and not self._objective.is_streamed
        with backend.wide():
            for piece in self._objective.pieces():
                for factor in self._compiled.factors(theta, *piece):
                    if keep:
                        factors.append(factor)
                    yield factor
        if keep:
            self._kept = np.array(theta), factors

    def product(self, theta, vector):
        """The matrix times a vector."""
        size = size_of(vector)
        return self._total(self._compiled.product, theta, vector / size) * size

    def bend(self, theta, vector):
        """J'H times the second derivative of the outputs along a vector.

        Where J is kept, of the latest point, the rest goes forward alone:
        that compiles in half of the time.
        """
        if self._kept is None or not np.array_equal(theta, self._kept[0]):
            return self._total(self._compiled.bend, theta, vector)
        total, kept = np.zeros(len(theta)), iter(self._kept[1])
        with backend.wide():
            for piece in self._objective.pieces():
                for second in self._compiled.second(theta, vector, *piece):
                    total += next(kept).pulled_back(second)
        return total

    def _total(self, compiled, *vectors):
        with backend.wide():
            return to_array(self._objective.total(compiled, *vectors))


def _positive(diagonal):
    """What a convex loss would have; of all rows, not of some."""
    return np.maximum(diagonal, 0.0)
