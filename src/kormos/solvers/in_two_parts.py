"""Runs a solver on a loss whose L1-regularized weights are in two parts."""

from __future__ import annotations

import copy
from collections.abc import Callable

from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Constraint
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Iterate
from kormos.solvers.protocols import Observer
from kormos.solvers.protocols import PartsObjective
from kormos.solvers.protocols import Point
from kormos.solvers.solver_state import SolverState
from kormos.solvers.solver_state import is_rounding
from kormos.types import Matrix
from kormos.types import Vector

_Solve = Callable[[Problem, Vector, SolverState | None, Observer], Outcome]


class _Whole:
    """Reports to an observer the weights that belong to a solver's parts.

    Args:
        observer: the observer of the run.
        problem: the problem of the whole weights, which has the run's counts.
        parts: the problem of the parts.
        objective: the loss of the parts.
    """

    def __init__(
        self,
        observer: Observer,
        problem: Problem,
        parts: Problem,
        objective: PartsObjective,
    ) -> None:
        self._observer = observer
        self._problem, self._parts = problem, parts
        self._objective = objective

    def started(self, point: Point) -> bool:
        self._count()
        grad = point.grad
        return self._observer.started(
            Point(
                self._objective.point_of(point.theta),
                point.loss - self._objective.surplus(point.theta),
                None if grad is None else grad[: self._problem.size],
            )
        )

    def accepted(self, iterate: Iterate) -> bool:
        self._count()
        theta, logs = iterate.theta, dict(iterate.logs)
        assert theta is not None  # The run is looked at after every iteration.
        loss = iterate.loss - self._objective.surplus(theta)
        if "active" in logs:
            # One part of every weight is at its bound.
            split = self._parts.size - self._problem.size
            logs["active"] = max(logs["active"] - split, 0)
        target = self._problem.budget.target
        is_reached = target is not None and loss <= target
        stop = self._observer.accepted(
            iterate._replace(
                theta=self._objective.point_of(theta),
                loss=loss,
                logs=logs,
            )
        )
        return stop or is_reached

    def _count(self) -> None:
        self._problem.fg_evals = self._parts.fg_evals


def _of_parts(constraint: Constraint, objective: PartsObjective) -> Constraint:
    """A constraint on the weights, as a function of their parts."""

    def fun(parts: Vector) -> Vector:
        return constraint.fun(objective.point_of(parts))

    def jac(parts: Vector) -> Matrix:
        return objective.columns_of(constraint.jac(objective.point_of(parts)))

    return constraint._replace(fun=fun, jac=jac)


def run_in_parts(
    problem: Problem,
    objective: PartsObjective,
    theta: Vector,
    state: SolverState | None,
    observer: Observer,
    solve: _Solve,
) -> Outcome:
    """Runs a solver that takes bounds on the parts of the weights.

    Args:
        problem: the problem of the whole weights.
        objective: its loss, as a function of the parts.
        theta: the start, `(size,)`.
        state: the `SolverState` of the parts to continue from, or `None`.
        observer: the observer.
        solve: function of a problem, a start, a state and an observer.

    Returns:
        The `Outcome` for the whole weights. Its state is that of the parts.
    """
    problem.verify(Problem.evaluate, theta)
    parts = copy.copy(problem)
    parts.objective, parts.size = objective, objective.size
    parts.lower, parts.upper = objective.box_of(problem.lower, problem.upper)
    parts.is_bounded = True
    # The loss of the weights is computed from the parts, and a compiled call
    # returns only the parts of its last iteration.
    parts.stride = 1
    parts.constraints = [_of_parts(c, objective) for c in problem.constraints]
    whole = _Whole(observer, problem, parts, objective)
    begin = _begin(state, objective, theta, problem.storage_eps)
    outcome = solve(parts, *begin, whole)
    problem.fg_evals = parts.fg_evals
    outcome.loss -= objective.surplus(outcome.theta)
    outcome.theta = objective.point_of(outcome.theta)
    # The parts have slopes where the weights have kinks.
    outcome.evaluate = outcome.hessian = None
    return outcome


def _begin(
    state: SolverState | None,
    objective: PartsObjective,
    theta: Vector,
    storage_eps: float,
) -> tuple[Vector, SolverState | None]:
    """The parts from which a run begins, and the state to continue from.

    Args:
        state: the state of an earlier run, or `None`.
        objective: the loss of the parts.
        theta: the weights as they are now.
        storage_eps: the rounding of the variables.
    """
    start = objective.parts_of(theta)
    if state is None:
        return start, None
    # In the middle of a run, both parts of a weight may be positive.
    own = state.arrays()["theta"]
    is_same = own.size == start.size and is_rounding(
        objective.point_of(own) if state.position is None else state.position,
        theta,
        storage_eps,
    )
    return own if is_same else start, state.at(own)
