"""Steps of a model of the loss that only needs products with its matrix.

Steihaug's conjugate gradients within a trust radius: Nocedal and Wright,
Numerical Optimization, 2006, algorithm 7.2, preconditioned by the diagonal,
in whose norm the radius is measured.
"""

from collections.abc import Callable

import numpy as np

from kormos.solvers.least_squares.spectrum import Step
from kormos.types import Vector

# A step takes at most this many products. Our choice: it bounds the time of an
# iteration; a lower limit leaves more of the gradient in hard systems.
_MOST_PRODUCTS = 200

# The diagonal is estimated from this many products. Our choice: the error falls
# as one over the square root of it, and the diagonal is only a preconditioner
# and a scale. Every new point pays for these products.
PROBES = 8
# An estimate is repeated while one entry of the scaled matrix is more than
# this many times another, but only so often. Our choice: each time halves the
# number of digits by which entries are apart, so these are enough for units of
# any size, and the estimates themselves are wrong by a few times.
_UNEVEN, _MOST_PASSES = 100.0, 8

# The part of the gradient that a step leaves. Our choice, for networks: steps
# that leave more are cheaper, but so many more of them are needed.
_ACCURACY = 0.01


class Products:
    """The model F + g'p + p'Ap / 2, by products with A.

    Args:
        product: function of a vector `(size,)` that returns A times it.
        scale: D, `(size,)`, positive; infinite for what is held fixed.
        grad: g, `(size,)`.
    """

    has_full_rank = False
    name = "conjugate gradients"

    def __init__(
        self, product: Callable[[Vector], Vector], scale: Vector, grad: Vector
    ):
        self.scale = scale
        self._product = product
        self._inverse = 1 / scale
        self._lengths = np.where(np.isfinite(scale), scale, 0.0)
        self._slope = grad * self._inverse

    def promise(self, enough: float) -> float | None:
        """What the undamped step predicts: known only without a gradient."""
        del enough
        return None if self._slope.any() else 0.0

    def scaled(self, step: Vector) -> float:
        """The 2-norm of D times a step."""
        return float(np.linalg.norm(self._lengths * step))

    def within(self, radius: float, guess: float) -> Step:
        """A step no longer than the radius."""
        del guess
        return self._step(radius, 0.0)

    def damped(self, damping: float) -> Step:
        """The step that a damping makes."""
        return self._step(np.inf, damping)

    def bend(self, slope: Vector, damping: float) -> Vector:
        """Steps by products are not accelerated."""
        raise NotImplementedError

    def _step(self, radius: float, damping: float) -> Step:
        # In the scaled variables Dp.
        def apply(vector: Vector) -> Vector:
            product = self._inverse * self._product(self._inverse * vector)
            return product + damping * vector

        step = np.zeros_like(self._slope)
        product = np.zeros_like(step)
        residual = self._slope.copy()
        direction = -residual
        square = residual @ residual
        goal = _ACCURACY**2 * square
        for _ in range(_MOST_PRODUCTS):
            image = apply(direction)
            curvature = direction @ image
            # The model falls without end where the curvature is not positive.
            length = square / curvature if curvature > 0 else np.inf
            if not np.linalg.norm(step + length * direction) < radius:
                step, product = _to_radius(
                    step, product, direction, image, radius
                )
                break
            step = step + length * direction
            product = product + length * image
            residual = residual + length * image
            before, square = square, residual @ residual
            if square <= goal:
                break
            direction = -residual + (square / before) * direction
        promised = -(self._slope @ step + step @ product / 2)
        return Step(
            vector=self._inverse * step,
            length=float(np.linalg.norm(step)),
            promised=float(promised),
            damping=damping,
        )


def diagonal(product: Callable[[Vector], Vector], size: int) -> Vector:
    """An estimate of the diagonal of a positive semidefinite matrix.

    It is the mean of v times Av over vectors v of random signs: C. Bekas, E.
    Kokiopoulou and Y. Saad, "An estimator for the diagonal of a matrix", Appl.
    Numer. Math. 57, 2007, after Hutchinson. An entry counts as at least its own
    uncertainty, which comes from the other entries of its row. In the
    parameters' own units a small effect would be lost in the noise of a large
    one. So the matrix is scaled by an estimate and estimated again, until it is
    nearly even. Nothing is taken from earlier points: a resumed fit finds the
    same.

    Args:
        product: function of a vector `(size,)` that returns A times it.
        size: the number of parameters.

    Returns:
        The diagonal, `(size,)`, zero only where all of the row is.
    """
    rng = np.random.default_rng(0)
    known = np.ones(size)
    for _ in range(_MOST_PASSES):
        known = np.where(known > 0, known, known.max() or 1.0)
        found = _estimate(product, 1 / np.sqrt(known), rng)
        known = known * found
        effects = found[found > 0]
        if not effects.max(initial=0.0) > _UNEVEN * effects.min(initial=np.inf):
            break
    return known


def _estimate(
    product: Callable[[Vector], Vector],
    inverse: Vector,
    rng: np.random.Generator,
) -> Vector:
    """An estimate of the diagonal of a matrix that is scaled from both sides.

    Returns:
        The estimates, `(size,)`, or their uncertainties where those are larger.
    """
    total, squares = np.zeros_like(inverse), np.zeros_like(inverse)
    for _ in range(PROBES):
        signs = rng.choice([-1.0, 1.0], size=inverse.size)
        one = signs * inverse * product(inverse * signs)
        total, squares = total + one, squares + one**2
    mean = total / PROBES
    variance = np.maximum(squares / PROBES - mean**2, 0.0)
    return np.maximum(mean, np.sqrt(variance / (PROBES - 1)))


def _to_radius(
    step: Vector,
    product: Vector,
    direction: Vector,
    image: Vector,
    radius: float,
) -> tuple[Vector, Vector]:
    """Along a direction to the radius, or not at all if that is infinite."""
    if not np.isfinite(radius):
        return step, product
    a, b = direction @ direction, step @ direction
    c = step @ step - radius**2
    length = (-b + np.sqrt(max(float(b**2 - a * c), 0.0))) / a
    return step + length * direction, product + length * image
