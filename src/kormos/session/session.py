"""One call of the user: stages of an optimizer, from a start to a `Result`.

All four functions, `fit`, `minimize`, `least_squares` and `solve`, run the same
session. They pass a task, and an observer that reports to the user. This file
has the order of stages. The other parts of a session have their own files:

- `stage_runs.py`: the runs of a stage.
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

from kormos.processes import now
from kormos.session.attachment import Attachment
from kormos.session.displays import logger
from kormos.session.observer import SessionObserver
from kormos.session.plan import Plan
from kormos.session.plan import StageEnd
from kormos.session.record import Record
from kormos.session.reporter import Reporter
from kormos.session.result import Result
from kormos.session.stage_runs import StageRuns
from kormos.session.stamp import stamp_of
from kormos.session.task import Task
from kormos.solvers import statuses
from kormos.solvers.budget import UNLIMITED
from kormos.solvers.budget import Budget
from kormos.solvers.outcome import Outcome
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
        self._resume = resume
        self._before = before
        self._loss_callback = loss_callback
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
        self._runs = StageRuns(
            self._task,
            observer,
            self._attachment,
            self._record,
            self._reporter,
            self._plan,
            self._budget.started(self._record.begin()),
            self._loss_callback,
            self._is_interrupted,
        )
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
            if self._runs.is_ended() or is_final:
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
        deadline = None
        if stage.share is not None and self._seconds is not None:
            deadline = now() + stage.share * self._seconds
        if self._plan.has_several:
            record.stage = self._plan.progress.number
        self._observer.end = self._plan.end(self._observer.done)
        self._begin_stage(stage, is_begun)
        outcome = self._runs(stage, deadline)
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
        spent = self._runs.spent()
        if spent is not None:
            return spent
        if self._observer.is_stopped:
            return statuses.STOPPED_BY_CALLBACK
        if self._plan.is_on_plateau:
            return statuses.PLATEAU
        return statuses.ITERATION_LIMIT
