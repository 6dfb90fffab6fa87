"""Whether a point is a minimum of the loss, as far as evaluations can show.

All methods end by these tests. They look at the point alone, never at where a
run began: what a model of the loss promises there, the rounding with which the
loss is evaluated there, and whether a run that begins there gains anything.

The rounding is measured from a table of differences of the loss at points that
are a few roundings of the parameters apart: J. J. Moré and S. M. Wild,
"Estimating computational noise", SIAM J. Sci. Comput. 33(3), 2011, section 2.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kormos.solvers import statuses

# A run from a claimed end must lower the loss by less than this part of it.
LEAST_GAIN = 1e-10
# Where it does, its model may still promise this part.
_LEAST_PROMISE = 1e-8
# Or by less than this part of the rounding that the dtype explains.
_GAIN_OF_ROUNDING = 0.1
# So many evaluations a run gets to show that a claim does not hold; in coarse
# arithmetic more, for there its first steps are lost in the rounding.
_TRIAL_EVALUATIONS, _COARSE_EVALUATIONS = 10, 20

# A model that promises no more than so many roundings promises nothing.
ROUNDINGS = 10.0
# Where parameters of another size change less than this part of the loss, the
# gradient is small.
_STEEP = 1e-4
# Over a step along which the loss bends by so many times what its slope says, a
# difference says nothing of the slope.
_BENT = 3.0
# A kink is looked for where the loss changes by no more than this part of it.
_NEAR = 1e-3
# A difference of so many roundings is seen.
_SEEN = 100.0
# A step that is this part of the parameters is short.
_SHORT = 1e-5
# The part of a promise that must come true for a slope to be called right.
_AGREES = 0.5

# No parameter is thought to go further than so many times its own size.
_TIMES_ITS_SIZE = 10.0

# What the spacing of float64 explains, whatever the evaluation's own dtype is.
FINEST = 2.0**-52

# Units differ from the median by no more than this power of two.
_MOST_UNITS = 100

# What is smaller has lost its digits to underflow.
_TINIEST = 1e-290

# Points of the table of differences, and their distance in roundings.
_POINTS = 5
# Rounding is not so many times the loss, as differences show it.
_MOST_ROUNDING = 1e8
_SPACING = 4.0
# The part of themselves by which parameters change to show the size of terms.
_CHANGE = 2.0**-4

Value = Callable[[np.ndarray], float]


class Verdict(NamedTuple):
    """What the tests say of a point.

    Attributes:
        status: one of `stopping`'s statuses.
        test: the name of the test that decided.
        value: the quantity that was compared, over the size of the loss.
        threshold: what it was compared with.
        findings: sentences of what was found, with figures; may be empty.
    """

    status: str
    test: str | None
    value: float | None
    threshold: float | None
    findings: str = ""


PROMISE = "relative decrease that the model of the loss promises"


def measured_noise(
    value: Value, theta: np.ndarray, loss: float, spacing: float
) -> float:
    """The rounding with which a loss is evaluated near a point.

    Args:
        value: the loss as a function of a float64 array `(size,)`.
        theta: the point.
        loss: the loss there.
        spacing: the spacing of numbers near one in the dtype of the
            variables.

    Returns:
        One standard deviation of the loss's rounding, or by how much the
        rounding of the parameters keeps it from its minimum if that is more;
        not below what float64 explains for a number of its size. It takes
        four evaluations.
    """
    steps = _SPACING * spacing * _signs(theta.size) * _sizes(theta)
    losses = [loss, *(value(theta + i * steps) for i in range(1, _POINTS))]
    least = FINEST / 4 * abs(loss)
    if not np.isfinite(losses).all():
        return least
    # In units of the largest, so that no square overflows.
    unit = float(np.abs(np.diff(losses)).max()) or 1.0
    differences, estimates = np.diff(losses) / unit, []
    for order in range(2, _POINTS):
        differences = np.diff(differences)
        square = float(np.mean(differences**2))
        factor = math.factorial(order) ** 2 / math.factorial(2 * order)
        estimates.append(math.sqrt(factor * square) * unit)
        if order == 2:
            # What the nearest number to the best parameter costs: half of
            # half a spacing squared, times the curvature.
            stored = math.sqrt(square) * unit / (8 * _SPACING**2)
    # Low orders still hold the smooth part of the loss.
    noise = max(float(np.median(estimates)), stored, least)
    # Next to a cliff differences say nothing of rounding.
    return noise if noise <= _MOST_ROUNDING * abs(loss) else least


def vanished_noise(
    noise: float,
    promise: float,
    value: Value,
    theta: np.ndarray,
    loss: float,
    epsilon: float,
) -> float:
    """The rounding of a loss that is nothing beside the terms it is made of.

    The squares of residuals that are all rounding are as much smaller than
    those of residuals that a small change of the parameters makes as rounding
    is than that change.

    Args:
        noise: the rounding that was measured.
        promise: the decrease that a model of the loss promises.
        value: the loss as a function of a float64 array `(size,)`.
        theta: the point.
        loss: the loss there.
        epsilon: the spacing of numbers near one in the evaluation's dtype.

    Returns:
        The larger of both roundings; two evaluations, where the measured one
        does not explain the promise.
    """
    if not promise > ROUNDINGS * noise:
        return noise
    far, near = (value(theta * (1 + c * _CHANGE)) for c in (1.0, 0.5))
    is_square = 2 < far / near < 8 if near else False
    if not (is_square and math.isfinite(far)):
        return noise
    return max(noise, (epsilon / _CHANGE) ** 2 * far)


def _signs(size: int) -> np.ndarray:
    return np.random.default_rng(0).choice([-1.0, 1.0], size=size)


def _sizes(theta: np.ndarray) -> np.ndarray:
    """What a relative change of each parameter is relative to."""
    sizes = np.abs(theta)
    return sizes if sizes.any() else np.ones_like(theta)


def units_of(spread: np.ndarray) -> np.ndarray:
    """The units of parameters in which the gradient changes alike in all.

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
    return 2.0 ** np.round(np.clip(logarithms, -_MOST_UNITS, _MOST_UNITS))


def trial_evaluations(size: int, epsilon: float) -> int:
    """How many evaluations a claim is tried for.

    Args:
        size: the number of parameters.
        epsilon: the spacing of numbers near one in the evaluation's dtype.
    """
    more = min(2 * size, _COARSE_EVALUATIONS) if epsilon > FINEST else 0
    return _TRIAL_EVALUATIONS + more


def is_gain(
    before: float,
    after: float,
    epsilon: float,
    tolerance: float = 0.0,
    noise: float = 0.0,
) -> bool:
    """Whether a loss fell by more than what a claim leaves open.

    Args:
        before: the loss at the claimed point.
        after: the loss that was reached from there.
        epsilon: the spacing of numbers near one in the evaluation's dtype.
        tolerance: the user's own tolerance on a relative decrease.
        noise: the loss's rounding, if it was measured.
    """
    part = max(LEAST_GAIN, _GAIN_OF_ROUNDING * epsilon, tolerance)
    size = max(abs(before), abs(after))
    return before - after > max(part * size, 2 * noise)


def is_promising(promise: float, loss: float, tolerance: float) -> bool:
    """Whether a model promises more than the tolerance, or than rounding.

    Where it does not, a loss in float64 has converged and nothing else needs
    to be known.

    Args:
        promise: the decrease that a model of the loss promises.
        loss: the loss.
        tolerance: the part of the loss that is small enough.
    """
    return not promise <= max(max(tolerance, FINEST) * abs(loss), _TINIEST)


def sober(promise: float, theta: np.ndarray, grad: np.ndarray) -> float:
    """A promise, or what the slope promises for parameters of another size.

    Where the curvature is not known a promise may be any. What the slope alone
    promises when each parameter changes by ten times its own size bounds it.

    Args:
        promise: the decrease that a model of the loss promises.
        theta: the point.
        grad: the gradient there.
    """
    if (grad[theta == 0] != 0).any():
        return promise
    return min(promise, _TIMES_ITS_SIZE * float(np.abs(theta) @ np.abs(grad)))


def judge(
    promise: float,
    loss: float,
    tolerance: float,
    noise: float | None,
    failure: str = statuses.STALLED,
) -> Verdict:
    """What a point is from which a run gained nothing.

    Args:
        promise: the decrease that a model of the loss promises there.
        loss: the loss there.
        tolerance: the part of the loss that is small enough a promise.
        noise: the measured rounding of the loss, or `None` if it was not.
        failure: the status where the promise is more than rounding.
    """
    size = abs(loss) or 1.0
    share = promise / size
    allowed = max(tolerance, FINEST)
    if not is_promising(promise, loss, tolerance):
        return Verdict(statuses.CONVERGED, PROMISE, share, allowed)
    if noise is not None and promise <= ROUNDINGS * noise:
        threshold = ROUNDINGS * noise / size
        text = f"The measured rounding of the loss is {noise / size:.1e} of it."
        return Verdict(statuses.NOISE_FLOOR, PROMISE, share, threshold, text)
    if promise <= _LEAST_PROMISE * abs(loss):
        return Verdict(statuses.CONVERGED, PROMISE, share, _LEAST_PROMISE)
    return Verdict(failure, None, None, None, _unkept(share))


def _unkept(share: float) -> str:
    if math.isnan(share):
        return "Without finite derivatives nothing can be claimed."
    return (
        f"A model of the loss promises to lower it by {share:.2g} of itself, "
        "and no step did."
    )


def confirmed(
    verdict: Verdict,
    value: Value,
    theta: np.ndarray,
    grad: np.ndarray,
    loss: float,
    noise: float | None,
    epsilon: float,
) -> Verdict:
    """The verdict, after a look at whether the gradient is the loss's own.

    A success where the gradient is not small needs one that differences agree
    with: at a kink a model of the loss promises nothing, and is wrong.

    Args:
        verdict: by `judge`.
        value: the loss as a function of a float64 array `(size,)`.
        theta: the point.
        grad: the gradient there.
        loss: the loss there.
        noise: the measured rounding of the loss, or `None` if it was not.
        epsilon: the spacing of numbers near one in the evaluation's dtype.
    """
    is_success = verdict.status in statuses.SUCCESSES
    size = float(np.linalg.norm(grad))
    if is_success and loss == 0:
        return verdict
    is_coarse = epsilon > FINEST and noise is not None
    if is_success and is_coarse and abs(loss) <= ROUNDINGS * (noise or 0.0):
        text = _cancellation(value, theta, loss)
        if text:
            return Verdict(statuses.STALLED, None, None, None, text)
    if is_success and size * np.abs(theta).max() <= _STEEP * abs(loss):
        return verdict
    # Losses are rounded, and so are the points of differences.
    rounded = epsilon / 2 * float(np.abs(theta) @ np.abs(grad))
    noise = max(noise or 0.0, rounded, FINEST * abs(loss))
    agrees, text = compare_slope(value, theta, grad, loss, noise)
    if is_success and agrees is not False:
        promise = (verdict.value or 0.0) * abs(loss)
        text = _kink(value, theta, grad, loss, noise, promise)
    if is_success and not text:
        return verdict
    findings = text if is_success else f"{verdict.findings} {text}"
    status = statuses.STALLED if is_success else verdict.status
    return Verdict(status, None, None, None, findings)


def _cancellation(value: Value, theta: np.ndarray, loss: float) -> str:
    """Says so where a loss that is all rounding is lower with no parameters.

    Large parameters that cancel each other round more than small ones do.
    """
    without = value(np.zeros_like(theta))
    if not without < loss:
        return ""
    return (
        "The loss is all rounding here, and lower where every parameter is "
        f"zero ({without:.3g}): large parameters cancel each other."
    )


def _kink(
    value: Value,
    theta: np.ndarray,
    grad: np.ndarray,
    loss: float,
    noise: float,
    promise: float,
) -> str:
    """Says so where a small promise is due to a kink; four evaluations.

    The second difference of a smooth loss over a step is as the square of the
    step; that over a kink is as the step.
    """
    size = float(np.linalg.norm(grad))
    unit = grad / size
    step = 10 * max(2 * promise, _SEEN * noise) / size

    def bend(step: float) -> float:
        ahead, behind = value(theta - step * unit), value(theta + step * unit)
        return ahead + behind - 2 * loss

    near, far = bend(step), bend(10 * step)
    is_seen = _SEEN * noise < near <= _NEAR * abs(loss)
    if not (is_seen and far < 10**1.5 * near):
        return ""
    return (
        "The gradient is not small, and the loss has a kink here: within "
        f"{step:.2g} along the gradient it rises by {near:.2g}."
    )


def _reach(theta: np.ndarray, grad: np.ndarray, size: float) -> float:
    """How long the parameters are that the gradient moves."""
    if not size > 0:
        return 0.0
    return float((grad / size) ** 2 @ np.abs(theta)) or 1.0


def compare_slope(
    value: Value,
    theta: np.ndarray,
    grad: np.ndarray,
    loss: float,
    noise: float,
) -> tuple[bool | None, str]:
    """Says whether differences of the loss agree with its gradient.

    They do not at a point where a short step along it still gains.

    Args:
        value: the loss as a function of a float64 array `(size,)`.
        theta: the point.
        grad: the gradient there.
        loss: the loss there.
        noise: the measured rounding of the loss.

    Returns:
        Whether they agree, or `None` where rounding hides it, and a sentence
        with both figures, which may be empty; two evaluations.
    """
    size = float(np.linalg.norm(grad))
    reach = _reach(theta, grad, size)
    if not size > 0:
        return None, ""
    # Long enough to be seen, and else short.
    step = min(reach, max(100 * noise / size, _SHORT * reach))
    ahead = value(theta - step / size * grad)
    behind = value(theta + step / size * grad)
    expected, found = -2 * step * size, ahead - behind
    least = max(20 * noise, LEAST_GAIN * abs(loss), _TINIEST)
    is_blocked = math.isfinite(behind) and not math.isfinite(ahead)
    if is_blocked and abs(expected) > least:
        return False, "The loss is not finite a short step along the gradient."
    bent = abs(ahead + behind - 2 * loss) > _BENT * abs(expected)
    if not math.isfinite(found) or bent or abs(expected) <= least:
        return None, ""
    if loss - ahead > max(ROUNDINGS * noise, LEAST_GAIN * abs(loss)):
        return False, (
            "A short step along the gradient still lowers the loss by "
            f"{loss - ahead:.3g}."
        )
    if abs(found - expected) <= _AGREES * abs(expected) + 4 * noise:
        return True, "The gradient agrees with differences of the loss."
    return False, (
        "The gradient and differences of the loss disagree: over a step along "
        f"the gradient the loss changes by {found:.3g}, and the gradient says "
        f"{expected:.3g}. The loss has a kink there, or its derivative is "
        "another function's."
    )
