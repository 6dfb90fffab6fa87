"""Damped Gauss-Newton steps from Cholesky factors, one for each damping.

With the scale D, the matrix is B = D^-1 A D^-1. For A = R'R with R of fewer
rows than columns, Q = R D^-1 and K = QQ', the damped step follows from the
identity (Sherman, Morrison and Woodbury)

    (B + l)^-1 v = (v - Q'(K + l)^-1 Q v) / l.

The eigenvalues, from which `spectrum.py` makes the step of every damping, take
about thirty times as long as a Cholesky factor. Only a few dampings are tried
at a point, so factors are faster where the matrix is large.
"""

import abc
import math

import numpy as np
import scipy.linalg

from kormos.solvers.least_squares.spectrum import Step
from kormos.types import Matrix
from kormos.types import Vector

# The shorter side of J from which factors are used. Our choice: eigenvalues of
# a smaller matrix take less than a tenth of a second, and they also tell the
# rank.
_FEWEST = 1_000
# A step may differ from the radius by this part. Our choice: `lmder` has 0.1,
# but the radius is a guess itself, and here each damping takes a factor.
_RADIUS_TOLERANCE = 0.3
# The most factors for a step. Our choice: two are usual, and the tolerance is
# met after a handful.
_MOST_FACTORS = 12
# The part of the upper bracket with which a search begins: Moré 1978.
_FIRST_DAMPING = 1e-3
# The smallest damping is this many roundings of the largest diagonal entry, for
# each row. Our choice: with one rounding, some matrices have no factor.
_ROUNDINGS = 4.0


class Factors(abc.ABC):
    """The model of the loss at a point, as `protocols.LocalModel`.

    Args:
        square: the matrix to factorize, `(n, n)`, right in the upper triangle.
        scale: D, `(size,)`, positive; infinite for what is held fixed.
        grad: the gradient g, `(size,)`.
        evaluation_eps: the machine epsilon of the dtype in which J
            was evaluated.
        name: the linear algebra, in words.
    """

    # A Cholesky factor does not tell the rank.
    has_full_rank = False

    def __init__(
        self,
        square: Matrix,
        scale: Vector,
        grad: Vector,
        evaluation_eps: float,
        name: str,
    ):
        self.name = name
        self.scale = scale
        self._inverse = 1 / scale
        self._lengths = np.where(np.isfinite(scale), scale, 0.0)
        self._square = square
        self._slope = grad * self._inverse
        largest = float(np.diagonal(square).max(initial=0.0))
        rounding = max(_ROUNDINGS * len(square) * 2.0**-52, evaluation_eps**2)
        self._least = rounding * largest or 1.0
        # Steps that were found, by their damping, and the latest factor.
        self._known: dict[float, Step] = {}
        self._factor: tuple[float, Matrix] | None = None

    @abc.abstractmethod
    def _solved(self, vector: Vector, damping: float) -> Vector:
        """`(B + l)^-1` times a vector `(size,)`."""

    @abc.abstractmethod
    def _bend(self) -> float:
        """`v'Bv` for the scaled gradient v."""

    def promise(self, enough: float) -> float:
        """The decrease that the model predicts for the undamped step.

        The best step along the gradient has a smaller decrease, which needs no
        factor.

        Args:
            enough: if the decrease along the gradient is above this, it is
                returned instead.
        """
        square, bend = float(self._slope @ self._slope), self._bend()
        cauchy = square**2 / (2 * bend) if bend > 0 else 0.0
        if cauchy > enough:
            return cauchy
        return max(cauchy, self.damped(0.0).promised)

    def flat(self, vector: Vector) -> None:
        """`None`: a Cholesky factor does not tell where the matrix is zero."""
        del vector

    def scaled(self, step: Vector) -> float:
        """The 2-norm of D times a step."""
        return float(np.linalg.norm(self._lengths * step))

    def damped(self, damping: float) -> Step:
        """The step that a damping makes."""
        damping = max(damping, self._least)
        if damping not in self._known:
            step = self._solved(self._slope, damping)
            length = float(np.linalg.norm(step))
            fall = float(self._slope @ step) + damping * length**2
            self._known[damping] = Step(
                vector=-self._inverse * step,
                length=length,
                promised=fall / 2,
                damping=damping,
            )
        return self._known[damping]

    def bend(self, slope: Vector, damping: float) -> Vector:
        """`-(A + l D^2)^-1 slope`."""
        slope = slope * self._inverse
        return -self._inverse * self._solved(slope, max(damping, self._least))

    def within(self, radius: float, guess: float) -> Step:
        """A step of about this length, or the undamped one if it is shorter.

        The length falls with the damping, nearly as a power of it. So the
        logarithms are interpolated between the dampings that are known.
        """
        shortest = (1 - _RADIUS_TOLERANCE) * radius
        longest = (1 + _RADIUS_TOLERANCE) * radius
        high = float(np.linalg.norm(self._slope)) / radius
        damping = guess if 0 < guess < high else _FIRST_DAMPING * high
        if self._known:
            damping = self._between(radius)
        for _ in range(_MOST_FACTORS):
            step = self.damped(damping)
            at_least = step.damping <= self._least
            if step.length <= longest and (at_least or step.length >= shortest):
                break
            damping = self._between(radius)
        return step

    def _between(self, radius: float) -> float:
        """The damping for a radius, from the steps that are known."""
        steps = sorted(self._known.values(), key=lambda step: step.damping)
        below = [step for step in steps if step.length > radius]
        above = [step for step in steps if step.length <= radius]
        if below and above:
            near, far = below[-1], above[0]
            power = math.log(near.length / far.length)
            part = math.log(near.length / radius) / power
            ratio = far.damping / near.damping
            return float(near.damping * ratio ** min(max(part, 0.05), 0.95))
        # With little damping the step hardly changes with it; with much damping
        # its length is inversely proportional to it.
        known = below[-1] if below else above[0]
        return float(known.damping * (known.length / radius) ** 2)

    def _through(self, vector: Vector, damping: float) -> Vector:
        """The inverse of the damped matrix times a vector `(n,)`."""
        found = scipy.linalg.cho_solve(
            (self._factored(damping), True), vector, check_finite=False
        )
        return np.asarray(found)

    def _factored(self, damping: float) -> Matrix:
        """The lower Cholesky factor of K + l."""
        if self._factor is None or self._factor[0] != damping:
            self._factor = None
            matrix = self._square.copy()
            matrix[np.diag_indices(len(matrix))] += damping
            factor, _ = scipy.linalg.cho_factor(
                # In Fortran's order, without a copy.
                matrix.T,
                lower=True,
                overwrite_a=True,
                check_finite=False,
            )
            self._factor = damping, factor
        return self._factor[1]


class RowFactors(Factors):
    """The model from R, `(rows, size)`, of fewer rows than columns.

    Args:
        rows: R. It is overwritten.
        scale: see `Factors`.
        grad: see `Factors`.
        evaluation_eps: see `Factors`.
    """

    def __init__(
        self, rows: Matrix, scale: Vector, grad: Vector, evaluation_eps: float
    ):
        rows *= 1 / scale
        self._rows = rows
        name = f"Cholesky factors of JJ', {len(rows)} x {len(rows)}"
        # NumPy computes only one half of a product with the transpose.
        super().__init__(rows @ rows.T, scale, grad, evaluation_eps, name)

    def bend_of_rows(self, rows: Vector, damping: float) -> Vector:
        """Like `bend`, with the slope R' times a vector `(rows,)`."""
        inner = self._through(rows, max(damping, self._least))
        return -self._inverse * (inner @ self._rows)

    def _solved(self, vector: Vector, damping: float) -> Vector:
        inner = self._through(self._rows @ vector, damping)
        return (vector - inner @ self._rows) / damping

    def _bend(self) -> float:
        image = self._rows @ self._slope
        return float(image @ image)


class MatrixFactors(Factors):
    """The model from A, `(size, size)`, right in the upper triangle.

    Args:
        matrix: A. It is overwritten.
        scale: see `Factors`.
        grad: see `Factors`.
        evaluation_eps: see `Factors`.
    """

    def __init__(
        self, matrix: Matrix, scale: Vector, grad: Vector, evaluation_eps: float
    ):
        size = len(matrix)
        matrix /= scale
        matrix /= scale[:, None]
        name = f"Cholesky factors of J'J, {size} x {size}"
        super().__init__(matrix, scale, grad, evaluation_eps, name)

    def _solved(self, vector: Vector, damping: float) -> Vector:
        return self._through(vector, damping)

    def _bend(self) -> float:
        image = scipy.linalg.blas.dsymv(
            1.0, self._square.T, self._slope, lower=1
        )
        return float(self._slope @ image)


def are_fast(rows: int, size: int) -> bool:
    """Whether factors are faster than eigenvalues for J of this shape."""
    return min(rows, size) >= _FEWEST
