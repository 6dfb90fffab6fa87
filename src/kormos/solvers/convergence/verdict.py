"""The verdict on a point, from what was predicted and gained there."""

import math
from typing import NamedTuple

import numpy as np

from kormos.solvers import statuses
from kormos.solvers.convergence.noise import FINEST
from kormos.solvers.convergence.noise import ROUNDINGS
from kormos.types import Vector

# A run from a claimed end must lower the loss by less than this part of it. Our
# choice: with a smaller value, runs continue for gains that no user sees; with
# a larger one, they end in flat valleys.
LEAST_GAIN = 1e-10
# In a narrower dtype it may lower it by this part of the dtype's spacing.
_GAIN_OF_ROUNDING = 0.1
# Where a run gained less, its model may still predict a decrease by this part
# of the loss: the model is wrong more often than the run.
_LEAST_PROMISE = 1e-8

# A trial of a claim takes this many evaluations. In a narrower dtype it takes
# two more for each parameter, up to the second number, because the first steps
# are lost in rounding. Our choice: a longer trial disproves more claims, and
# every fit pays for it at its end.
_TRIAL_EVALUATIONS, _COARSE_EVALUATIONS = 10, 20

# No parameter is expected to change by more than this many times its own size.
_TIMES_ITS_SIZE = 10.0

# Smaller numbers have lost digits to underflow.
TINIEST = 1e-290

PROMISE = "predicted relative decrease of the loss"
DECREASE = "predicted decrease of the loss"


class Verdict(NamedTuple):
    """The result of the tests at a point.

    Attributes:
        status: one of the constants of `statuses`.
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


def trial_evaluations(size: int, evaluation_eps: float) -> int:
    """How many evaluations the trial of a claim takes.

    Args:
        size: the number of parameters.
        evaluation_eps: the machine epsilon of the evaluation's dtype.
    """
    more = min(2 * size, _COARSE_EVALUATIONS) if evaluation_eps > FINEST else 0
    return _TRIAL_EVALUATIONS + more


def is_gain(
    before: float,
    after: float,
    evaluation_eps: float,
    tolerance: float = 0.0,
    noise: float = 0.0,
) -> bool:
    """Whether a loss fell by more than a claim allows.

    Args:
        before: the loss at the claimed point.
        after: the loss that was reached from there.
        evaluation_eps: the machine epsilon of the evaluation's dtype.
        tolerance: the user's own tolerance on a relative decrease.
        noise: the loss's rounding, if it was measured.
    """
    part = max(LEAST_GAIN, _GAIN_OF_ROUNDING * evaluation_eps, tolerance)
    size = max(abs(before), abs(after))
    # Both losses are rounded.
    return before - after > max(part * size, 2 * noise)


def is_promising(promise: float, loss: float, tolerance: float) -> bool:
    """Whether a model predicts more than the tolerance, or than rounding.

    If it does not, a loss in float64 has converged, and nothing else needs to
    be known.

    Args:
        promise: the decrease that a model of the loss predicts.
        loss: the loss.
        tolerance: a predicted decrease of this part of the loss is small.
    """
    return not promise <= max(max(tolerance, FINEST) * abs(loss), TINIEST)


def sober(promise: float, theta: Vector, grad: Vector) -> float:
    """A predicted decrease, bounded by what the slope can account for.

    Where the curvature is not known, a model may predict any decrease. The
    bound is what the slope predicts if each parameter changes by ten times its
    own size. There is none if a parameter that is zero has a gradient.

    Args:
        promise: the decrease that a model of the loss predicts.
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
    """The verdict on a point from which a run gained nothing.

    Args:
        promise: the decrease that a model of the loss predicts there.
        loss: the loss there.
        tolerance: a predicted decrease of this part of the loss is small.
        noise: the measured rounding of the loss, or `None` if it was not
            measured.
        failure: the status if the prediction is more than rounding.
    """
    size = size_of_loss(loss)
    share = promise / size
    allowed = max(tolerance, FINEST)
    if not is_promising(promise, loss, tolerance):
        if promise > allowed * abs(loss):
            return Verdict(statuses.CONVERGED, DECREASE, promise, TINIEST)
        return Verdict(statuses.CONVERGED, PROMISE, share, allowed)
    if noise is not None and promise <= ROUNDINGS * noise:
        threshold = ROUNDINGS * noise / size
        of_it = " of it" if loss else ""
        text = (
            f"The measured rounding of the loss is {noise / size:.1e}{of_it}."
        )
        return Verdict(statuses.NOISE_FLOOR, PROMISE, share, threshold, text)
    if promise <= _LEAST_PROMISE * abs(loss):
        return Verdict(statuses.CONVERGED, PROMISE, share, _LEAST_PROMISE)
    return Verdict(failure, None, None, None, _unkept(share, loss))


def size_of_loss(loss: float) -> float:
    """What parts of a loss are relative to: one where the loss is zero."""
    return abs(loss) or 1.0


def _unkept(share: float, loss: float) -> str:
    if math.isnan(share):
        return "Without finite derivatives, convergence cannot be tested."
    of_itself = " of itself" if loss else ""
    return (
        f"A model of the loss predicts that a step lowers it by {share:.2g}"
        f"{of_itself}, but no step did."
    )
