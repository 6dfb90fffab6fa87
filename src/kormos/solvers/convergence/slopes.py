"""Compares the gradient at a point with finite differences of the loss."""

import math
from collections.abc import Callable

import numpy as np

from kormos.solvers import statuses
from kormos.solvers.convergence.noise import FINEST
from kormos.solvers.convergence.noise import ROUNDINGS
from kormos.solvers.convergence.noise import Value
from kormos.solvers.convergence.noise import measured_noise
from kormos.solvers.convergence.verdict import LEAST_GAIN
from kormos.solvers.convergence.verdict import TINIEST
from kormos.solvers.convergence.verdict import Verdict
from kormos.types import Vector

# The gradient is small if changing every parameter by its own size would
# change the loss by no more than this part of it. Our choice: a larger value
# skips the check where it could find something, a smaller one spends its
# evaluations on ends where it never does.
_SMALL_SLOPE = 1e-4

# For the comparison of slopes. The loss's second difference may be this many
# times the change that the gradient predicts; above that, differences say
# nothing about the slope.
_MOST_BEND = 3.0
# A step of this part of the parameters' length is short.
_SHORT = 1e-5
# The step is as long as needed to predict a change of the first number of
# roundings. If the longest allowed step predicts fewer than the second number,
# nothing is compared.
_VISIBLE, _LEAST_VISIBLE = 100.0, 20.0
# The difference may miss the prediction by this part of it, and by this many
# roundings more: two losses are rounded.
_AGREEMENT, _ROUNDED = 0.5, 4.0

# For kinks. A second difference of this many roundings is visible.
_VISIBLE_KINK = 100.0
# A kink is looked for within a change of the loss by this part of it.
_NEAR = 1e-3
# The second difference is compared over a step that is the first number times
# as long. That of a smooth loss grows by the square of this number, that across
# a kink by the number itself. The second number lies between the two.
_FARTHER = 10.0
_KINK_GROWTH = _FARTHER**1.5

Project = Callable[[Vector], Vector]


def _anywhere(theta: Vector) -> Vector:
    """The point itself, where there are no bounds."""
    return theta


def confirmed(
    verdict: Verdict,
    value: Value,
    theta: Vector,
    grad: Vector,
    loss: float,
    noise: float | None,
    evaluation_eps: float,
    project: Project = _anywhere,
) -> Verdict:
    """The verdict, after a check that the gradient is that of the loss.

    Where the gradient is not small, it must agree with differences of the loss
    for a success. At a kink, for example, a smooth model of the loss predicts
    no decrease, and is wrong.

    Args:
        verdict: by `judge`.
        value: the loss as a function of a float64 array `(size,)`.
        theta: the point.
        grad: the gradient there, without what presses against bounds.
        loss: the loss there.
        noise: the measured rounding of the loss, or `None` if it was not
            measured. It is then measured before a success is refused.
        evaluation_eps: the machine epsilon of the evaluation's dtype.
        project: function that moves a point into the bounds.
    """
    is_success = verdict.status in statuses.SUCCESSES
    size = float(np.linalg.norm(grad))
    if is_success and loss == 0:
        return verdict
    is_coarse = evaluation_eps > FINEST and noise is not None
    if is_success and is_coarse and abs(loss) <= ROUNDINGS * (noise or 0.0):
        text = _cancellation(value, theta, loss)
        if text:
            return Verdict(statuses.STALLED, None, None, None, text)
    if is_success and size * np.abs(theta).max() <= _SMALL_SLOPE * abs(loss):
        return verdict
    here = verdict, value, theta, grad, loss
    text = _doubt(*here, noise, evaluation_eps, project)
    if is_success and text and noise is None:
        # Where the terms of a loss nearly cancel, its rounding error is much
        # larger than its size suggests. That error may look like a kink.
        noise = measured_noise(value, theta, loss, evaluation_eps)
        text = _doubt(*here, noise, evaluation_eps, project)
    if is_success and not text:
        return verdict
    findings = text if is_success else f"{verdict.findings} {text}"
    status = statuses.STALLED if is_success else verdict.status
    return Verdict(status, None, None, None, findings)


def _doubt(
    verdict: Verdict,
    value: Value,
    theta: Vector,
    grad: Vector,
    loss: float,
    noise: float | None,
    evaluation_eps: float,
    project: Project,
) -> str:
    """A sentence if differences of the loss contradict the gradient."""
    # Losses are rounded, and so are the points at which they are taken.
    rounded = evaluation_eps / 2 * float(np.abs(theta) @ np.abs(grad))
    noise = max(noise or 0.0, rounded, FINEST * abs(loss))
    agrees, text = compare_slope(value, theta, grad, loss, noise, project)
    if verdict.status not in statuses.SUCCESSES or agrees is False:
        return text
    promise = (verdict.value or 0.0) * abs(loss)
    return _kink(value, theta, grad, loss, noise, promise, project)


def _cancellation(value: Value, theta: Vector, loss: float) -> str:
    """A sentence if the loss is only rounding, and lower at zero parameters.

    Large parameters that cancel each other round more than small ones do.
    """
    without = value(np.zeros_like(theta))
    if not without < loss:
        return ""
    return (
        "The loss consists only of rounding errors here, and is lower where "
        f"every parameter is zero ({without:.3g}): large parameters cancel "
        "each other."
    )


def _kink(
    value: Value,
    theta: Vector,
    grad: Vector,
    loss: float,
    noise: float,
    promise: float,
    project: Project,
) -> str:
    """A sentence, if the predicted decrease is small because of a kink.

    The second difference of a smooth loss grows as the square of the step;
    that across a kink grows as the step. It takes four evaluations.

    Args:
        value: the loss as a function of a point.
        theta: the point.
        grad: the gradient there.
        loss: the loss there.
        noise: the rounding of the loss.
        promise: the decrease that a model of the loss predicts.
        project: function that moves a point into the bounds.
    """
    size = float(np.linalg.norm(grad))
    step = 10 * max(2 * promise, _VISIBLE_KINK * noise) / size
    kept, rest = _inside(theta, grad, _FARTHER * step / size, project)
    if not rest > 0:
        return ""
    step, unit = step * (rest / size), kept / rest

    def bend(step: float) -> float:
        ahead, behind = value(theta - step * unit), value(theta + step * unit)
        return ahead + behind - 2 * loss

    near, far = bend(step), bend(_FARTHER * step)
    is_seen = _VISIBLE_KINK * noise < near <= _NEAR * abs(loss)
    if not (is_seen and far < _KINK_GROWTH * near):
        return ""
    return (
        "The gradient is not small, and the loss has a kink here: within "
        f"{step:.2g} along the gradient it rises by {near:.2g}."
    )


def compare_slope(
    value: Value,
    theta: Vector,
    grad: Vector,
    loss: float,
    noise: float,
    project: Project = _anywhere,
) -> tuple[bool | None, str]:
    """Whether differences of the loss agree with its gradient.

    They also disagree if a short step against the gradient still lowers the
    loss. The comparison takes two evaluations.

    Args:
        value: the loss as a function of a float64 array `(size,)`.
        theta: the point.
        grad: the gradient there.
        loss: the loss there.
        noise: the measured rounding of the loss.
        project: function that moves a point into the bounds. Parameters that a
            step would move out of the bounds stay where they are.

    Returns:
        Whether they agree, or `None` where rounding hides it; and a sentence
        with both figures, which may be empty.
    """
    size = float(np.linalg.norm(grad))
    reach = _reach(theta, grad, size)
    if not size > 0:
        return None, ""
    # As short as possible, but long enough to be visible.
    step = min(reach, max(_VISIBLE * noise / size, _SHORT * reach))
    grad, rest = _inside(theta, grad, step / size, project)
    if not rest > 0:
        return None, ""
    step, size = step * (rest / size), rest
    ahead = value(theta - step / size * grad)
    behind = value(theta + step / size * grad)
    expected, found = -2 * step * size, ahead - behind
    least = max(_LEAST_VISIBLE * noise, LEAST_GAIN * abs(loss), TINIEST)
    is_blocked = math.isfinite(behind) and not math.isfinite(ahead)
    if is_blocked and abs(expected) > least:
        return False, "The loss is not finite a short step along the gradient."
    bent = abs(ahead + behind - 2 * loss) > _MOST_BEND * abs(expected)
    if not math.isfinite(found) or bent or abs(expected) <= least:
        return None, ""
    if loss - ahead > max(ROUNDINGS * noise, LEAST_GAIN * abs(loss)):
        return False, (
            "A short step along the gradient still lowers the loss by "
            f"{loss - ahead:.3g}."
        )
    allowed = _AGREEMENT * abs(expected) + _ROUNDED * noise
    if abs(found - expected) <= allowed:
        return True, (
            "The gradient agrees with finite differences of the loss."
        )
    return False, (
        "The gradient and finite differences of the loss disagree: over a "
        f"step along the gradient the loss changes by {found:.3g}, and the "
        f"gradient says {expected:.3g}. The loss has a kink there, or its "
        "derivative is that of another function."
    )


def _inside(
    theta: Vector, grad: Vector, factor: float, project: Project
) -> tuple[Vector, float]:
    """The part of the gradient along which both sides lie in the bounds.

    Args:
        theta: the point.
        grad: the gradient there.
        factor: the step to each side, over the gradient.
        project: function that moves a point into the bounds.

    Returns:
        The gradient with zeros elsewhere, and its length.
    """
    ahead, behind = theta - factor * grad, theta + factor * grad
    inside = (project(ahead) == ahead) & (project(behind) == behind)
    kept = np.where(inside, grad, 0.0)
    return kept, float(np.linalg.norm(kept))


def _reach(theta: Vector, grad: Vector, size: float) -> float:
    """The typical size of the parameters that the gradient moves."""
    if not size > 0:
        return 0.0
    return float((grad / size) ** 2 @ np.abs(theta)) or 1.0
