"""The Gauss-Newton model of the loss at a point, made in one of two ways."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kormos.arithmetic.vectors import symmetric
from kormos.solvers.convergence import size_of_loss
from kormos.solvers.least_squares import factors
from kormos.solvers.least_squares import spectrum
from kormos.solvers.newton.diagonal import PROBES
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import GaussNewtonMatrix
from kormos.solvers.protocols import LeastSquaresSettings
from kormos.solvers.protocols import LocalModel
from kormos.types import Matrix
from kormos.types import Vector

# A dense matrix is not formed if it would take more than this many bytes,
# including its eigenvectors and LAPACK's workspace of two more. Our choice:
# beside a model, it still fits into the memory of a small machine.
_MOST_BYTES, MATRICES = 2**30, 4

# Up to this many parameters, the matrix A is kept with each point. Our choice:
# it then takes almost no memory, and its eigenvalues take almost no time.
FEW = 64

# For at most this many parameters the matrix is formed even if the user asks
# for products with it. Our choice: it then takes no more products than two
# estimates of its diagonal, and steps are exact.
_FEW_FOR_PRODUCTS = 2 * PROBES

# A squared column norm of J of at most this is zero. Outputs at which the loss
# has no curvature get tiny weights, rather than zero, and leave such norms.
_ZERO_SQUARE = 1e-200

# The shortest column of J counts as at least this part of the longest while
# parameters are restrained. Our choice: with a smaller part, parameters with
# almost no effect make far too long steps; a larger one slows down those with a
# small effect.
_LEAST_EFFECT = 1e-3

# A scale of more than this many times the present column norms does not
# describe this point. Our choice: with a smaller number more ends are tried
# again with a new scale.
_STALE = 16.0


class Linearized(NamedTuple):
    """What is known at a point.

    Attributes:
        theta: the point, `(size,)`.
        loss: the loss there.
        row_loss: the loss, evaluated row by row.
        grad: the gradient, `(size,)`.
        model: the model of the loss.
        matrix: its matrix A, `(size, size)`, for at most `FEW` parameters.
    """

    theta: Vector
    loss: float
    row_loss: float
    grad: Vector
    model: LocalModel
    matrix: Matrix | None = None


class LocalModels:
    """Makes models of the loss.

    Args:
        problem: the problem.
        solver: `"rows"`, `"dense"` or `"cg"`, which form the matrix, or
            `"auto"` to choose by memory.
        is_scaled: whether parameters are scaled by the columns of J.
        scale: the scale so far, `(size,)`.
        bends: whether `bend` will be called.

    Attributes:
        solver: `"rows"` or `"dense"`, the way that was chosen.
        outputs: the number of outputs of all rows of data.
        scale: the largest norm that each column of J has had (Moré 1978) since
            the latest `forget`.
        norms: the norms of the columns at the latest point.
        is_restrained: whether parameters with almost no effect, compared with
            others, are held back.
    """

    def __init__(
        self,
        problem: Problem,
        solver: str,
        is_scaled: bool,
        scale: Vector,
        bends: bool,
    ):
        self._problem = problem
        self._curvature = problem.gauss_newton()
        self._is_scaled = is_scaled
        self._keeps = bends
        self.outputs = self._curvature.outputs
        self.scale = self.norms = scale
        self.is_restrained = False
        # With `"cg"`, this class is only used for few parameters.
        self.solver = "dense" if solver == "cg" else solver
        if solver == "auto":
            self.solver = _way(self._curvature, problem.size)

    @property
    def can_bend(self) -> bool:
        """Whether `bend` can be called."""
        return self._curvature.can_bend

    @property
    def is_stale(self) -> bool:
        """Whether the scale describes other points than the latest one."""
        present = np.where(self.norms > 0, self.norms, np.inf)
        return self._is_scaled and bool((self.scale > _STALE * present).any())

    @property
    def is_uneven(self) -> bool:
        """Whether some parameters have almost no effect beside others."""
        least = _LEAST_EFFECT * self.norms.max(initial=0.0)
        return self._is_scaled and bool((self.norms < least).any())

    def forget(self) -> None:
        """Takes the scale from the next point only."""
        self.scale = np.zeros_like(self.scale)

    def at(self, theta: Vector, loss: float) -> Linearized | None:
        """What is known at a point, or `None` if it is not finite."""
        is_square = self.solver != "rows"
        if is_square:
            own, grad, matrix = self._curvature.normal_equations(
                theta, self._keeps
            )
            squares = np.diagonal(matrix)
        else:
            # Factors of JJ' use the rows themselves for `bend`.
            keeps = self._keeps and not self._has_factors
            own, grad, matrix = self._curvature.rows(theta, keeps)
            squares = np.einsum("mp,mp->p", matrix, matrix)
        if not (np.isfinite(grad).all() and np.isfinite(matrix).all()):
            return None
        squares = np.where(squares > _ZERO_SQUARE, squares, 0.0)
        straight = (squares == 0) & (grad != 0)
        if straight.any():
            # A gradient without curvature. A small curvature lets these
            # parameters follow it.
            if not is_square:
                matrix, is_square = matrix.T @ matrix, True
            squares[straight] = grad @ grad / size_of_loss(loss)
            matrix[straight, straight] = squares[straight]
        scale = self._rescaled(np.sqrt(squares), theta, grad)
        make = self._factorization(is_square, len(matrix) < len(grad))
        model = make(matrix, scale, grad, self._problem.evaluation_eps)
        kept = None
        if len(grad) <= FEW:
            kept = symmetric(matrix) if is_square else matrix.T @ matrix
        return Linearized(theta, loss, own, grad, model, kept)

    def evaluate(self, theta: Vector) -> tuple[float, Vector]:
        """Loss and gradient at a point, evaluated row by row as J is."""
        if self.solver == "rows":
            return self._curvature.rows(theta)[:2]
        return self._curvature.normal_equations(theta)[:2]

    def matrix(self, theta: Vector) -> Matrix:
        """The Gauss-Newton matrix at a point, `(size, size)`."""
        if self.solver == "rows":
            rows = self._curvature.rows(theta)[2]
            return rows.T @ rows
        return symmetric(self._curvature.normal_equations(theta)[2])

    def row_loss(self, theta: Vector) -> float:
        """The loss at a point, evaluated row by row as J is."""
        return self.evaluate(theta)[0]

    def bend(self, theta: Vector, step: Vector) -> Vector:
        """J'H times the second derivative of the outputs along a step.

        Faster at the point of the latest `at`.
        """
        self._problem.hessp_evals += 1
        return self._curvature.bend(theta, step)

    def acceleration(
        self, here: Linearized, step: Vector, damping: float
    ) -> Vector | None:
        """The geodesic acceleration along a step, or `None` if not finite."""
        model = here.model
        if isinstance(model, factors.RowFactors):
            rows = self._curvature.bend_of_rows(here.theta, step)
            if rows is not None:
                self._problem.hessp_evals += 1
                is_finite = np.isfinite(rows).all()
                return model.bend_of_rows(rows, damping) if is_finite else None
        slope = self.bend(here.theta, step)
        is_finite = np.isfinite(slope).all()
        return model.bend(slope, damping) if is_finite else None

    def _factorization(
        self, is_square: bool, is_wide: bool
    ) -> Callable[[Matrix, Vector, Vector, float], LocalModel]:
        """What makes a model of A, or of R with R'R = A.

        Args:
            is_square: whether it is made of A.
            is_wide: whether R has fewer rows than columns.
        """
        if is_square:
            has_factors = self._has_factors
            return factors.MatrixFactors if has_factors else spectrum.of_matrix
        has_factors = self._has_factors and is_wide
        return factors.RowFactors if has_factors else spectrum.of_rows

    @functools.cached_property
    def _has_factors(self) -> bool:
        return not self._curvature.has_penalty and factors.are_fast(
            self.outputs, self._problem.size
        )

    def _rescaled(self, norms: Vector, theta: Vector, grad: Vector) -> Vector:
        """The scale, infinite where a parameter is held at its bound."""
        self.norms = norms
        if self._is_scaled:
            self.scale = scale = np.maximum(self.scale, norms)
            if self.is_restrained:
                scale = np.maximum(scale, _LEAST_EFFECT * norms.max())
        else:
            self.scale = scale = np.ones_like(norms)
        scale = np.where(scale > 0, scale, 1.0)
        if self._problem.is_bounded:
            lower, upper = self._problem.box
            held = (theta <= lower) & (grad > 0)
            held |= (theta >= upper) & (grad < 0)
            scale = np.where(held, np.inf, scale)
        return scale


def takes_products(problem: Problem, settings: LeastSquaresSettings) -> bool:
    """Whether steps are to come from products with the matrix.

    Args:
        problem: the problem.
        settings: the `LevenbergMarquardt`.
    """
    size, solver = problem.size, settings.linear_solver
    if solver == "cg":
        return size > _FEW_FOR_PRODUCTS
    # These are defined by the matrix.
    needs_matrix = settings.preset is not None or settings.regularization
    if solver != "auto" or needs_matrix:
        return False
    curvature = problem.gauss_newton()
    is_dense = _way(curvature, size) == "dense"
    return is_dense and 8 * MATRICES * size**2 > _MOST_BYTES


def _way(curvature: GaussNewtonMatrix, size: int) -> str:
    """Which of the two ways takes less memory."""
    rows = curvature.outputs
    if spectrum.is_small(rows, size):
        return "rows"
    is_wide = not curvature.has_penalty and rows < size
    return "rows" if is_wide and 8 * rows * size <= _MOST_BYTES else "dense"
