"""From float32 to float64 in the middle of a fit, and back at its end."""

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np

from kormos.float64.choice import decide
from kormos.objective.base import FlatObjective
from kormos.objective.bounds import resolve_constraints
from kormos.objective.layout import Packing
from kormos.session.run import ConvergenceWarning
from kormos.solvers import statuses
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Constraint
from kormos.solvers.problem import Problem
from kormos.types import Vector
from kormos.warn import warn


def goes_on_in_float64(outcome: Outcome, objective: FlatObjective) -> bool:
    """Whether float32 cannot get further, and float64 may follow.

    Args:
        outcome: the `Outcome` of a run.
        objective: the `FlatObjective` of that run.
    """
    is_ended = outcome.status in statuses.WIDENING
    return objective.has_float64 and is_ended


def go_on_in_float64(
    objectives: Sequence[FlatObjective | None],
) -> Callable[[], None]:
    """Evaluates in float64 from now on.

    Returns:
        A function that goes back to float32.
    """
    kept = [(o, dict(vars(o))) for o in objectives if o is not None]

    def undo() -> None:
        for objective, attributes in kept:
            vars(objective).clear()
            vars(objective).update(attributes)

    try:
        for objective, _ in kept:
            objective.go_on_in_float64()
    except BaseException:
        undo()
        raise
    return undo


def resolved(objective: FlatObjective, constraints: Any) -> list[Constraint]:
    """The `Constraint`s for an objective. They may rule out float64."""

    def made(packing: Packing) -> list[Constraint]:
        return resolve_constraints(constraints, packing, Constraint)

    if constraints and objective.has_float64:
        wide = Packing(objective.variables, "float64")
        objective.has_float64 = decide("auto", lambda: made(wide))
    return made(objective.program.packing)


def warn_of_staying(error: Exception) -> None:
    """Warns that a fit ends where float32 ended, and why."""
    warn(
        "Float64 (precision='auto') failed, so the fit ends where float32 "
        f"has ended. Received: {type(error).__name__}, {error}",
        ConvergenceWarning,
    )


def with_kept_loss(
    outcome: Outcome,
    objective: FlatObjective,
    problem: Problem,
    start: Vector | None = None,
) -> Outcome:
    """The outcome, with the loss at the point that the variables keep.

    Variables round a point that was computed in a wider dtype. Their loss must
    not be higher at the end than at the start.

    Args:
        outcome: the `Outcome` of a run, whose point is assigned.
        objective: the `FlatObjective` of the run.
        problem: the `Problem` of the run.
        start: the variables' values before the run, which are restored if they
            are better; or `None`.
    """
    is_wider = objective.storage_eps > objective.evaluation_eps
    if not (is_wider and np.isfinite(outcome.loss)):
        return outcome
    # Rounding may lead to where the numerics fail.
    loss = problem.peek(objective.initial_position())
    if start is not None:
        before = problem.peek(start)
        if np.isfinite(before) and not loss <= before:
            objective.assign(start)
            loss = before
    return dataclasses.replace(outcome, kept_loss=loss)
