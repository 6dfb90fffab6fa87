"""The trial values of Moré and Thuente's line search.

J. J. Moré and D. J. Thuente, "Line search algorithms with guaranteed
sufficient decrease", ACM TOMS 20(3), 1994, section 4, as in MINPACK's `dcstep`.
"""

from typing import NamedTuple

from kormos.arithmetic.scalars import both
from kormos.arithmetic.scalars import constant
from kormos.arithmetic.scalars import larger
from kormos.arithmetic.scalars import smaller
from kormos.arithmetic.scalars import where
from kormos.types import Scalar

# In case 3 a trial goes at most this part of the way to the other end: delta of
# section 4, `dcstep`'s value.
_MOST_OF_INTERVAL = 0.66


class Point(NamedTuple):
    """A trial: its step, its loss and its directional derivative."""

    step: Scalar
    loss: Scalar
    slope: Scalar


def next_step(
    x: Point,
    y: Point,
    t: Point,
    bracketed: Scalar,
    low: Scalar,
    high: Scalar,
) -> Scalar:
    """The next trial's step: section 4, cases 1 to 4.

    Args:
        x: the best point of the interval.
        y: its other end.
        t: the latest trial.
        bracketed: whether a minimizer lies between `x` and `y`.
        low, high: limits of an extrapolation.
    """
    secant = t.step + t.slope / (t.slope - x.slope) * (x.step - t.step)
    # 1: the loss is higher: a minimizer lies between.
    cubic = _cubic(x, t)
    mean_slope = (x.loss - t.loss) / (t.step - x.step) + x.slope
    quadratic = x.step + x.slope / mean_slope / 2 * (t.step - x.step)
    closer = abs(cubic - x.step) < abs(quadratic - x.step)
    higher = where(closer, cubic, (cubic + quadratic) / 2)
    # 2: lower, with a slope of opposite sign: a minimizer lies between.
    cubic = _cubic(t, x)
    farther = abs(cubic - t.step) > abs(secant - t.step)
    turned = where(farther, cubic, secant)
    # 3: lower, the slope of the same sign and smaller: extrapolate.
    end = where(t.step > x.step, high, low)
    cubic = _cubic_beyond(t, x, end)
    farther = abs(cubic - t.step) > abs(secant - t.step)
    outside = where(farther, cubic, secant)
    inside = where(farther, secant, cubic)
    limit = t.step + _MOST_OF_INTERVAL * (y.step - t.step)
    inside = where(
        t.step > x.step, smaller(limit, inside), larger(limit, inside)
    )
    outside = smaller(larger(outside, low), high)
    flatter = where(bracketed, inside, outside)
    # 4: lower, the slope of the same sign and not smaller.
    steeper = where(bracketed, _cubic(t, y), end)
    return where(
        t.loss > x.loss,
        higher,
        where(
            t.slope * x.slope < 0,
            turned,
            where(abs(t.slope) < abs(x.slope), flatter, steeper),
        ),
    )


def _cubic(a: Point, b: Point) -> Scalar:
    """The minimizer of the cubic that interpolates two points."""
    theta, gamma = _cubic_terms(a, b)
    gamma = where(b.step < a.step, -gamma, gamma)
    p = (gamma - a.slope) + theta
    q = ((gamma - a.slope) + gamma) + b.slope
    return a.step + p / q * (b.step - a.step)


def _cubic_beyond(a: Point, b: Point, end: Scalar) -> Scalar:
    """The cubic's minimizer on the far side of `a`; `end` if there is none."""
    theta, gamma = _cubic_terms(a, b)
    gamma = where(b.step < a.step, -gamma, gamma)
    p = (gamma - a.slope) + theta
    q = (gamma + (b.slope - a.slope)) + gamma
    r = p / q
    exists = both(r < 0, abs(gamma) > 0)
    return where(exists, a.step + r * (b.step - a.step), end)


def _cubic_terms(a: Point, b: Point) -> tuple[Scalar, Scalar]:
    """theta and the absolute value of gamma, as section 4 calls them."""
    theta = 3 * (a.loss - b.loss) / (b.step - a.step) + a.slope + b.slope
    scale = larger(abs(theta), larger(abs(a.slope), abs(b.slope)))
    square = (theta / scale) ** 2 - (a.slope / scale) * (b.slope / scale)
    zero = constant(0, like=square)
    return theta, scale * larger(square, zero) ** 0.5
