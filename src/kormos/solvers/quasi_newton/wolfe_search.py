"""A line search for strong Wolfe steps, one trial at a time.

J. J. Moré and D. J. Thuente, "Line search algorithms with guaranteed
sufficient decrease", ACM TOMS 20(3), 1994: the search of section 2 with the
trial values of section 4 (`trial_values.py`), as in MINPACK's `dcsrch`.

Differs from it in:

1. a non-finite trial is a step too long: the next one is a quarter of the way
   from the best point so far, and the search stays below it;
2. where rounding hides the decrease of the loss, the approximate Wolfe
   conditions decide (W. W. Hager and H. Zhang, SIAM J. Optim. 16(1), 2005,
   equation 4.1): they compare slopes, which are still exact there;
3. a search that runs out of trials, or whose interval is as short as rounding,
   succeeds at a point of sufficient decrease;
4. a search fails if its slope predicts less than the rounding of the loss;
5. a direction of unknown length is probed first: the change of the slope over
   a very short step shows how far away the minimizer along the line is.
"""

from kormos.arithmetic.scalars import both
from kormos.arithmetic.scalars import constant
from kormos.arithmetic.scalars import either
from kormos.arithmetic.scalars import is_finite
from kormos.arithmetic.scalars import smaller
from kormos.arithmetic.scalars import where
from kormos.solvers.quasi_newton.search_interval import LONGEST
from kormos.solvers.quasi_newton.search_interval import MOST_EXTRAPOLATION
from kormos.solvers.quasi_newton.search_interval import MOST_TRIALS
from kormos.solvers.quasi_newton.search_interval import SUFFICIENT_DECREASE
from kormos.solvers.quasi_newton.search_interval import Search
from kormos.solvers.quasi_newton.search_interval import moved
from kormos.solvers.quasi_newton.trial_values import Point
from kormos.types import Scalar

# The second Wolfe condition: Nocedal and Wright, "Numerical Optimization", 2nd
# edition, section 3.1, for quasi-Newton methods.
CURVATURE = 0.9
# delta of Hager and Zhang's equation 4.1, with the value that they use.
APPROXIMATE_DECREASE = 0.1

# After a trial that is not finite the next one lies this part of the way from
# the best point to it, and none lies beyond the second part. Our choice: larger
# parts meet more losses that are not finite, smaller ones make short steps.
_RETREAT, _BORDER = 0.25, 0.5

# If short steps have gained nothing in this many trials, rounding hides the
# decrease; the rounding may be larger than is known. Our choice: fewer trials
# end searches that would succeed, and each additional one is lost at the end of
# every run.
_MOST_SHORT = 6
# The same for a step of any length.
_MOST_IN_VAIN = 12
# A step is short if it predicts a relative decrease of at most this power of
# the loss's relative rounding. Our choice: rounding cannot hide the decrease of
# a longer step, even if the rounding is far larger than is known.
_SHORT_POWER = 0.5
# Where the loss changes by at most this many roundings, slopes are more precise
# than the loss. Our choice: both losses are rounded, each perhaps by twice what
# is known.
_HIDDEN = 4.0
# A step that predicts less than this part of the loss's rounding is not tried.
# Our choice: slopes remain exact somewhat longer than the loss.
_LEAST_PROMISE = 1e-3

# A probe that does not show the curvature is followed by one that is longer by
# the loss's rounding to this power. Our choice: with a smaller factor more
# probes follow, and with a larger one they may leave the region where the
# curvature is the same.
_LONGER_POWER = -1 / 3
# A probe does not show the curvature if its slope falls by less than the
# rounding to this power. Our choice: a smaller fall may be rounding.
_VISIBLE_POWER = 2 / 3
# After a probe that is not finite the next one is this part of it. Our choice:
# a larger part takes more trials beside a pole.
_SHORTER_PROBE = 1e-3

SEARCHING, ACCEPTED, FAILED = 0, 1, 2


def begin(
    loss: Scalar, slope: Scalar, step: Scalar, probe: Scalar | None = None
) -> Search:
    """A search that tries `step` first.

    Args:
        loss: scalar, the loss at step 0.
        slope: scalar, the directional derivative there, negative.
        step: scalar, the first trial.
        probe: scalar, a very short step that is tried before `step` to
            measure the curvature; zero or `None` if the direction already has
            about the right length.
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
        high=(1 + MOST_EXTRAPOLATION) * step,
        width=zero + LONGEST,
        previous_width=zero + 2 * LONGEST,
        longest=zero + LONGEST,
        trials=zero,
        fallback=where(is_probe, step, zero),
        promise=slope * step / -2,
    )


def verdict(
    search: Search, loss: Scalar, slope: Scalar, noise: Scalar
) -> Scalar:
    """Whether the trial at `search.step` ends the search.

    Args:
        search: the search.
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


def _is_in_vain(search: Search, loss: Scalar, noise: Scalar) -> Scalar:
    """Whether a trial gains nothing, after many others."""
    predicted = search.step * search.start.slope
    change = loss - search.start.loss
    short = -predicted <= noise**_SHORT_POWER * abs(search.start.loss)
    trials = search.trials + 1
    many = either(trials >= _MOST_IN_VAIN, both(short, trials >= _MOST_SHORT))
    gains = change <= SUFFICIENT_DECREASE * predicted
    return both(many, ~gains, is_finite(loss))


def _has_gained(search: Search) -> Scalar:
    """Whether an earlier trial has met the sufficient decrease condition."""
    start, best = search.start, search.best
    least = SUFFICIENT_DECREASE * best.step * start.slope
    return both(best.step > 0, best.loss - start.loss <= least)


def advance(
    search: Search, loss: Scalar, slope: Scalar, noise: Scalar
) -> Search:
    """The search after a trial that did not end it, with the next one chosen.

    Args:
        search: the search.
        loss: scalar, the loss of the trial.
        slope: scalar, its directional derivative.
        noise: scalar, the rounding of the loss over its size.
    """
    after = _narrowed(search, _seen(search, loss, slope, noise), slope)
    # A search that is given up ends at the best of its earlier trials.
    given_up = both(_is_in_vain(search, loss, noise), _has_gained(search))
    best = search._replace(
        step=search.best.step,
        trials=constant(MOST_TRIALS - 1, like=search.trials),
    )
    after = where(given_up, best, after)
    return where(search.fallback > 0, _probed(search, slope, noise), after)


def _probed(search: Search, slope: Scalar, noise: Scalar) -> Search:
    """The search after its probe.

    The next trial is where a secant of the two slopes is zero. Where the probe
    shows no curvature, a longer one follows, up to `fallback`.
    """
    start = search.start.slope
    # The slope falls by this part of itself over the length of the probe.
    fall = 1 - slope / start
    longer = search.step * noise**_LONGER_POWER
    least = noise**_VISIBLE_POWER
    is_curved, is_concave = fall > least, fall < -least
    step = where(
        is_curved,
        search.step / where(is_curved, fall, fall * 0 + 1),
        smaller(longer, search.fallback),
    )
    found = begin(search.start.loss, start, step)
    ends = either(is_curved, is_concave, longer >= search.fallback)
    again = search._replace(
        step=where(is_finite(slope), longer, search.step * _SHORTER_PROBE)
    )
    chosen = where(both(is_finite(slope), ends), found, again)
    return chosen._replace(trials=search.trials + 1)


def _seen(search: Search, loss: Scalar, slope: Scalar, noise: Scalar) -> Scalar:
    """The loss of a trial; from the slopes, if rounding hides its change."""
    _, loss0, slope0 = search.start
    by_slopes = loss0 + search.step * (slope0 + slope) / 2
    hidden = abs(loss - loss0) <= _HIDDEN * noise * abs(loss0)
    return where(hidden, by_slopes, loss)


def _narrowed(search: Search, loss: Scalar, slope: Scalar) -> Search:
    """The search after a trial that is not a probe."""
    finite = is_finite(loss, slope)
    trial = Point(
        search.step,
        where(finite, loss, search.best.loss),
        where(finite, slope, search.best.slope),
    )
    distance = search.step - search.best.step
    retreat = search._replace(
        step=search.best.step + _RETREAT * distance,
        high=search.best.step + _BORDER * distance,
        longest=search.best.step + _BORDER * distance,
    )
    chosen = where(finite, moved(search, trial), retreat)
    trials = chosen.trials + 1
    # The last trial is the best one again, if there is any.
    best = chosen.best.step
    again = both(trials + 1 >= MOST_TRIALS, best > 0)
    return chosen._replace(trials=trials, step=where(again, best, chosen.step))
