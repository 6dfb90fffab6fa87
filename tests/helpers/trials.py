"""Trials of an end that a method claims to be an optimum.

Nothing here uses kormos' own tests of convergence.
"""

import numpy as np

# A fresh run may lower the loss by this part of itself.
GAIN = 1e-6

# A sum of squares is zero if residuals are rounding beside those at the start.
EXACT = 2.0**-104

# The number of points, each with its mirror image, at which the rounding of a
# loss is measured, and their distance in units in the last place.
_PAIRS = 32
_UNITS = 4


def rounding_at(value, theta, dtype="float64"):
    """The rounding of a loss at a point: the spread of its values nearby.

    Each parameter moves by a few units in its last place, to both sides, so
    that the slope drops out of the sum of the two. The change of the loss by
    its curvature over this short distance is included.

    Args:
        value: function of a float64 vector: the loss.
        theta: the point.
        dtype: the dtype of the parameters.

    Returns:
        The largest `f(theta + d) + f(theta - d) - 2 f(theta)`, to which four
        rounded values contribute.
    """
    theta = np.asarray(theta, dtype="float64")
    units = np.spacing(np.abs(theta).astype(dtype)).astype("float64")
    random = np.random.default_rng(0)
    middle, found = value(theta), []
    for _ in range(_PAIRS):
        steps = units * random.integers(-_UNITS, _UNITS + 1, len(theta))
        sides = value(theta + steps) - middle, value(theta - steps) - middle
        found.append(abs(sum(sides)))
    finite = np.array(found)[np.isfinite(found)]
    return float(finite.max(initial=0.0))


def gain_allowed(loss, rounding, first_loss):
    """The decrease of the loss that a fresh run from a true end may make.

    Args:
        loss: the loss at the end.
        rounding: its rounding there.
        first_loss: the loss at the start of the run that ended there.
    """
    return max(GAIN * abs(loss), rounding, EXACT * abs(first_loss))
