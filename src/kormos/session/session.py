"""One call of the user: stages of an optimizer, from a start to a `Result`.

All four functions, `fit`, `minimize`, `least_squares` and `solve`, run the same
session. They pass a task, and an observer that reports to the user. This file
has the order of stages and of the runs of a stage. The other parts of a session
have their own files:

- `task.py`: what is minimized, over which variables and within what limits.
- `run.py`: one run of a solver: its best point and why it ended.
- `reporter.py`: calls callbacks between iterations, and detects what they
  change.
- `record.py`: counts, the trace and the result.
- `plan.py`: which stage runs next, and where it ends.
- `attachment.py`: the state that the optimizer keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
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
from kormos.session.plan import StageEnd
from kormos.session.record import Record
from kormos.session.reporter import Reporter
from kormos.session.result import Result
from kormos.session.run import Run
from kormos.session.run import taken_over
from kormos.session.stamp import stamp_of
from kormos.session.task import Task
from kormos.solvers import statuses
from kormos.solvers.budget import UNLIMITED
from kormos.solvers.budget import Budget
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.solvers.rejections import Raised
from kormos.types import Vector
from kormos.warn import warn

if TYPE_CHECKING:
    from kormos.optimizers.base import BatchOptimizer
    from kormos.optimizers.stage import Stage


class Session:
    """One call of the user.

    Args:
        optimizer: the `BatchOptimizer`.
        stages: its `Stage`s.
        task: the `Task`.
        observer: the `SessionObserver`.
        budget: the `Budget`, its deadline in seconds from the start.
        resume: whether to continue with the optimizer's state.
        before: the epochs of an earlier session, whose stage and count of
            epochs this one continues; or `None` to count from zero.
        loss_callback: function of the loss, called after each evaluation.
        is_interrupted: whether an interrupt came before, so that only the start
            is evaluated.
        is_in_float64: whether an earlier session has gone on in float64.

    Raises:
        ValueError: if a stage or a `Resample` cannot do the task.
    """

    def __init__(
        self,
        optimizer: BatchOptimizer,
        stages: Sequence[Stage],
        task: Task,
        observer: SessionObserver,
        *,
        budget: Budget = UNLIMITED,
        resume: bool = False,
        before: int | None = None,
        loss_callback: Callable[[float], object] | None = None,
        is_interrupted: bool = False,
        is_in_float64: bool = False,
    ):
        self._is_interrupted = is_interrupted
        if is_interrupted:
            budget = budget._replace(evaluations=1)
        self._stages = list(stages)
        self._task = task
        self._observer = observer
        self._budget = budget
        self._seconds = budget.deadline
        self._stage_deadline: float | None = None
        self._resume = resume
        self._before = before
        self._loss_callback = loss_callback
        self._raised = Raised()
        self._record = Record()
        if is_in_float64:
            self._record.float64_from = 0
        self._optimizer = optimizer
        self._attachment = Attachment(optimizer)
        self._plan = Plan(self._stages)
        self._reporter = Reporter(
            task, self._record, self._attachment, observer, self._plan
        )
        if any(stage.share for stage in stages) and self._seconds is None:
            raise ValueError(
                "The `share` of a stage needs `max_seconds`. Received: "
                "max_seconds=None"
            )
        task.prepare(self._stages)
        for resampler in observer.resamplers:
            resampler.check(task.objective)

    def __call__(self) -> Result:
        """Runs all stages."""
        try:
            return self._run()
        except BaseException:
            self._observer.abandon()
            raise
        finally:
            self._task.end()

    def _run(self) -> Result:
        observer = self._observer
        self._attachment.build(self._task.objective.variables)
        # Callbacks may read a backup here.
        observer.begin(self._reporter)
        self._task.hold()
        for resampler in observer.resamplers:
            resampler.begin(self._task.objective, observer.done)
        self._attachment.share()
        self._attachment.take_over(self._resume, self._before is not None)
        if self._attachment.progress is not None:
            self._plan.continue_from(
                self._attachment.progress, self._before or 0
            )
        self._budget = self._budget.started(self._record.begin())
        outcome = self._run_stages()
        observer.close()
        result = self._record.result(outcome, self._optimizer.choice)
        result.stamp = stamp_of(self._task.objective)
        self._attachment.tell(self._record.counts)
        logger.info("%s", result)
        observer.finish(result)
        return result

    def _run_stages(self) -> Outcome:
        for stage, is_begun in self._plan.due(self._observer.done):
            outcome = self._run_stage(stage, is_begun)
            is_shared = outcome.status == statuses.TIME_LIMIT and stage.share
            is_final = outcome.status in statuses.FINAL and not is_shared
            if self._is_ended() or is_final:
                break
        return outcome

    def _run_stage(self, stage: Stage, is_begun: bool) -> Outcome:
        """Runs a stage to its end, and notes how it ended.

        Args:
            stage: the stage.
            is_begun: whether an earlier session has begun it.
        """
        record, attachment = self._record, self._attachment
        before = record.iterations, record.counts.evaluations, record.seconds
        self._stage_deadline = None
        if stage.share is not None and self._seconds is not None:
            self._stage_deadline = now() + stage.share * self._seconds
        if self._plan.has_several:
            record.stage = self._plan.progress.number
        self._observer.end = self._plan.end(self._observer.done)
        self._begin_stage(stage, is_begun)
        outcome = self._run_to_end(stage)
        if outcome.status is None:
            outcome.status = self._end_without_a_test()
        attachment.add_result(outcome.raw)
        record.stages.append(
            StageEnd(
                stage.name,
                outcome.status,
                float(outcome.loss),
                record.iterations - before[0],
                record.counts.evaluations - before[1],
                record.seconds - before[2],
            )
        )
        return outcome

    def _begin_stage(self, stage: Stage, is_begun: bool) -> None:
        """Makes the loss of a stage, and keeps the state that it can use.

        Args:
            stage: the stage.
            is_begun: whether an earlier session has begun it.
        """
        attachment, before = self._attachment, self._task.objective
        is_other_loss = self._task.begin(stage)
        objective = self._task.objective
        if objective is not before:
            for resampler in self._observer.resamplers:
                resampler.carry(before, objective, self._observer.done)
        state = attachment.state
        # A method that is chosen anew may be another than that of the state.
        if state is None or (is_begun and not self._optimizer.chooses):
            return
        # A `pretrain_fn` may have frozen layers.
        is_of_these = list(map(id, before.variables)) == list(
            map(id, objective.variables)
        )
        if not (is_of_these and stage.takes_state(state, objective.size)):
            attachment.state = None
            if is_begun:
                warn(
                    "The fit continues from the weights only: another method "
                    "was chosen, which cannot continue from the state of the "
                    f"earlier one. Received: resume=True, '{stage.name}' after "
                    f"'{state.key}'"
                )
        elif is_other_loss:
            state.forget_loss()

    def _end_without_a_test(self) -> str:
        """The status if neither a test nor the method has ended a stage."""
        spent = self._spent()
        if spent is not None:
            return spent
        if self._observer.is_stopped:
            return statuses.STOPPED_BY_CALLBACK
        if self._plan.is_on_plateau:
            return statuses.PLATEAU
        return statuses.ITERATION_LIMIT

    def _run_to_end(self, stage: Stage) -> Outcome:
        """The runs of a stage.

        Another run follows if callbacks have changed the loss, if new data are
        drawn, if the fit continues in float64, or after a saddle point.
        """
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

    def _spent(self) -> str | None:
        """The limit that is reached, as a status, or `None`."""
        return self._budget.spent(self._record.counts.evaluations)

    def _is_ended(self) -> bool:
        """Whether no stage may follow."""
        return self._observer.is_stopped or self._spent() is not None

    def _is_over(self) -> bool:
        """Whether no run of the stage may follow."""
        is_done = self._observer.done >= self._observer.end
        deadline = self._stage_deadline
        is_late = deadline is not None and now() >= deadline
        is_over = is_done or is_late or self._plan.is_on_plateau
        return is_over or self._is_ended()

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
        budget = self._budget.until(self._stage_deadline)
        return self._task.problem(
            budget.without(evaluations)._replace(iterations=left),
            # A plateau is looked for at each iteration.
            1 if stage.patience else observer.stride,
            self._loss_callback,
            self._raised,
        )
