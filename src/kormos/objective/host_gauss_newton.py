"""The Gauss-Newton matrix for solvers, whose arithmetic is NumPy's."""

import numpy as np

from kormos import backend
from kormos.numerics.vectors import to_array


class HostGaussNewton:
    """A `GaussNewton` at given data, for float64 arrays of shape `(size,)`.

    Args:
        compiled: the `GaussNewton`.
        objective: the `FlatObjective` whose data it is.
    """

    def __init__(self, compiled, objective):
        self._compiled = compiled
        self._objective = objective

    @property
    def outputs(self):
        """The number of outputs of all rows of data."""
        terms, counts = self._compiled.terms, self._objective.row_counts
        return sum(t.width * n for t, n in zip(terms, counts, strict=True))

    @property
    def has_penalty(self):
        """Whether a part of the loss depends on more than the outputs."""
        return any(term.has_penalty for term in self._compiled.terms)

    def normal_equations(self, theta):
        """Loss, gradient `(size,)`, matrix `(size, size)`: upper triangle."""
        if backend.on_cpu():
            return self._summed(theta)
        compiled = self._compiled.normal_equations
        with backend.wide():
            loss, grad, matrix = self._objective.total(compiled, theta)
            return float(loss), to_array(grad), to_array(matrix)

    def _summed(self, theta):
        """The normal equations by BLAS, which takes half as long as XLA."""
        size = len(theta)
        loss, total = 0.0, np.zeros((size + 1, size + 1))
        matrix, grad = total[:-1, :-1], total[:-1, -1]
        for own_loss, own_grad, factor, diagonal in self._factors(theta):
            loss += own_loss
            # Of a matrix and its own transpose NumPy computes one triangle.
            total += factor.T @ factor
            grad += own_grad
            matrix[np.diag_indices(size)] += diagonal
        return loss, grad, matrix

    def rows(self, theta):
        """Loss, gradient, and R, whose R'R is the matrix."""
        loss, grad, rows = 0.0, np.zeros(len(theta)), []
        for own_loss, own_grad, factor, diagonal in self._factors(theta):
            loss += own_loss
            grad += own_grad + factor[:, :-1].T @ factor[:, -1]
            # It may be the device's own memory.
            rows.append(np.array(factor[:, :-1]))
            if diagonal.any():
                rows.append(np.diag(np.sqrt(diagonal)))
        return loss, grad, np.concatenate(rows)

    def _factors(self, theta):
        with backend.wide():
            for piece in self._objective.pieces():
                yield from self._compiled.factors(theta, *piece)

    def product(self, theta, vector):
        """The matrix times a vector."""
        return self._total(self._compiled.product, theta, vector)

    def bend(self, theta, vector):
        """J'H times the second derivative of the outputs along a vector."""
        return self._total(self._compiled.bend, theta, vector)

    def _total(self, compiled, *vectors):
        with backend.wide():
            return to_array(self._objective.total(compiled, *vectors))
