"""The Gauss-Newton matrix for solvers, whose arithmetic is NumPy's."""

from kormos import backend
from kormos.numerics.vectors import to_array
from kormos.objective.program import count_rows


class HostGaussNewton:
    """A `GaussNewton` at given data, for float64 arrays of shape `(size,)`.

    Args:
        compiled: the `GaussNewton`.
        arguments: function that returns `(frozen, scales, chunks)`.
    """

    def __init__(self, compiled, arguments):
        self._compiled = compiled
        self._arguments = arguments

    @property
    def outputs(self):
        """The number of outputs of all rows of data."""
        chunks = self._arguments()[2]
        return sum(
            term.width * count_rows(pair)
            for term, pair in zip(self._compiled.terms, chunks, strict=True)
        )

    @property
    def has_penalty(self):
        """Whether a part of the loss depends on more than the outputs."""
        return any(term.has_penalty for term in self._compiled.terms)

    def normal_equations(self, theta):
        """Loss, gradient `(size,)`, matrix `(size, size)`: upper triangle."""
        with backend.wide():
            loss, grad, matrix = self._compiled.normal_equations(
                theta, *self._arguments()
            )
            return float(loss), to_array(grad), to_array(matrix)

    def rows(self, theta):
        """Loss, gradient, and R, whose R'R is the matrix."""
        with backend.wide():
            return self._compiled.rows(theta, *self._arguments())

    def product(self, theta, vector):
        """The matrix times a vector."""
        with backend.wide():
            return to_array(
                self._compiled.product(theta, vector, *self._arguments())
            )

    def bend(self, theta, vector):
        """J'H times the second derivative of the outputs along a vector."""
        with backend.wide():
            return to_array(
                self._compiled.bend(theta, vector, *self._arguments())
            )
