"""Steps below the rounding of the loss, at the end of a least-squares run."""

from collections.abc import Iterator

import numpy as np

from kormos.solvers.convergence import FINEST
from kormos.solvers.least_squares.local_models import Linearized
from kormos.solvers.least_squares.local_models import LocalModels
from kormos.solvers.least_squares.step_search import Found
from kormos.solvers.problem import Problem

# The most steps, and the part of the loss by which it may rise in each of them.
# Our choice: with a smaller part, rounding of a loss of many rows would end the
# polishing.
_MOST_STEPS = 12
_MOST_RISE = 1e-10
# Steps contract if each is at most this part of one of the two before it. Our
# choice: near one, steps would only follow rounding.
_CONTRACTION = 0.9


def polishing_steps(
    problem: Problem, models: LocalModels, here: Linearized
) -> Iterator[Found]:
    """Yields Gauss-Newton steps while they contract.

    Near a minimum, rounding hides every change of the loss once half of the
    parameters' digits are right. The steps are computed from the gradient,
    which is more precise.

    Args:
        problem: the `Problem`.
        models: makes models of the loss.
        here: what is known at the end of the run.
    """
    if problem.evaluation_eps > FINEST:
        return
    # A step in fast directions is followed by one in slow directions, so a step
    # is compared with the longer of the two before.
    before = last = np.inf
    for _ in range(_MOST_STEPS):
        step = here.model.damped(0.0)
        contracts = step.length <= _CONTRACTION * max(before, last)
        if not (contracts and here.model.has_full_rank):
            return
        if problem.spent() is not None:
            return
        before, last = last, step.length
        theta = problem.project(here.theta + step.vector)
        loss = problem.value(theta)
        if not loss <= here.loss + _MOST_RISE * abs(here.loss):
            return
        moved = np.abs(theta - here.theta)
        if np.all(moved <= FINEST * np.abs(theta)):
            return
        there = models.at(theta, loss)
        if there is None:
            return
        yield Found(there, float(np.linalg.norm(theta - here.theta)), 1)
        here = there
