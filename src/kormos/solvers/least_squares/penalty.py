"""A loss with the weighted squares of its parameters added to it."""

import copy

import numpy as np

from kormos.solvers.problem import Problem
from kormos.solvers.protocols import GaussNewtonMatrix
from kormos.solvers.protocols import Squares
from kormos.solvers.rejections import SafeGaussNewton
from kormos.types import Matrix
from kormos.types import Vector

_Known = tuple[float, Vector, Matrix]


class PenalizedProblem(Problem):
    """A problem whose loss is that of another problem plus a penalty.

    The penalty of parameters t with weights w is `sum w t^2`. The weights may
    change at any time. The loss itself is not evaluated again at the latest
    point.

    Args:
        problem: the other `Problem`. Callbacks receive its loss, without the
            penalty.

    Attributes:
        weights: w, `(size,)`, above zero once the loss is evaluated.
        matrix: the Gauss-Newton matrix of the loss alone.
    """

    def __init__(self, problem: Problem):
        self.__dict__.update(vars(copy.copy(problem)))
        self.weights = np.zeros(problem.size)
        self.matrix = KnownMatrix(problem.gauss_newton())
        self._of = problem
        self._own = np.nan

    def penalty(self, theta: Vector) -> float:
        """The penalty at a point."""
        return float(self.weights @ theta**2)

    def peek(self, theta: Vector) -> float:
        """Like `Problem.peek`, with the penalty."""
        self._own = super().peek(theta)
        return self._own + self.penalty(theta)

    def evaluate(self, theta: Vector) -> tuple[float, Vector]:
        """Like `Problem.evaluate`, with the penalty."""
        self._own, grad = super().evaluate(theta)
        grad = grad + 2 * self.weights * theta
        return self._own + self.penalty(theta), grad

    def gauss_newton(self) -> SafeGaussNewton:
        """The Gauss-Newton matrix, to which the penalty adds a diagonal."""
        matrix = PenalizedMatrix(self.matrix, self)
        return SafeGaussNewton(matrix, self.tried, self.size)

    def hand_over_counts(self) -> None:
        """Adds what was counted here to the problem of the loss alone."""
        self.jacobians = self._of.jacobians
        self._of.fg_evals = self.fg_evals
        self._of.hessp_evals = self.hessp_evals

    def _counted(self, loss: float) -> float:
        super()._counted(self._own)
        return loss


class KnownMatrix:
    """A Gauss-Newton matrix that is not computed twice at a point.

    Args:
        matrix: the `GaussNewtonMatrix`.
    """

    def __init__(self, matrix: GaussNewtonMatrix):
        self.inner = matrix
        self._known: tuple[str, Vector, _Known] | None = None

    def squares(self, theta: Vector) -> Squares | None:
        """See `GaussNewtonMatrix`."""
        return self.inner.squares(theta)

    def rows(self, theta: Vector, keep: bool = False) -> _Known:
        """See `GaussNewtonMatrix`."""
        return self._at("rows", theta, keep)

    def normal_equations(self, theta: Vector, keep: bool = False) -> _Known:
        """See `GaussNewtonMatrix`."""
        return self._at("normal_equations", theta, keep)

    def _at(self, name: str, theta: Vector, keep: bool) -> _Known:
        known = self._known
        if known and known[0] == name and np.array_equal(known[1], theta):
            return known[2]
        self._known = None
        found: _Known = getattr(self.inner, name)(theta, keep)
        self._known = name, np.array(theta), found
        return found


class PenalizedMatrix:
    """The Gauss-Newton matrix of a loss and a penalty.

    Args:
        matrix: the matrix of the loss.
        problem: the problem, which has the weights.
    """

    has_penalty = True

    def __init__(self, matrix: KnownMatrix, problem: PenalizedProblem):
        self._matrix = matrix
        self._problem = problem

    @property
    def can_bend(self) -> bool:
        return self._matrix.inner.can_bend

    @property
    def outputs(self) -> int:
        return self._matrix.inner.outputs

    def normal_equations(self, theta: Vector, keep: bool = False) -> _Known:
        loss, grad, matrix = self._matrix.normal_equations(theta, keep)
        added = np.diag(2 * self._problem.weights)
        return *self._with_penalty(theta, loss, grad), matrix + added

    def rows(self, theta: Vector, keep: bool = False) -> _Known:
        loss, grad, rows = self._matrix.rows(theta, keep)
        own = np.diag(np.sqrt(2 * self._problem.weights))
        rows = np.concatenate([rows, own])
        return *self._with_penalty(theta, loss, grad), rows

    def squares(self, theta: Vector) -> None:
        """`None`, because the penalty's squares are not those of errors."""
        del theta

    def product(self, theta: Vector, vector: Vector) -> Vector:
        added = 2 * self._problem.weights * vector
        return self._matrix.inner.product(theta, vector) + added

    def bend(self, theta: Vector, vector: Vector) -> Vector:
        # The square roots of the penalty are linear, so their second derivative
        # is zero.
        return self._matrix.inner.bend(theta, vector)

    def bend_of_rows(self, theta: Vector, vector: Vector) -> None:
        """`None`, because `rows` includes the penalty."""
        del theta, vector

    def _with_penalty(
        self, theta: Vector, loss: float, grad: Vector
    ) -> tuple[float, Vector]:
        weights = self._problem.weights
        return loss + self._problem.penalty(theta), grad + 2 * weights * theta
