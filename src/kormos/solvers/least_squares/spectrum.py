"""Damped Gauss-Newton steps from one factorization, for every damping.

The model of the loss at a point is F + g'p + p'Ap / 2. With the scale D and
the eigenvalues and vectors of D^-1 A D^-1 = V diag(s) V', the step that a
damping l makes, p = -(A + l D^2)^-1 g = -D^-1 V (V'D^-1 g / (s + l)), costs a
product with V, whatever l is.
"""

from typing import NamedTuple

import numpy as np

from kormos.solvers.least_squares.eigenvectors import Eigenvectors
from kormos.solvers.least_squares.eigenvectors import RowEigenvectors
from kormos.solvers.least_squares.eigenvectors import eigenvectors

# Factors of so many entries go through their singular values, which keep twice
# the digits that the matrix does.
_SMALL = 2**16

# Singular values of so many roundings of J tell nothing of it.
_HIDDEN = 4.0


class Step(NamedTuple):
    """A step of a model of the loss.

    Attributes:
        vector: the step, `(size,)`.
        length: its scaled length.
        promised: the decrease of the loss that the model promises.
        damping: the damping that makes it.
    """

    vector: np.ndarray
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
        rounding: part of the largest eigenvalue below which one is rounding.
        name: how the matrix was factorized.
    """

    def __init__(self, values, vectors, scale, grad, rounding, name):
        self.values = np.maximum(values, 0)
        self.scale = scale
        self.name = name
        self._lengths = np.where(np.isfinite(scale), scale, 0.0)
        self._vectors = vectors
        self._slopes = self._along(grad)
        self._floor = rounding * self.values.max(initial=0.0)

    @property
    def has_full_rank(self):
        free = np.count_nonzero(self._lengths)
        return np.count_nonzero(self.values > self._floor) == free

    def damped(self, damping):
        """The step that a damping makes."""
        quotient = self._divided(self._slopes, damping)
        return Step(
            vector=-self._back(quotient),
            length=float(np.linalg.norm(quotient)),
            promised=self._promised(quotient, damping),
            damping=damping,
        )

    def within(self, radius, guess):
        """The step of this length, or the shorter one without damping."""
        return self.damped(self._damping_for(radius, guess))

    @property
    def promise(self):
        """The decrease that the model promises of the undamped step."""
        return self._promised(self._divided(self._slopes, 0.0), 0.0)

    def bend(self, slope, damping):
        """`-(A + l D^2)^-1 slope`."""
        return -self._back(self._divided(self._along(slope), damping))

    def _length(self, damping):
        return np.linalg.norm(self._divided(self._slopes, damping))

    def scaled(self, step):
        """The 2-norm of D times a step."""
        return float(np.linalg.norm(self._lengths * step))

    def _promised(self, quotient, damping):
        """The decrease of the loss that the model promises of a step."""
        return float(np.sum(quotient**2 * (self.values + 2 * damping)) / 2)

    def _damping_for(self, radius, guess):
        """The damping whose step has this length, within a tenth; or zero.

        Newton's method on the secular equation, within brackets (Moré 1978).
        """
        longest = 1.1 * radius
        if self._length(0.0) <= longest:
            return 0.0
        low, high = 0.0, np.linalg.norm(self._slopes) / radius
        damping = guess if 0 < guess < high else 1e-3 * high
        for _ in range(60):
            length = self._length(damping)
            if abs(length - radius) <= 0.1 * radius:
                break
            if length > radius:
                low = damping
            else:
                high = damping
            quotient = self._divided(self._slopes, damping)
            slope = np.sum(quotient**2 / (self.values + damping)) / length
            damping += (length / radius) * (length - radius) / slope
            if not low < damping < high:
                damping = np.sqrt(low * high) if low > 0 else 0.1 * high
        return float(damping)

    def _along(self, vector):
        return self._vectors.along(vector / self.scale)

    def _back(self, slopes):
        return self._vectors.back(slopes) / self.scale

    def _divided(self, slopes, damping):
        if damping > 0:
            return slopes / (self.values + damping)
        safe = np.where(self.values > self._floor, self.values, np.inf)
        return slopes / safe


def of_matrix(matrix, scale, grad, epsilon=2.0**-52):
    """The spectrum of a matrix, of which the upper triangle counts.

    Args:
        matrix: A, `(size, size)`.
        scale: D, `(size,)`.
        grad: g, `(size,)`.
        epsilon: the spacing of numbers near one in what A is made of.
    """
    scaled = matrix / scale / scale[:, None]
    values, vectors = eigenvectors(scaled)
    rounding = max(len(scale) * 2.0**-52, (_HIDDEN * epsilon) ** 2)
    name = f"eigenvalues of J'J, {len(scale)} x {len(scale)}"
    return Spectrum(values, vectors, scale, grad, rounding, name)


def of_rows(rows, scale, grad, epsilon=2.0**-52):
    """The spectrum of R'R, from R of shape `(rows, size)`; as `of_matrix`."""
    scaled = rows / scale
    count, size = scaled.shape
    hidden = (_HIDDEN * epsilon) ** 2
    if scaled.size <= _SMALL:
        _, roots, transposed = np.linalg.svd(scaled, full_matrices=False)
        name = f"singular values of J, {count} x {size}"
        rounding = max((max(count, size) * 2.0**-52) ** 2, hidden)
        vectors = Eigenvectors(transposed.T)
        return Spectrum(roots**2, vectors, scale, grad, rounding, name)
    values, of_rows = eigenvectors(scaled @ scaled.T)
    rounding = max(count * 2.0**-52, hidden)
    kept = values > rounding * values.max(initial=0.0)
    values = np.where(kept, values, 0.0)
    vectors = RowEigenvectors(
        scaled, of_rows, np.where(kept, np.sqrt(values), np.inf)
    )
    name = f"eigenvalues of JJ', {count} x {count}"
    return Spectrum(values, vectors, scale, grad, rounding, name)


def is_small(rows, size):
    """Whether a factor of this shape goes through its singular values."""
    return rows * size <= _SMALL
