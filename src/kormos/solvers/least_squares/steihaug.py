"""Steps of a model of the loss from products with its matrix alone.

Steihaug's conjugate gradients within a trust radius: Nocedal and Wright,
Numerical Optimization, 2006, algorithm 7.2, preconditioned by the diagonal,
in whose norm the radius is measured.
"""

import numpy as np

from kormos.solvers.least_squares.spectrum import Step

_MOST_PRODUCTS = 200
_PROBES = 8

# The part of the gradient that a step leaves. Networks want it small: steps
# that leave more are cheaper, and so many more are needed.
_ACCURACY = 0.01


class Products:
    """The model F + g'p + p'Ap / 2, of products with A.

    Args:
        product: function of a vector `(size,)` that returns A times it.
        scale: D, `(size,)`, positive; infinite for what is held fixed.
        grad: g, `(size,)`.
    """

    has_full_rank = False
    name = "conjugate gradients"

    def __init__(self, product, scale, grad):
        self.scale = scale
        self._product = product
        self._inverse = 1 / scale
        self._lengths = np.where(np.isfinite(scale), scale, 0.0)
        self._slope = grad * self._inverse

    @property
    def promise(self):
        """The decrease that no step exceeds, where it is known: at zero."""
        return None if self._slope.any() else 0.0

    def scaled(self, step):
        """The 2-norm of D times a step."""
        return float(np.linalg.norm(self._lengths * step))

    def within(self, radius, guess):
        """A step no longer than this."""
        del guess
        return self._step(radius, 0.0)

    def damped(self, damping):
        """The step that a damping makes."""
        return self._step(np.inf, damping)

    def _step(self, radius, damping):
        # In the scaled variables Dp.
        def apply(vector):
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
            length = square / curvature if curvature > 0 else np.inf
            # Without end where the curvature is not positive.
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


def diagonal(product, size):
    """An estimate of the diagonal of a matrix, `(size,)`, from products.

    Hutchinson's: the mean of v times Av over vectors v of signs.
    """
    rng = np.random.default_rng(0)
    total = np.zeros(size)
    for _ in range(_PROBES):
        signs = rng.choice([-1.0, 1.0], size=size)
        total += signs * product(signs)
    estimate = total / _PROBES
    # It may come out near zero, or below, where the rows are not.
    least = 0.1 * np.mean(np.abs(estimate))
    return np.maximum(estimate, least)


def _to_radius(step, product, direction, image, radius):
    """Along a direction to the radius, or not at all if there is none."""
    if not np.isfinite(radius):
        return step, product
    a, b = direction @ direction, step @ direction
    c = step @ step - radius**2
    length = (-b + np.sqrt(max(b**2 - a * c, 0.0))) / a
    return step + length * direction, product + length * image
