"""Names the parameter that ran away, if a loss may have no minimum."""

import numpy as np

from kormos.solvers import statuses
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.types import Vector

# Ends at which the loss may still have been falling. At a noise floor, it was
# falling if a model predicts a decrease of more than this part of the loss. Our
# choice: a smaller part would include losses that have converged.
_OPEN = (
    statuses.STALLED,
    statuses.LINE_SEARCH_FAILED,
    statuses.NON_FINITE,
)
_STILL_FALLING = 1e-6
# A parameter diverges if it has changed by this many times its own size. Our
# choice: a smaller number would include parameters that only started far away.
_FAR = 10.0
# At a limit, a parameter is named if it has changed by this many times its own
# size. Our choice: rate constants, for example, may be far from their starts.
_VERY_FAR = 1e12
# A loss falls on if going as far again, from the start or from zero, leaves at
# most the first part of it, or makes a negative loss at least the second number
# times as large. Our choice: a loss that has a minimum rises there.
_TOWARDS_ZERO, _BELOW_ZERO = 0.1, 1.5


def name_what_ran_away(
    outcome: Outcome, problem: Problem, start: tuple[Vector, float]
) -> None:
    """Adds a sentence if the loss was still falling, far from the start.

    Args:
        outcome: the end of a run. If the loss has no minimum, its status is
            changed.
        problem: the problem.
        start: where the run began, and the loss there.
    """
    theta, first = start
    size = np.maximum(np.abs(theta), min(1.0, np.abs(theta).max() or 1.0))
    moved = np.abs(outcome.theta - theta) / size
    index = int(np.argmax(moved))
    far = moved[index]
    ran = (
        f"{problem.objective.name_of(index)} ran from {theta[index]:.4g} to "
        f"{outcome.theta[index]:.4g}"
    )
    if far >= _FAR and _falls_on(outcome, problem, start):
        where, example = "", ""
        if outcome.loss > 0:
            where = " towards zero"
            example = ", as with classes that can be separated"
        outcome.findings += (
            f" {ran}, and the loss falls on{where} beyond: it may have no "
            f"minimum{example}."
        )
        if _is_open(outcome) or outcome.status in statuses.SUCCESSES:
            outcome.status, outcome.test = statuses.UNBOUNDED, None
    elif (
        # Constraints may bound it.
        far >= (_VERY_FAR if problem.constraints else _FAR)
        and _is_open(outcome)
        and outcome.loss < min(first, 0)
    ):
        outcome.status = statuses.UNBOUNDED
        outcome.findings += (
            " The loss was still falling below zero, and may have no "
            f"minimum: {ran}."
        )
    elif far >= _VERY_FAR and (
        outcome.status is None or outcome.status in statuses.LIMITS
    ):
        outcome.findings += (
            f" {ran}: the data may not bound it, and then the loss has no "
            "minimum."
        )


def _is_open(outcome: Outcome) -> bool:
    """Whether the loss may still have been falling."""
    return outcome.status in _OPEN or (
        outcome.status == statuses.NOISE_FLOOR
        and outcome.value is not None
        and outcome.value > _STILL_FALLING
    )


def _falls_on(
    outcome: Outcome, problem: Problem, start: tuple[Vector, float]
) -> bool:
    """Whether a loss that is nearly zero, or negative, falls beyond the end."""
    theta, first = start
    loss = outcome.loss
    if problem.constraints:
        return False
    if 0 < loss <= problem.evaluation_eps**0.5 * first:
        most = _TOWARDS_ZERO * loss
    elif loss < min(first, 0):
        most = _BELOW_ZERO * loss
    else:
        return False
    steps = [outcome.theta - theta]
    if theta.any():
        steps.append(outcome.theta)
    for step in steps:
        nearer, farther = (
            problem.peek(problem.project(outcome.theta + factor * step))
            for factor in (1, 3)
        )
        if farther <= nearer <= most:
            return True
    return False
