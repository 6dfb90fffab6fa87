"""The runs of one stage, from its start to its end.

Another run follows if callbacks have changed the loss, if new data are drawn,
if the fit continues in float64, or after a saddle point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from kormos.objective.start_checks import check_hessian_products
from kormos.objective.start_checks import check_rows
from kormos.processes import now
from kormos.session import interrupts
from kormos.session.attachment import Attachment
from kormos.session.displays import logger
from kormos.session.float64_tail import goes_on_in_float64
from kormos.session.float64_tail import warn_of_staying
from kormos.session.float64_tail import with_kept_loss
from kormos.session.observer import SessionObserver
from kormos.session.plan import Plan
from kormos.session.record import Record
from kormos.session.reporter import Reporter
from kormos.session.run import Run
from kormos.session.run import taken_over
from kormos.session.task import Task
from kormos.solvers import statuses
from kormos.solvers.budget import Budget
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.solvers.rejections import Raised
from kormos.types import Vector

if TYPE_CHECKING:
    from kormos.optimizers.stage import Stage


class StageRuns:
    """Runs the stages of a session, each to its end.

    Args:
        task: the `Task`.
        observer: the `SessionObserver`.
        attachment: the `Attachment`.
        record: the `Record`.
        reporter: the `Reporter`.
        plan: the `Plan`.
        budget: the `Budget` of the session, its deadline a time.
        loss_callback: function of the loss, called after each evaluation.
        is_interrupted: whether only the start is to be evaluated.
    """

    def __init__(
        self,
        task: Task,
        observer: SessionObserver,
        attachment: Attachment,
        record: Record,
        reporter: Reporter,
        plan: Plan,
        budget: Budget,
        loss_callback: Callable[[float], object] | None,
        is_interrupted: bool,
    ):
        self._task = task
        self._observer = observer
        self._attachment = attachment
        self._record = record
        self._reporter = reporter
        self._plan = plan
        self._budget = budget
        self._loss_callback = loss_callback
        self._is_interrupted = is_interrupted
        self._deadline: float | None = None
        self._raised = Raised()

    def __call__(self, stage: Stage, deadline: float | None) -> Outcome:
        """Runs a stage to its end.

        Args:
            stage: the stage.
            deadline: the time at which its part of the budget ends, or `None`.
        """
        self._deadline = deadline
        theta: Vector | None = None
        narrow: Outcome | None = None
        undo: Callable[[], None] | None = None
        is_first = True
        while True:
            done = self._record.iterations
            try:
                outcome = self._run_once(stage, theta, is_first)
            except Exception as error:
                if undo is None or narrow is None or self._reporter.has_started:
                    raise
                undo()
                self._record.float64_from = self._record.run = None
                warn_of_staying(error)
                return narrow
            theta, undo, is_first = outcome.theta, None, False
            if outcome.status == statuses.INTERRUPTED or self._is_over():
                return outcome
            if self._reporter.followed is None:
                if outcome.below is not None:
                    theta = outcome.below
                    self._attachment.keep(None)
                elif goes_on_in_float64(outcome, self._task.objective):
                    narrow, undo = outcome, self._in_float64(outcome)
                    if undo is None:
                        return outcome
                elif self._draws_anew(outcome, self._record.iterations > done):
                    theta = None
                else:
                    return outcome
            if self._attachment.state is not None:
                self._attachment.state.forget_loss()

    def spent(self) -> str | None:
        """The limit that is reached, as a status, or `None`."""
        return self._budget.spent(self._record.counts.evaluations)

    def is_ended(self) -> bool:
        """Whether no stage may follow."""
        return self._observer.is_stopped or self.spent() is not None

    def _in_float64(self, outcome: Outcome) -> Callable[[], None] | None:
        """Makes the next run one in float64.

        Returns:
            A function that goes back to float32, or `None` if the stage has to
            end with the outcome.
        """
        try:
            undo = self._task.go_on_in_float64()
        except KeyboardInterrupt as error:
            # Compiling takes seconds.
            interrupts.take(error)
            outcome.status = statuses.INTERRUPTED
            return None
        except Exception as error:
            warn_of_staying(error)
            return None
        self._record.float64_from = done = self._record.iterations
        logger.info("Continuing in float64 after %d iterations.", done)
        state = self._attachment.state
        if state is not None and not state.is_sound:
            # Float32 could not evaluate the loss of the start.
            self._attachment.keep(None)
        return undo

    def _draws_anew(self, outcome: Outcome, has_moved: bool) -> bool:
        """Draws new data if it is time to; returns whether it did."""
        if outcome.status in statuses.FINAL or not has_moved:
            return False
        # A run that has converged on its data continues with new data at once.
        due = [
            resampler
            for resampler in self._observer.resamplers
            if outcome.status or resampler.is_due(self._observer.done)
        ]
        for resampler in due:
            resampler.replace(self._task.objective, self._observer.done)
        return bool(due)

    def _is_over(self) -> bool:
        """Whether no run of the stage may follow."""
        is_done = self._observer.done >= self._observer.end
        is_late = self._deadline is not None and now() >= self._deadline
        is_over = is_done or is_late or self._plan.is_on_plateau
        return is_over or self.is_ended()

    def _run_once(
        self, stage: Stage, theta: Vector | None, is_first: bool
    ) -> Outcome:
        """One run of a solver.

        Args:
            stage: the stage.
            theta: the start. Defaults to the variables' values.
            is_first: whether it is the first run of the stage.
        """
        objective, record = self._task.objective, self._record
        end = self._end_of_run()
        self._reporter.begin_run(end)
        self._task.refresh()
        problem = self._new_problem(stage, end)
        start = objective.initial_position()
        begins = problem.project(start if theta is None else theta)
        is_checked = is_first and not objective.has_own_derivatives
        if is_first and not stage.uses_batches:
            check_rows(objective, begins)
        if is_checked and stage.uses_hessian:
            check_hessian_products(objective, begins, problem.project)
        self._observer.run_begins(begins)
        run = record.run = Run(stage, problem, self._reporter)
        # Every way to end below keeps a state of the same stage.
        self._attachment.keep_progress(self._plan.progress)
        try:
            outcome = run(begins, self._attachment.state)
            if self._is_interrupted:
                outcome.status, outcome.test = statuses.INTERRUPTED, None
            self._attachment.keep(run.state)
            self._observer.run_ended(outcome)
        except BaseException:
            self._attachment.keep(run.state)
            # A method that assigns variables itself may be within a step.
            if run.iterations or stage.assigns:
                self._reporter.write(run.best[0])
            raise
        record.end_run()
        return self._left(outcome, problem, problem.project(start))

    def _left(
        self, outcome: Outcome, problem: Problem, start: Vector | None
    ) -> Outcome:
        """The outcome, after its point or a callback's is in the variables."""
        objective = self._task.objective
        followed, latest = self._reporter.followed, self._observer.latest()
        if followed is not None:
            if self._attachment.state is not None:
                # The variables have a callback's point, not the solver's.
                self._attachment.state.position = None
            loss = np.nan
            if self._is_over() or outcome.status == statuses.INTERRUPTED:
                loss = problem.peek(followed)
            outcome = taken_over(outcome, followed, loss)
        elif latest is not None:
            outcome.theta, outcome.loss = latest
        else:
            if outcome.settle is not None:
                outcome.settle()
            self._reporter.write(outcome.theta)
            # Under constraints, or with a penalty, the end may have a higher
            # loss.
            if problem.constraints or outcome.is_penalized:
                start = None
            return with_kept_loss(outcome, objective, problem, start)
        return with_kept_loss(outcome, objective, problem)

    def _end_of_run(self) -> int:
        """The end of the stage, or the next draw of new data before it."""
        observer = self._observer
        draws = [r.next_after(observer.done) for r in observer.resamplers]
        return min([observer.end, *draws])

    def _new_problem(self, stage: Stage, end: int) -> Problem:
        observer, evaluations = self._observer, self._record.counts.evaluations
        self._raised.earlier = evaluations
        left = (end - observer.done) * observer.steps
        budget = self._budget.until(self._deadline)
        return self._task.problem(
            budget.without(evaluations)._replace(iterations=left),
            # A plateau is looked for at each iteration.
            1 if stage.patience else observer.stride,
            self._loss_callback,
            self._raised,
        )
