"""The interval that a line search narrows.

J. J. Moré and D. J. Thuente, "Line search algorithms with guaranteed
sufficient decrease", ACM TOMS 20(3), 1994, sections 2 and 3, as in MINPACK's
`dcsrch`.
"""

from typing import NamedTuple

from kormos.arithmetic.scalars import both
from kormos.arithmetic.scalars import constant
from kormos.arithmetic.scalars import either
from kormos.arithmetic.scalars import larger
from kormos.arithmetic.scalars import smaller
from kormos.arithmetic.scalars import where
from kormos.solvers.quasi_newton.trial_values import Point
from kormos.solvers.quasi_newton.trial_values import next_step
from kormos.types import Scalar

# The first Wolfe condition: Nocedal and Wright, "Numerical Optimization", 2nd
# edition, section 3.1.
SUFFICIENT_DECREASE = 1e-4
# Our choice: a search that needs more trials is at a cliff or in rounding.
MOST_TRIALS = 25
# The longest step, in units of the direction: no limit in practice.
LONGEST = 1e20

# The values of `dcsrch`. While no interval is known, the next step lies between
# these extrapolations of the last one.
_LEAST_EXTRAPOLATION, MOST_EXTRAPOLATION = 1.1, 4.0
# An interval that shrinks by less than this in two trials is halved.
_SLOW = 0.66
# The shortest interval, over the step: the `xtol` with which SciPy calls
# `dcsrch`.
_SHORTEST_INTERVAL = 1e-14


class Search(NamedTuple):
    """A search along a direction; all leaves are scalars.

    Attributes:
        start: the point at step 0, of negative slope.
        step: the step of the next trial.
        best: the best trial so far; the start, before the first one.
        other: the other end of the interval.
        bracketed: whether a minimizer lies between the two.
        first_stage: whether the auxiliary function of section 2 is searched.
        low, high: limits of the next trial.
        width, previous_width: lengths of the interval.
        longest: the longest step allowed.
        trials: the number of trials so far.
        fallback: the step to try if a probe does not show the curvature;
            zero if the next trial is not a probe.
        promise: the decrease of the loss that the slope and the curvature
            along the line predict.
    """

    start: Point
    step: Scalar
    best: Point
    other: Point
    bracketed: Scalar
    first_stage: Scalar
    low: Scalar
    high: Scalar
    width: Scalar
    previous_width: Scalar
    longest: Scalar
    trials: Scalar
    fallback: Scalar
    promise: Scalar


def moved(search: Search, trial: Point) -> Search:
    """The search with the interval after a trial, and the next trial."""
    start = search.start
    target_slope = SUFFICIENT_DECREASE * start.slope
    target = start.loss + trial.step * target_slope
    first_stage = both(
        search.first_stage, either(trial.loss > target, trial.slope < 0)
    )
    # In the first stage, the loss minus the line of sufficient decrease is
    # searched where that does not hold yet: section 2's auxiliary function.
    tilt = where(
        both(first_stage, trial.loss <= search.best.loss, trial.loss > target),
        target_slope,
        constant(0, like=target_slope),
    )
    x, y, t = (_tilted(p, tilt) for p in (search.best, search.other, trial))
    step = next_step(x, y, t, search.bracketed, search.low, search.high)
    worse = t.loss > x.loss
    turned = t.slope * x.slope < 0
    bracketed = either(search.bracketed, worse, turned)
    other = where(worse, trial, where(turned, search.best, search.other))
    best = where(worse, search.best, trial)
    width = abs(other.step - best.step)
    slow = both(bracketed, width >= _SLOW * search.previous_width)
    step = where(slow, best.step + 0.5 * (other.step - best.step), step)
    low = where(
        bracketed,
        smaller(best.step, other.step),
        step + _LEAST_EXTRAPOLATION * (step - best.step),
    )
    high = where(
        bracketed,
        larger(best.step, other.step),
        step + MOST_EXTRAPOLATION * (step - best.step),
    )
    step = smaller(step, search.longest)
    # An interval as short as rounding has no better point than its best one.
    is_short = high - low <= _SHORTEST_INTERVAL * high
    spent = either(step <= low, step >= high, is_short)
    spent = both(bracketed, spent)
    most = constant(MOST_TRIALS - 2, like=search.trials)
    return search._replace(
        trials=where(spent, larger(most, search.trials), search.trials),
        step=where(spent, best.step, step),
        best=best,
        other=other,
        bracketed=bracketed,
        first_stage=first_stage,
        low=low,
        high=high,
        width=where(bracketed, width, search.width),
        previous_width=where(bracketed, search.width, search.previous_width),
    )


def _tilted(point: Point, tilt: Scalar) -> Point:
    return Point(point.step, point.loss - point.step * tilt, point.slope - tilt)
