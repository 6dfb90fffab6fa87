"""A line search for strong Wolfe steps, one trial at a time.

J. J. More and D. J. Thuente, "Line search algorithms with guaranteed
sufficient decrease", ACM TOMS 20(3), 1994: the search of section 2 with the
trial values of section 4, as in MINPACK's `dcsrch` and `dcstep`.

Differs from it in:

1. a non-finite trial is a step too long: the next one is a quarter of the way
   from the best point so far, and the search stays below it;
2. near the noise of the loss, where sufficient decrease cannot be seen, the
   approximate Wolfe conditions decide (W. W. Hager and H. Zhang, SIAM J.
   Optim. 16(1), 2005, equation 4.1): they compare slopes, which are exact for
   longer;
3. a search that runs out of trials, or whose interval is all rounding, succeeds
   at a point of sufficient decrease;
4. a search whose slope promises less than the rounding of the loss has failed;
5. a direction of unknown length is probed first: the change of the slope over
   a very short step shows how far away the minimizer along the line is.
"""

from typing import Any
from typing import NamedTuple

from kormos.arithmetic.scalars import both
from kormos.arithmetic.scalars import constant
from kormos.arithmetic.scalars import either
from kormos.arithmetic.scalars import is_finite
from kormos.arithmetic.scalars import larger
from kormos.arithmetic.scalars import smaller
from kormos.arithmetic.scalars import where

SUFFICIENT_DECREASE = 1e-4
CURVATURE = 0.9
# Of Hager and Zhang's approximate conditions.
APPROXIMATE_DECREASE = 0.1
MOST_TRIALS = 25
LONGEST = 1e20
# After so many trials, a short step that gains nothing is in the rounding: more
# of it, perhaps, than is known.
_MOST_SHORT = 6
# After so many any step that gains nothing is.
_MOST_IN_VAIN = 12
# Changes of the loss by fewer roundings say less than the slopes.
_HIDDEN = 4.0
# A step that promises a smaller part of the loss's rounding is not tried.
_LEAST_PROMISE = 1e-3

SEARCHING, ACCEPTED, FAILED = 0, 1, 2


class Point(NamedTuple):
    """A trial: its step, its loss and its directional derivative."""

    step: Any
    loss: Any
    slope: Any


class Search(NamedTuple):
    """A search along a direction; all leaves are scalars.

    Attributes:
        start: the point at step 0, of negative slope.
        step: the step of the next trial.
        best: the best trial so far, at first the start.
        other: the other end of the interval.
        bracketed: whether a minimizer lies between the two.
        first_stage: whether the auxiliary function is still searched.
        low, high: limits of the next trial.
        width, previous_width: lengths of the interval.
        longest: the longest step allowed.
        trials: the number of trials so far.
        fallback: the step after a probe that does not show the curvature, or
            zero where the next trial is no probe.
        promise: the decrease of the loss that the slope and the curvature
            along the line promise.
    """

    start: Point
    step: Any
    best: Point
    other: Point
    bracketed: Any
    first_stage: Any
    low: Any
    high: Any
    width: Any
    previous_width: Any
    longest: Any
    trials: Any
    fallback: Any
    promise: Any


def begin(loss, slope, step, probe=None):
    """A search that tries `step` first.

    Args:
        loss: scalar, the loss at step 0.
        slope: scalar, the directional derivative there, negative.
        step: scalar, the first trial.
        probe: scalar, a very short step that is tried before `step` to
            measure the curvature; zero or `None` for a direction that already
            has the right length.
    """
    zero = constant(0, like=loss)
    start = Point(zero, loss, slope)
    probe = zero if probe is None else probe
    is_probe = probe > 0
    return Search(
        start=start,
        step=where(is_probe, probe, step),
        best=start,
        other=start,
        bracketed=constant(False, like=zero > 0),
        first_stage=constant(True, like=zero > 0),
        low=zero,
        high=5.0 * step,
        width=zero + LONGEST,
        previous_width=zero + 2 * LONGEST,
        longest=zero + LONGEST,
        trials=zero,
        fallback=where(is_probe, step, zero),
        promise=slope * step / -2,
    )


def verdict(search, loss, slope, noise):
    """Whether the trial at `search.step` ends the search.

    Args:
        search: a `Search`.
        loss: scalar, the loss of the trial.
        slope: scalar, its directional derivative.
        noise: scalar, the rounding of the loss over its size.

    Returns:
        `SEARCHING`, `ACCEPTED` or `FAILED`.
    """
    _, loss0, slope0 = search.start
    predicted = search.step * slope0
    change, size = loss - loss0, abs(loss0)
    decreased = change <= SUFFICIENT_DECREASE * predicted
    wolfe = both(decreased, abs(slope) <= -CURVATURE * slope0)
    margin = _HIDDEN * noise * size
    approximate = both(
        abs(change) <= margin,
        slope >= CURVATURE * slope0,
        slope <= (2 * APPROXIMATE_DECREASE - 1) * slope0,
    )
    is_probe = search.fallback > 0
    last = search.trials + 1 >= MOST_TRIALS
    longest = search.step >= search.longest
    enough = both(either(last, longest), decreased, change < 0)
    good = both(is_finite(loss, slope), either(wolfe, approximate, enough))
    in_vain = both(_is_in_vain(search, loss, noise), ~_has_gained(search))
    none = -predicted <= _LEAST_PROMISE * noise * size
    lost = either(last, in_vain, none)
    ended = where(good, ACCEPTED, where(lost, FAILED, SEARCHING))
    return where(both(is_probe, ~last), SEARCHING, ended)


def _is_in_vain(search, loss, noise):
    """Whether a trial gains nothing although many came before it."""
    predicted = search.step * search.start.slope
    change = loss - search.start.loss
    # Slopes show for longer than losses what a step does, but not for ever.
    short = -predicted <= noise**0.5 * abs(search.start.loss)
    trials = search.trials + 1
    many = either(trials >= _MOST_IN_VAIN, both(short, trials >= _MOST_SHORT))
    gains = change <= SUFFICIENT_DECREASE * predicted
    return both(many, ~gains, is_finite(loss))


def _has_gained(search):
    """Whether an earlier trial has met the sufficient decrease condition."""
    start, best = search.start, search.best
    least = SUFFICIENT_DECREASE * best.step * start.slope
    return both(best.step > 0, best.loss - start.loss <= least)


def advance(search, loss, slope, noise):
    """The search after a trial that did not end it, the next one chosen.

    Args:
        search: a `Search`.
        loss: scalar, the loss of the trial.
        slope: scalar, its directional derivative.
        noise: scalar, the rounding of the loss over its size.
    """
    moved = _narrowed(search, _seen(search, loss, slope, noise), slope)
    # The search ends at the best of the earlier trials.
    given_up = both(_is_in_vain(search, loss, noise), _has_gained(search))
    best = search._replace(
        step=search.best.step,
        trials=constant(MOST_TRIALS - 1, like=search.trials),
    )
    moved = where(given_up, best, moved)
    return where(search.fallback > 0, _probed(search, slope, noise), moved)


def _probed(search, slope, noise):
    """The search after its probe: the secant of the two slopes is tried.

    Where the probe shows no curvature a longer one follows, up to the length
    at which the loss would fall to zero.
    """
    start = search.start.slope
    # By so much of itself the slope falls over the length of the probe.
    fall = 1 - slope / start
    longer = search.step * noise ** (-1 / 3)
    least = noise ** (2 / 3)
    is_curved, is_concave = fall > least, fall < -least
    step = where(
        is_curved,
        search.step / where(is_curved, fall, fall * 0 + 1),
        smaller(longer, search.fallback),
    )
    found = begin(search.start.loss, start, step)
    ends = either(is_curved, is_concave, longer >= search.fallback)
    again = search._replace(
        step=where(is_finite(slope), longer, search.step * 1e-3)
    )
    chosen = where(both(is_finite(slope), ends), found, again)
    return chosen._replace(trials=search.trials + 1)


def _seen(search, loss, slope, noise):
    """The loss of a trial, by the slopes where its change is all rounding."""
    _, loss0, slope0 = search.start
    by_slopes = loss0 + search.step * (slope0 + slope) / 2
    hidden = abs(loss - loss0) <= _HIDDEN * noise * abs(loss0)
    return where(hidden, by_slopes, loss)


def _narrowed(search, loss, slope):
    """The search after a trial that is no probe."""
    finite = is_finite(loss, slope)
    trial = Point(
        search.step,
        where(finite, loss, search.best.loss),
        where(finite, slope, search.best.slope),
    )
    distance = search.step - search.best.step
    retreat = search._replace(
        step=search.best.step + 0.25 * distance,
        high=search.best.step + 0.5 * distance,
        longest=search.best.step + 0.5 * distance,
    )
    chosen = where(finite, _move(search, trial), retreat)
    trials = chosen.trials + 1
    # The last trial is the best one again, if there is any.
    best = chosen.best.step
    again = both(trials + 1 >= MOST_TRIALS, best > 0)
    return chosen._replace(trials=trials, step=where(again, best, chosen.step))


def _move(search, trial):
    """The interval that the trial leaves, and the next trial in it."""
    start = search.start
    target_slope = SUFFICIENT_DECREASE * start.slope
    target = start.loss + trial.step * target_slope
    first_stage = both(
        search.first_stage, either(trial.loss > target, trial.slope < 0)
    )
    # More and Thuente's auxiliary function, the loss less the line of
    # sufficient decrease, is searched while it promises more.
    tilt = where(
        both(first_stage, trial.loss <= search.best.loss, trial.loss > target),
        target_slope,
        constant(0, like=target_slope),
    )
    x, y, t = (_tilted(p, tilt) for p in (search.best, search.other, trial))
    step = _next_step(x, y, t, search.bracketed, search.low, search.high)
    worse = t.loss > x.loss
    turned = t.slope * x.slope < 0
    bracketed = either(search.bracketed, worse, turned)
    other = where(worse, trial, where(turned, search.best, search.other))
    best = where(worse, search.best, trial)
    width = abs(other.step - best.step)
    slow = both(bracketed, width >= 0.66 * search.previous_width)
    step = where(slow, best.step + 0.5 * (other.step - best.step), step)
    low = where(
        bracketed,
        smaller(best.step, other.step),
        step + 1.1 * (step - best.step),
    )
    high = where(
        bracketed,
        larger(best.step, other.step),
        step + 4.0 * (step - best.step),
    )
    step = smaller(step, search.longest)
    # An interval that is all rounding holds nothing better than its best.
    spent = either(step <= low, step >= high, high - low <= 1e-14 * high)
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


def _next_step(x, y, t, bracketed, low, high):
    """The safeguarded trial value: section 4, cases 1 to 4.

    Args:
        x: the best point of the interval.
        y: its other end.
        t: the trial.
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
    limit = t.step + 0.66 * (y.step - t.step)
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


def _cubic(a, b):
    """The minimizer of the cubic that interpolates two points."""
    theta, gamma = _cubic_terms(a, b)
    gamma = where(b.step < a.step, -gamma, gamma)
    p = (gamma - a.slope) + theta
    q = ((gamma - a.slope) + gamma) + b.slope
    return a.step + p / q * (b.step - a.step)


def _cubic_beyond(a, b, end):
    """The cubic's minimizer on the far side of `a`, or else `end`."""
    theta, gamma = _cubic_terms(a, b)
    gamma = where(b.step < a.step, -gamma, gamma)
    p = (gamma - a.slope) + theta
    q = (gamma + (b.slope - a.slope)) + gamma
    r = p / q
    exists = both(r < 0, abs(gamma) > 0)
    return where(exists, a.step + r * (b.step - a.step), end)


def _cubic_terms(a, b):
    theta = 3 * (a.loss - b.loss) / (b.step - a.step) + a.slope + b.slope
    scale = larger(abs(theta), larger(abs(a.slope), abs(b.slope)))
    square = (theta / scale) ** 2 - (a.slope / scale) * (b.slope / scale)
    zero = constant(0, like=square)
    return theta, scale * larger(square, zero) ** 0.5


def _tilted(point, tilt):
    return Point(point.step, point.loss - point.step * tilt, point.slope - tilt)
