"""Units and sizes of parameters, for steps that treat all of them alike."""

import numpy as np

from kormos.types import Vector

# Units differ from their median by no more than this power of two, so that
# squares of scaled gradients do not overflow.
_MOST_EXPONENT = 100


def units_of(spread: Vector) -> Vector:
    """Units of the parameters in which all gradient entries change alike.

    Where parameters act together, as the coefficients of regressors do, each
    entry of the gradient changes in proportion to the size of its regressor.

    Args:
        spread: squares of the changes of each entry of the gradient.

    Returns:
        Powers of two, `(size,)`, whose median is one.
    """
    known = spread > 0
    logarithms = np.zeros_like(spread)
    if known.any():
        logarithms[known] = -np.log2(spread[known]) / 2
        logarithms[known] -= np.median(logarithms[known])
    exponents = np.clip(logarithms, -_MOST_EXPONENT, _MOST_EXPONENT)
    return np.ldexp(1.0, np.round(exponents).astype("int32"))


def sizes_of(theta: Vector, units: Vector | None) -> Vector:
    """The size of each parameter; for one that is zero, a typical size.

    Args:
        theta: the parameters, `(size,)`.
        units: their units, `(size,)`, or `None` if all are alike. A typical
            size is the median over the other parameters, in these units.
    """
    sizes, known = np.abs(theta), theta != 0
    units = np.ones_like(theta) if units is None else units
    typical = np.median(sizes[known] / units[known]) if known.any() else 1.0
    return np.where(known, sizes, typical * units)
