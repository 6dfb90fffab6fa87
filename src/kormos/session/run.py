"""One run of a solver, which keeps the best point.

The best point, interrupts, and the reason for the end are handled in the same
way for all functions.
"""

import dataclasses
import numbers

import numpy as np

from kormos.checks import check_count
from kormos.optimizers.stage import Stage
from kormos.processes import now
from kormos.session import interrupts
from kormos.session.end_checks import look_around
from kormos.session.float64_trial import tried_in_float64
from kormos.session.result import Result
from kormos.session.runaway import name_what_ran_away
from kormos.solvers import statuses
from kormos.solvers.budget import Budget
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Iterate
from kormos.solvers.protocols import Observer
from kormos.solvers.protocols import Point
from kormos.solvers.solver_state import SolverState
from kormos.types import Vector


class ConvergenceWarning(UserWarning):
    """Warns that a run ended before an optimum: at a limit, or with no step."""


class Run:
    """One run of a stage.

    Args:
        stage: the `Stage`.
        problem: the `Problem`.
        observer: the `Observer` of the session.

    Attributes:
        stage: the same.
        problem: the same.
        initial_loss: the loss at the start, or `None` before that is known.
        iterations: the number of accepted iterates so far.
        best: the best point and the loss there, once the run has begun.
        state: the `SolverState` of the latest iterate, or `None`.
    """

    best: tuple[Vector, float]

    def __init__(self, stage: Stage, problem: Problem, observer: Observer):
        self.stage = stage
        self.problem = problem
        self._observer = observer
        self.initial_loss: float | None = None
        self.iterations = 0
        self.state: SolverState | None = None
        self._starts_finite = True

    def __call__(
        self, theta: Vector, state: SolverState | None = None
    ) -> Outcome:
        """Runs from a point.

        Args:
            theta: the point.
            state: the `SolverState` to continue from, or `None`.

        Returns:
            An `Outcome`, with status `None` if a callback asked for the end.
            After an exception other than `KeyboardInterrupt`, which is
            raised, `best` is the point to keep.
        """
        self.best = theta, np.nan
        self.state = state
        self._is_resumed = state is not None
        self._start, self._began = np.array(theta), now()
        try:
            outcome = self.stage.run(self.problem, theta, state, self)
            self.state = outcome.state
            outcome = self._judged(outcome)
            if outcome.status in statuses.SUCCESSES:
                assert self.initial_loss is not None  # The solver has told it.
                start = self._start, self.initial_loss
                look_around(outcome, self.problem, start, self._began)
        except KeyboardInterrupt as error:
            interrupts.take(error)
            theta, loss = self.best
            outcome = Outcome(statuses.INTERRUPTED, theta, loss)
        if self.state is not None and self.state.is_lost:
            self.state = None
        findings = outcome.findings, self.problem.raised.sentence()
        outcome.findings = " ".join(filter(None, findings))
        return outcome

    def _judged(self, outcome: Outcome) -> Outcome:
        """The outcome, with the best point and what the run knows about it."""
        if not self._starts_finite:
            outcome.status = statuses.NON_FINITE
        elif self._meets_target(*self.best):
            outcome = self._target_reached(outcome)
        assert self.initial_loss is not None  # The solver has told it.
        start = self._start, self.initial_loss
        if outcome.is_penalized:
            # Here, a predicted decrease of only the loss says nothing.
            if self.problem.constraints:
                name_what_ran_away(outcome, self.problem, start)
            return outcome
        is_kept = outcome.is_polished or self._is_better(
            outcome.theta, outcome.loss
        )
        if not is_kept:
            outcome.theta, outcome.loss = self.best
        self._keep_the_start(outcome)
        name_what_ran_away(outcome, self.problem, start)
        # If float64 can follow, a separate run shows more than a trial.
        if not self.problem.objective.has_float64:
            seconds = now() - self._began
            outcome = tried_in_float64(outcome, self.problem, seconds)
        return outcome

    def _keep_the_start(self, outcome: Outcome) -> None:
        """Keeps the point of the variables if a resumed run gained nothing.

        The solver continues from its latest point. The variables may have an
        earlier one that is better by rounding.
        """
        if not self._is_resumed or np.array_equal(outcome.theta, self._start):
            return
        if self.iterations:
            return
        loss = self.problem.peek(self._start)
        if loss < outcome.loss:
            outcome.theta, outcome.loss = self._start, loss

    def started(self, point: Point) -> bool:
        """Called by the solver with the start; returns whether to stop."""
        theta, loss, _ = point
        self.initial_loss = loss
        self._starts_finite = point.is_finite
        # If the start is not finite, the variables keep their values.
        self.best = theta if self._starts_finite else self.best[0], loss
        stop = self._observer.started(point)
        is_met = self._meets_target(point.theta, loss)
        return stop or is_met or not self._starts_finite

    def accepted(self, iterate: Iterate) -> bool:
        """Called by the solver with an iterate; returns whether to stop."""
        theta, loss = iterate.theta, iterate.loss
        self.iterations += 1
        self.state = iterate.state
        if theta is not None and (
            iterate.is_penalized or self._is_better(theta, loss)
        ):
            self.best = theta, loss
        stop = self._observer.accepted(iterate)
        return stop or self._meets_target(theta, loss)

    def _meets_target(self, theta: Vector | None, loss: float) -> bool:
        """Whether a point, if it is known, is feasible and has the target."""
        target, problem = self.problem.budget.target, self.problem
        if target is None or not loss <= target:
            return False
        if theta is None or not problem.constraints:
            return True
        return problem.is_feasible(theta)

    def _target_reached(self, outcome: Outcome) -> Outcome:
        theta, loss = self.best
        return Outcome(
            statuses.TARGET_REACHED,
            theta,
            loss,
            test="target_loss",
            value=loss,
            threshold=self.problem.budget.target,
            raw=outcome.raw,
        )

    def _is_better(self, theta: Vector, loss: float) -> bool:
        """Whether a point is better; feasibility comes before the loss."""
        if not self.problem.constraints:
            return loss <= self.best[1]
        if not np.isfinite(loss):
            return False
        if self.problem.is_feasible(self.best[0]):
            is_lower = loss <= self.best[1]
            return is_lower and self.problem.is_feasible(theta)
        return True


def taken_over(outcome: Outcome, theta: Vector, loss: float) -> Outcome:
    """The outcome if callbacks have set other variables since.

    Args:
        outcome: the `Outcome` of a run of the earlier loss.
        theta: the point to continue from.
        loss: the present loss there; NaN if another run follows.
    """
    is_limit = outcome.status in (*statuses.LIMITS, statuses.INTERRUPTED)
    return dataclasses.replace(
        outcome,
        status=outcome.status if is_limit else None,
        theta=theta,
        loss=loss,
        test=None,
        detail="",
    )


def checked_budget(
    max_evals: int | None,
    max_seconds: float | None,
    target_loss: float | None,
) -> Budget:
    """The `Budget` of a run, its deadline in seconds from the start."""
    if max_evals is not None:
        check_count("max_evals", max_evals, 1)
    for name, value in (
        ("max_seconds", max_seconds),
        ("target_loss", target_loss),
    ):
        if value is not None and not isinstance(value, numbers.Real):
            raise ValueError(
                f"Argument `{name}` must be a number. "
                f"Received: {name}={value!r}"
            )
    if max_seconds is not None and not max_seconds > 0:
        raise ValueError(
            "Argument `max_seconds` must be positive. "
            f"Received: max_seconds={max_seconds}"
        )
    return Budget(None, max_evals, max_seconds, target_loss)


def is_worth_a_warning(result: Result, own_limit: bool) -> bool:
    """Whether to warn the user about how a run ended.

    Args:
        result: the `Result`.
        own_limit: whether the number of iterations is the user's own, not a
            default.
    """
    if result.status == statuses.ITERATION_LIMIT:
        return not own_limit
    return result.status not in statuses.QUIET
