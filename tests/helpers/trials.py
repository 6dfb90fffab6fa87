"""Whether an end that a method claims is one: a trial from there.

Nothing here uses kormos' own tests of convergence.
"""

import numpy as np

# A fresh run may lower the loss by this part of itself.
GAIN = 1e-6

# A sum of squares is zero where residuals have no digit of those at the start.
EXACT = 2.0**-104

# Points at which the rounding of a loss is measured, each with its mirror, and
# how many units in the last place they lie away.
_PAIRS = 32
_UNITS = 4


def rounding_at(value, theta, dtype="float64"):
    """The rounding of a loss at a point: the spread of its values nearby.

    Each parameter moves by a few units in its last place, to both sides, so
    that the slope drops out of the sum of the two. What the loss changes by
    its curvature over so short a way is part of what is measured.

    Args:
        value: function of a float64 vector: the loss.
        theta: the point.
        dtype: of the parameters.

    Returns:
        The largest `f(theta + d) + f(theta - d) - 2 f(theta)`, which is as far
        apart as four rounded values may be.
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
    """What a fresh run may lower the loss by, from a true end.

    Args:
        loss: the loss at the end.
        rounding: its rounding there.
        first_loss: the loss at the start of the run that ended there.
    """
    return max(GAIN * abs(loss), rounding, EXACT * abs(first_loss))
