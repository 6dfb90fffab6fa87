"""The rounding with which a loss is evaluated near a point.

It is measured from a table of differences of the loss at points that are a few
roundings of the parameters apart: J. J. Moré and S. M. Wild, "Estimating
computational noise", SIAM J. Sci. Comput. 33(3), 2011, section 2.
"""

import math
from collections.abc import Callable

import numpy as np

from kormos.types import Vector

# The machine epsilon of float64. A smaller relative difference means nothing,
# whatever the dtype of the evaluation is.
FINEST = 2.0**-52

# A predicted decrease of at most this many roundings of the loss predicts
# nothing. Our choice: a smaller value would call ends at the noise floor
# stalled, a larger one would call runs finished that could still gain.
ROUNDINGS = 10.0

# The table has this many points. Our choice: each one more takes an evaluation,
# and fewer leave the median of the estimates to chance.
_POINTS = 5
# An end takes at most this many evaluations to measure the rounding.
MOST_MEASURING = 15
# Their distance, in spacings of the parameters. Our choice: closer points may
# coincide when a model in a narrower dtype rounds them; farther apart, the
# smooth part of the loss would be taken for rounding.
_SPACING = 4.0
# An estimate of more than this many times the loss is discarded: it comes from
# a cliff or a pole between the points. Our choice; rounding that large would
# leave the loss without a digit.
_MOST_NOISE = 1e8
# A difference is a jump if it is this many times as large as two others, and as
# one rounding of the loss. Our choice: rounding varies far less, and losses
# with `ops.round` in them jump by ten times as much.
_JUMP = 1e3
# Parameters change by this part of themselves to show the size of the terms
# that a loss is made of. Our choice: large beside rounding in every dtype, and
# small enough that a sum of squares is nearly quadratic over the change. Where
# the rounding of a loss hides so small a change, they change by up to the
# second part.
_CHANGE, _MOST_CHANGE = 2.0**-4, 2.0**-1
# A loss is tiny if it rises by this factor. Our choice: a loss with a minimum
# above zero may rise like a square, too, but by less.
_TIMES_TINY = 16.0
# A relative change of parameters by fewer roundings may leave them as they are.
_LEAST_CHANGE = 32.0

Value = Callable[[Vector], float]


def measured_noise(
    value: Value, theta: Vector, loss: float, spacing: float
) -> float:
    """The rounding with which a loss is evaluated near a point.

    It takes four evaluations.

    Args:
        value: the loss as a function of a float64 array `(size,)`.
        theta: the point.
        loss: the loss there.
        spacing: the machine epsilon of the dtype of the
            variables.

    Returns:
        One standard deviation of the loss's rounding; or, if that is more, by
        how much the rounding of the parameters keeps the loss from its
        minimum. It is never below what float64 explains for a number of the
        loss's size; or, if all losses are equal, below what the spacing of the
        variables does.
    """
    steps = _SPACING * spacing * _signs(theta.size) * _sizes(theta)
    losses = [loss, *(value(theta + i * steps) for i in range(1, _POINTS))]
    least = FINEST / 4 * abs(loss)
    if not np.isfinite(losses).all():
        return least
    if not np.ptp(losses):
        return max(least, spacing / 4 * abs(loss))
    noise = _scatter(losses, least=_JUMP * spacing * abs(loss), stored=True)
    noise = max(noise, least)
    return noise if noise <= _MOST_NOISE * abs(loss) else least


def _scatter(losses: list[float], least: float, stored: bool = False) -> float:
    """The rounding in losses at points of equal distances on a line.

    Args:
        losses: the losses; not all of them are equal.
        least: the smallest jump that is no rounding.
        stored: whether to count how much is lost by storing the parameters,
            for points that are `_SPACING` spacings of these apart.
    """
    differences = _without_jumps(np.diff(losses), least)
    estimates, lost = [], 0.0
    # In units of the largest difference, so that no square overflows.
    unit = float(np.abs(differences).max()) or 1.0
    differences /= unit
    for order in range(2, len(losses)):
        differences = np.diff(differences)
        square = float(np.mean(differences**2))
        factor = math.factorial(order) ** 2 / math.factorial(2 * order)
        estimates.append(math.sqrt(factor * square) * unit)
        if order == 2 and stored:
            # Storing the best parameter rounds it by up to half a spacing.
            # That costs half of the square of the error, times the curvature.
            lost = math.sqrt(square) * unit / (8 * _SPACING**2)
    # The median, because low orders still contain the smooth part of the loss.
    return max(float(np.median(estimates)), lost)


def _without_jumps(differences: Vector, least: float) -> Vector:
    """Replaces jumps by the mean of the other differences.

    A loss with a few coarse values has large differences, too, but all others
    are zero: that is rounding.

    Args:
        differences: the differences of the loss between neighbours.
        least: the smallest jump.
    """
    sizes = np.sort(np.abs(differences))
    for i in range(2, sizes.size):
        if 0 < _JUMP * sizes[i - 1] < sizes[i] and sizes[i] > least:
            small = np.abs(differences) < sizes[i]
            return np.where(small, differences, differences[small].mean())
    return differences


def vanished_noise(
    noise: float,
    promise: float,
    value: Value,
    theta: Vector,
    loss: float,
    evaluation_eps: float,
) -> float:
    """The rounding of a loss that is tiny beside the terms it is made of.

    Take a sum of squares that has fallen to zero except for rounding. Its
    residuals then are about `evaluation_eps` times the terms that cancel in
    them. A relative change c of the parameters makes residuals of about c times
    those terms. So the rounded loss is about `(evaluation_eps / c)**2` times
    the loss after that change.

    Other losses are sums of terms that do not vanish, such as the logarithm in
    a log-cosh: they are rounded as coarsely as these terms, and may be zero at
    all points nearby. The rounding shows over a change by which the loss should
    rise by twice the predicted decrease.

    It takes up to nine evaluations if the measured rounding does not explain
    the predicted decrease, and otherwise none.

    Args:
        noise: the rounding that was measured.
        promise: the decrease that a model of the loss predicts.
        value: the loss as a function of a float64 array `(size,)`.
        theta: the point.
        loss: the loss there.
        evaluation_eps: the machine epsilon of the evaluation's dtype.

    Returns:
        The rounding of the loss, with these.
    """
    if not promise > ROUNDINGS * noise:
        return noise
    size, far = _quadratic_change(lambda c: value(theta * (1 + c)), loss)
    if not size:
        return noise
    # Storing the parameters adds to the rounding of an evaluation.
    noise += (evaluation_eps / size) ** 2 * far
    change = size * math.sqrt(2 * promise / far)
    is_between = _LEAST_CHANGE * evaluation_eps <= change <= _CHANGE
    if not (promise > ROUNDINGS * noise and is_between):
        return noise
    parts = np.linspace(0, change, _POINTS)[1:]
    losses = [loss, *(value(theta * (1 + c)) for c in parts)]
    # Losses that are all equal hide such a rise.
    found = _scatter(losses, least=math.inf) if np.ptp(losses) else promise
    return max(noise, found)


def _quadratic_change(
    value: Callable[[float], float], loss: float
) -> tuple[float, float]:
    """A relative change over which a tiny loss rises as a square.

    Args:
        value: the loss after a relative change.
        loss: the loss before it.

    Returns:
        The change and the loss after it; two zeros if there is none.
    """
    size = _CHANGE
    near, far = value(size / 2), value(size)
    while math.isfinite(far):
        # Twice the change makes four times a quadratic loss.
        if near > _TIMES_TINY * abs(loss) and 2 < far / near < 8:
            return size, far
        size *= 2
        if size > _MOST_CHANGE:
            break
        near, far = far, value(size)
    return 0.0, 0.0


def _signs(size: int) -> Vector:
    return np.random.default_rng(0).choice([-1.0, 1.0], size=size)


def _sizes(theta: Vector) -> Vector:
    """The size of each parameter, for relative changes."""
    sizes = np.abs(theta)
    return sizes if sizes.any() else np.ones_like(theta)
