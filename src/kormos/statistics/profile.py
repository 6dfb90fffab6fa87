"""Intervals from the profile likelihood.

With a parameter held at a value, the others are fitted again. Let z be the
signed square root of twice the decrease of the log-likelihood. It is about
linear in the value, and an interval ends where it equals the quantile (Bates
and Watts, "Nonlinear Regression Analysis", 1988, section 6.1). For a sum of
squares, the decrease is in units of the estimated variance, and the quantile is
that of Student's distribution.
"""

from collections.abc import Callable

import numpy as np

from kormos.statistics.estimate import Estimate
from kormos.statistics.fits import Fit
from kormos.statistics.refit import refit

# An end is found if z is right to the first part. It is missing if that takes
# more refits than the second number. Our choice: ends have five digits, and 40
# refits can double the distance 40 times.
_SAME = 1e-6
_MOST_REFITS = 40


def profile_interval(
    fit: Fit, estimate: Estimate, index: int, quantile: float
) -> tuple[float, float]:
    """The ends of the interval of a parameter.

    Args:
        fit: the fit.
        estimate: the numbers of its summary.
        index: the index of the parameter.
        quantile: the value of z at the ends.

    Returns:
        The ends; infinite where the likelihood does not fall far enough.
    """
    error = float(np.sqrt(estimate.covariance[index, index]))
    lowest = float(fit.objective.value(fit.theta))
    held = np.zeros(fit.theta.size, bool)
    held[index] = True
    # The change of the other parameters with this one, to first order.
    slope = estimate.covariance[index] / error**2

    def end(sign: int) -> float:
        known, theta = 0.0, fit.theta

        def z(distance: float) -> float:
            nonlocal known, theta
            start = theta + slope * sign * (distance - known)
            start[index] = fit.theta[index] + sign * distance
            if fit.box[0] is not None:
                start = np.clip(start, *fit.box)
            theta, loss = refit(fit.objective, start, held, fit.box)
            known = distance
            cost = max(loss - lowest, 0.0) / estimate.scale.factor
            return float(np.sqrt(2 * cost))

        reach = _room(fit, index, sign)
        distance = _solved(z, quantile, error, reach)
        return float(fit.theta[index] + sign * distance)

    return end(-1), end(1)


def _room(fit: Fit, index: int, sign: int) -> float:
    """The distance of a parameter to its bound."""
    bound = fit.box[0] if sign < 0 else fit.box[1]
    if bound is None:
        return np.inf
    return float(abs(bound[index] - fit.theta[index]))


def _solved(
    z: Callable[[float], float], quantile: float, error: float, room: float
) -> float:
    """The distance at which an increasing function has a value.

    Args:
        z: function of the distance, zero at zero.
        quantile: the value.
        error: the slope at zero is about the reciprocal of this.
        room: the largest distance, which is returned if z stays below the
            quantile.
    """
    low, high, at_low, at_high = 0.0, np.inf, 0.0, np.inf
    distance = min(quantile * error, room)
    for _ in range(_MOST_REFITS):
        value = z(distance)
        if not np.isfinite(value):
            value = np.inf
        if abs(value - quantile) <= _SAME * quantile:
            return distance
        if value < quantile:
            if distance >= room:
                return room
            low, at_low = distance, value
        else:
            high, at_high = distance, value
        distance = _next(low, high, at_low, at_high, quantile, room)
        if np.isfinite(high) and high - low <= _SAME * high:
            return distance
    return distance if np.isfinite(high) else np.inf


def _next(
    low: float,
    high: float,
    at_low: float,
    at_high: float,
    quantile: float,
    room: float,
) -> float:
    """The next distance to try: between both, or beyond the lower one.

    Args:
        low, high: distances at which z is below and above the quantile.
        at_low, at_high: z there.
        quantile: the value to reach.
        room: the largest distance.
    """
    if np.isinf(high):
        ratio = quantile / at_low if at_low > 0 else 2.0
        return min(low * min(max(ratio, 1.01), 2.0) * 1.01, room)
    if np.isinf(at_high):
        return (low + high) / 2
    share = (quantile - at_low) / (at_high - at_low)
    # The distance must not be close to one of the two, where rounding would
    # stop the search.
    return low + (high - low) * float(np.clip(share, 0.02, 0.98))


def check_profile(estimate: Estimate) -> None:
    """Refuses a loss that is not a likelihood, or has a penalty."""
    if np.isnan(estimate.scale.factor) or estimate.is_penalized:
        raise ValueError(
            "A profile needs a likelihood without a penalty: use "
            "`method='wald'` or 'bootstrap'. Received: method='profile' for "
            "another loss"
        )
