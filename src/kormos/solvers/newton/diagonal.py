"""The diagonal of a matrix that is only known by its products."""

from collections.abc import Callable

import numpy as np

from kormos.types import Vector

# The diagonal is estimated from this many products. Our choice: the error falls
# with the square root of the number, and the diagonal only serves as a scale.
PROBES = 8
# An estimate is repeated while one entry of the scaled matrix is more than the
# first number times another, but at most as often as the second number. Our
# choice: an estimate may itself be wrong by a factor of a few. Each repetition
# halves the number of digits by which entries differ, so these are enough for
# units of any size.
_UNEVEN, _MOST_PASSES = 100.0, 8


def diagonal(product: Callable[[Vector], Vector], size: int) -> Vector:
    """An estimate of the diagonal of a positive semidefinite matrix.

    It is the mean of v times Av over vectors v of random signs: C. Bekas, E.
    Kokiopoulou and Y. Saad, "An estimator for the diagonal of a matrix", Appl.
    Numer. Math. 57, 2007, after Hutchinson. An entry counts as at least its own
    uncertainty, which comes from the other entries of its row. In the
    parameters' own units, the noise from large entries would hide small ones.
    So the matrix is scaled by an estimate and estimated again, until it is
    nearly even.

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

    Args:
        product: function of a vector `(size,)` that returns A times it.
        inverse: the inverse of the scale, `(size,)`.
        rng: draws the signs.

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
