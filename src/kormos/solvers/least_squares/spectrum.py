"""Damped Gauss-Newton steps from one factorization, for every damping.

The model of the loss at a point is F + g'p + p'Ap / 2. With the scale D and
the eigenvalues and vectors of D^-1 A D^-1 = V diag(s) V', the step that a
damping l makes, p = -(A + l D^2)^-1 g = -D^-1 V (V'D^-1 g / (s + l)), costs a
product with V, whatever l is.
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy.linalg import lapack

from kormos.arithmetic.vectors import dot
from kormos.arithmetic.vectors import norm
from kormos.solvers.least_squares.eigenvectors import Eigenvectors
from kormos.solvers.least_squares.eigenvectors import RowEigenvectors
from kormos.solvers.least_squares.eigenvectors import eigenvectors
from kormos.types import Matrix
from kormos.types import Vector

# A factor of at most this many entries is decomposed by its singular values,
# which keep twice as many digits as the eigenvalues of its square. Our choice:
# larger factors take noticeably longer that way.
_SMALL = 2**16

# Singular values of at most this many roundings of the largest one count as
# zero. Our choice: with a smaller number rounding of J makes long steps, a
# larger one ignores directions that J does show.
_ROUNDINGS = 4.0

# A step may differ from the trust radius by this part: `lmder`'s choice (Moré
# 1978).
_RADIUS_TOLERANCE = 0.1
# Newton's method on the secular equation takes a handful of iterations. This
# limit only stops it where rounding keeps it from the tolerance.
_MOST_ITERATIONS = 60
# The first damping is this part of the upper bracket: Moré 1978, algorithm 5.5.
# Where Newton's method leaves the brackets and the lower one is zero, it
# continues at the second part, our choice.
_FIRST_DAMPING, _BACK_INSIDE = 1e-3, 0.1


class Step(NamedTuple):
    """A step of a model of the loss.

    Attributes:
        vector: the step, `(size,)`.
        length: its scaled length.
        promised: the decrease of the loss that the model predicts.
        damping: the damping that makes it.
    """

    vector: Vector
    length: float
    promised: float
    damping: float


class Spectrum:
    """The model of the loss at a point.

    Args:
        values: eigenvalues s, `(rank,)`, zero or more.
        vectors: V, `(size, rank)`, orthonormal columns where s is not zero:
            `Eigenvectors` or `RowEigenvectors`.
        scale: D, `(size,)`, positive; infinite for what is held fixed.
        grad: the gradient g, `(size,)`.
        rounding: an eigenvalue of at most this part of the largest one is
            zero.
        name: how the matrix was factorized.
    """

    def __init__(
        self,
        values: Vector,
        vectors: Eigenvectors | RowEigenvectors,
        scale: Vector,
        grad: Vector,
        rounding: float,
        name: str,
    ):
        self.values = np.maximum(values, 0)
        self.scale = scale
        self.name = name
        self._lengths = np.where(np.isfinite(scale), scale, 0.0)
        self._vectors = vectors
        self._slopes = self._along(grad)
        self._floor = rounding * self.values.max(initial=0.0)

    @property
    def has_full_rank(self) -> bool:
        """Whether no eigenvalue of the free parameters is zero."""
        free = np.count_nonzero(self._lengths)
        return np.count_nonzero(self.values > self._floor) == free

    def flat(self, vector: Vector) -> Vector:
        """The part of a vector along which the matrix is zero.

        Args:
            vector: the vector, in scaled parameters, `(size,)`.
        """
        free = np.where(self._lengths > 0, vector, 0.0)
        curved = self.values > self._floor
        slopes = np.where(curved, self._vectors.along(free), 0.0)
        return free - self._vectors.back(slopes)

    def damped(self, damping: float) -> Step:
        """The step that a damping makes."""
        quotient = self._scaled_step(damping)
        return Step(
            vector=-self._back(quotient),
            length=float(norm(quotient)),
            promised=self._promised(quotient, damping),
            damping=damping,
        )

    def within(self, radius: float, guess: float) -> Step:
        """The step of this length, or the undamped one if that is shorter."""
        return self.damped(self._damping_for(radius, guess))

    def promise(self, enough: float) -> float:
        """The decrease that the model predicts for the undamped step."""
        del enough
        return self._promised(self._undamped, 0.0)

    def bend(self, slope: Vector, damping: float) -> Vector:
        """`-(A + l D^2)^-1 slope`."""
        return -self._back(self._divided(self._along(slope), damping))

    def scaled(self, step: Vector) -> float:
        """The 2-norm of D times a step."""
        return float(norm(self._lengths * step))

    def _promised(self, quotient: Vector, damping: float) -> float:
        """The decrease of the loss that the model predicts for a step.

        Args:
            quotient: the coefficients of the scaled step in the eigenvectors.
            damping: the damping of the step.
        """
        return float(dot(quotient * quotient, self.values + 2 * damping) / 2)

    def _damping_for(self, radius: float, guess: float) -> float:
        """The damping whose step has about this length, or zero.

        Newton's method on the secular equation, within brackets (Moré 1978).

        Args:
            radius: the longest scaled length of the step.
            guess: a damping to search from, or zero.
        """
        longest = (1 + _RADIUS_TOLERANCE) * radius
        if norm(self._undamped) <= longest:
            return 0.0
        low, high = 0.0, float(norm(self._slopes)) / radius
        damping = guess if 0 < guess < high else _FIRST_DAMPING * high
        for _ in range(_MOST_ITERATIONS):
            quotient = self._scaled_step(damping)
            length = float(norm(quotient))
            if abs(length - radius) <= _RADIUS_TOLERANCE * radius:
                break
            if length > radius:
                low = damping
            else:
                high = damping
            slope = quotient.dot(quotient / (self.values + damping)) / length
            damping += (length / radius) * (length - radius) / slope
            if not low < damping < high:
                inside = _BACK_INSIDE * high
                damping = np.sqrt(low * high) if low > 0 else inside
        return float(damping)

    @functools.cached_property
    def _undamped(self) -> Vector:
        return self._divided(self._slopes, 0.0)

    def _scaled_step(self, damping: float) -> Vector:
        """The negated scaled step, as coefficients of the eigenvectors.

        Args:
            damping: the damping of the step.
        """
        if damping == 0:
            return self._undamped
        return self._divided(self._slopes, damping)

    def _along(self, vector: Vector) -> Vector:
        return self._vectors.along(vector / self.scale)

    def _back(self, slopes: Vector) -> Vector:
        return self._vectors.back(slopes) / self.scale

    def _divided(self, slopes: Vector, damping: float) -> Vector:
        if damping > 0:
            return slopes / (self.values + damping)
        safe = np.where(self.values > self._floor, self.values, np.inf)
        return slopes / safe


def of_matrix(
    matrix: Matrix,
    scale: Vector,
    grad: Vector,
    evaluation_eps: float = 2.0**-52,
) -> Spectrum:
    """The spectrum of a matrix, of which only the upper triangle is read.

    Args:
        matrix: A, `(size, size)`.
        scale: D, `(size,)`.
        grad: g, `(size,)`.
        evaluation_eps: the machine epsilon of the dtype in which J
            was evaluated.
    """
    scaled = matrix / scale / scale[:, None]
    values, vectors = eigenvectors(scaled)
    rounding = max(len(scale) * 2.0**-52, (_ROUNDINGS * evaluation_eps) ** 2)
    name = f"eigenvalues of J'J, {len(scale)} x {len(scale)}"
    return Spectrum(values, vectors, scale, grad, rounding, name)


def of_rows(
    rows: Matrix, scale: Vector, grad: Vector, evaluation_eps: float = 2.0**-52
) -> Spectrum:
    """The spectrum of R'R, from R of shape `(rows, size)`; as `of_matrix`."""
    scaled = rows / scale
    count, size = scaled.shape
    hidden = (_ROUNDINGS * evaluation_eps) ** 2
    if scaled.size <= _SMALL:
        # NumPy's own function takes twice as long.
        _, roots, transposed, info = lapack.dgesdd(scaled, full_matrices=0)
        if info != 0:
            raise np.linalg.LinAlgError("The SVD of J did not converge.")
        name = f"singular values of J, {count} x {size}"
        rounding = max((max(count, size) * 2.0**-52) ** 2, hidden)
        right = Eigenvectors(transposed.T)
        return Spectrum(roots**2, right, scale, grad, rounding, name)
    values, of_rows = eigenvectors(scaled @ scaled.T)
    rounding = max(count * 2.0**-52, hidden)
    kept = values > rounding * values.max(initial=0.0)
    values = np.where(kept, values, 0.0)
    vectors = RowEigenvectors(
        scaled, of_rows, np.where(kept, np.sqrt(values), np.inf)
    )
    name = f"eigenvalues of JJ', {count} x {count}"
    return Spectrum(values, vectors, scale, grad, rounding, name)


def is_small(rows: int, size: int) -> bool:
    """Whether a factor of this shape is decomposed by its singular values."""
    return rows * size <= _SMALL
