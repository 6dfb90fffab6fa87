"""Looks around the end of a run that counts as an optimum.

It may be a plateau with saturated units, or a saddle point, and then it is
none. Or the data do not determine some of the parameters there.
"""

import numpy as np

from kormos.processes import now
from kormos.solvers import statuses
from kormos.solvers.constrained.saddle import beside_constraints
from kormos.solvers.fresh_run import MOST_NEWTON
from kormos.solvers.identification import EVERYWHERE
from kormos.solvers.identification import undetermined
from kormos.solvers.outcome import Outcome
from kormos.solvers.parameter_units import sizes_of
from kormos.solvers.plateau import loss_below
from kormos.solvers.problem import Problem
from kormos.solvers.saddle import beside
from kormos.solvers.surroundings import Box
from kormos.solvers.surroundings import Evaluate
from kormos.solvers.surroundings import Point
from kormos.types import Vector


def look_around(
    outcome: Outcome,
    problem: Problem,
    start: tuple[Vector, float],
    began: float,
) -> None:
    """Corrects the status of an end that is not an optimum; adds sentences.

    Args:
        outcome: the end, a success. It is left alone for methods without
            gradients, and if a penalty was minimized instead of the loss.
            Under constraints, only saddle points are looked for.
        problem: the problem.
        start: where the run began, and the loss there.
        began: the time at which it did.
    """
    evaluate = outcome.evaluate
    is_of_loss = problem.constraints or not outcome.is_penalized
    if evaluate is None or not is_of_loss:
        return
    theta = np.array(outcome.theta)
    here = Point(theta, *evaluate(theta))
    box = problem.box if problem.is_bounded else EVERYWHERE
    if problem.constraints:
        if problem.size <= MOST_NEWTON:
            _is_curved_down(outcome, problem, evaluate, here)
        else:
            _is_saddle(outcome, problem, _within(problem, evaluate), here, box)
        return
    if _is_plateau(outcome, problem, evaluate, here):
        return
    if _is_saddle(outcome, problem, evaluate, here, box):
        return
    found = undetermined(
        evaluate,
        outcome.hessian,
        start,
        here,
        box,
        problem.evaluation_eps,
        now() - began,
    )
    if found is not None:
        outcome.findings += found.sentences(problem.objective.name_of)


def _within(problem: Problem, evaluate: Evaluate) -> Evaluate:
    """An evaluation whose loss is infinite where constraints do not hold."""

    def within(theta: Vector) -> tuple[float, Vector]:
        loss, grad = evaluate(theta)
        return loss if problem.is_feasible(theta) else np.inf, grad

    return within


def _is_plateau(
    outcome: Outcome, problem: Problem, evaluate: Evaluate, here: Point
) -> bool:
    """Whether an end is a plateau; says so in the outcome."""
    below = loss_below(evaluate, here, problem.evaluation_eps, problem.project)
    if below is None:
        return False
    _deny(
        outcome,
        " The loss does not change around this point, as with saturated "
        f"units, but with smaller parameters it is {below:.6g}: start "
        "there, or scale the data.",
    )
    return True


def _is_saddle(
    outcome: Outcome,
    problem: Problem,
    evaluate: Evaluate,
    here: Point,
    box: Box,
) -> bool:
    """Whether an end is a saddle point; notes a lower point if so."""
    lower, upper = box
    theta = here.theta
    is_inside = (lower < theta) & (theta < upper)
    for constraint in problem.constraints:
        is_inside &= (constraint.jac(theta) == 0).all(axis=0)
    found = beside(
        evaluate,
        here,
        is_inside,
        sizes_of(theta, None),
        problem.evaluation_eps,
        problem.project,
    )
    if found is None:
        return False
    outcome.below = found.theta
    count = np.count_nonzero(here.grad == 0)
    _deny(
        outcome,
        f" The gradient is zero in {count} parameters, but the point is a "
        f"saddle point: beside it the loss is {found.loss:.6g}. Give more "
        "iterations, or start elsewhere.",
    )
    return True


def _is_curved_down(
    outcome: Outcome, problem: Problem, evaluate: Evaluate, here: Point
) -> None:
    """Notes a lower point beside an end where only the slopes are zero."""
    found = beside_constraints(problem, evaluate, here)
    if found is None or not found.loss < here.loss:
        # The multipliers may not be unique, and then say less.
        return
    outcome.below = found.theta
    _deny(
        outcome,
        " The point is a maximum or a saddle point under the constraints: "
        f"beside it the loss is {found.loss:.6g}. Give more iterations, or "
        "start elsewhere.",
    )


def _deny(outcome: Outcome, why: str) -> None:
    """Takes back that an end is an optimum, and says why."""
    outcome.status, outcome.test = statuses.STALLED, None
    outcome.findings += why
