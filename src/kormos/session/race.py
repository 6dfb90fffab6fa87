"""A race of several starts: in each round, the better half continues.

Successive halving (Jamieson and Talwalkar 2016, AISTATS): in the first round,
all starts get the same number of evaluations. In each further round, the better
half continues with twice as many evaluations as in the round before. The last
start runs to its end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from kormos.optimizers.base import BatchOptimizer
from kormos.optimizers.stage import Stage
from kormos.optimizers.stage import StageProgress
from kormos.processes import current
from kormos.processes import now
from kormos.session.attachment import Attachment
from kormos.session.observer import SessionObserver
from kormos.session.result import Restart
from kormos.session.result import Result
from kormos.session.runners import Runner
from kormos.session.runners import line_of
from kormos.session.runners import ranked
from kormos.session.runners import table
from kormos.session.session import Session
from kormos.session.starts import Draw
from kormos.session.starts import check_restarts
from kormos.session.starts import drawn_starts
from kormos.session.task import Task
from kormos.session.trace_observer import TraceObserver
from kormos.solvers import statuses
from kormos.solvers.budget import Budget
from kormos.solvers.problem import violation
from kormos.types import Matrix

# Evaluations of each start in the first round. Our choice: fewer say little
# about where a start leads.
_FIRST_EVALUATIONS = 4
# A violation of at most this many roundings of the variables counts as none.
# Our choice.
_ROUNDINGS = 100.0


class Race:
    """Runs starts against one another until one of them is left.

    Args:
        optimizer: the `BatchOptimizer`, which keeps the winner's state.
        stages: the optimizer's stages.
        steps: the iterations of an epoch. In the race, an epoch has one.
        task: the `Task`, whose variables keep the winner.
        budget: the limits of the whole race, with a deadline in seconds from
            now.
        shown: function that shows a line of text on the progress of the race,
            or `None`.
        loss_callback: see `Session`.

    Attributes:
        evaluations: the evaluations so far.
        done: the epochs of the winner.
        is_interrupted: whether an interrupt has ended the race.
    """

    done = 0
    is_interrupted = False

    def __init__(
        self,
        optimizer: BatchOptimizer,
        stages: Sequence[Stage],
        steps: int,
        task: Task,
        budget: Budget,
        shown: Callable[[str], None] | None,
        loss_callback: Callable[[float], object] | None,
    ):
        self._optimizer = optimizer
        self._attachment = Attachment(optimizer)
        self._stages = [_in_iterations(stage, steps) for stage in stages]
        self._steps = steps
        self._objective = task.objective
        self._task = task
        self._budget = budget.started(now())
        self._shown = shown
        self._loss_callback = loss_callback
        self.evaluations = 0

    def __call__(self, starts: Matrix) -> list[Restart]:
        """Runs the race, and leaves the winner in the variables.

        Args:
            starts: the starts, of shape `(count, size)`.

        Returns:
            The progress of each start, in their order. The winner's own run
            follows, and its evaluations are not counted here.
        """
        runners = [Runner(i, start, start) for i, start in enumerate(starts)]
        field, share = list(runners), _FIRST_EVALUATIONS
        while len(field) > 1 and self._budget.spent(self.evaluations) is None:
            field = ranked([self._run(runner, share) for runner in field])
            for runner in field:
                runners[runner.number] = runner
            if self._shown is not None:
                self._shown(line_of(field))
            if self.is_interrupted or field[0].status in statuses.SUCCESSES:
                break
            left = field[: (len(field) + 1) // 2]
            # A good start may be behind for a long time, so the user's own
            # start is always kept.
            own = [r for r in field[len(left) :] if r.number == 0]
            field = [r for r in left + own if not r.is_over]
            share *= 2
        winner = ranked(runners)[0]
        self._take_over(winner)
        self._attachment.keep_progress(_in_epochs(winner, self._steps))
        self.done = winner.iterations // self._steps
        return table(runners, winner)

    def _run(self, runner: Runner, evaluations: int) -> Runner:
        """A runner after a number of further evaluations."""
        is_spent = self.is_interrupted or self._budget.spent(self.evaluations)
        if runner.is_over or is_spent:
            return runner
        self._take_over(runner)
        budget = self._budget.without(self.evaluations)
        most = evaluations
        if budget.evaluations is not None:
            most = min(most, budget.evaluations)
        if budget.deadline is not None:
            budget = budget._replace(deadline=budget.deadline - now())
        result = Session(
            self._optimizer,
            self._stages,
            self._task,
            TraceObserver(is_quiet=True),
            budget=budget._replace(evaluations=most),
            resume=runner.state is not None,
            before=_before(self._stages, runner.iterations),
            loss_callback=self._loss_callback,
        )()
        return self._after(runner, result)

    def _after(self, runner: Runner, result: Result) -> Runner:
        self.is_interrupted |= result.status == statuses.INTERRUPTED
        self.evaluations += result.evaluations
        state = self._optimizer.solver_state
        if state is not None:
            # A copy, because the next run overwrites the arrays of a live
            # state.
            state.arrays()
        return runner._replace(
            theta=self._objective.initial_position(),
            loss=result.kept_loss,
            state=state,
            progress=self._optimizer.stage_progress,
            status=result.status,
            evaluations=runner.evaluations + result.evaluations,
            iterations=runner.iterations + result.iterations,
            violation=self._violation(result.status),
        )

    def _violation(self, status: str) -> float:
        """The violation of the constraints, for a runner with a status."""
        if status in statuses.SUCCESSES:
            return 0.0
        objective = self._objective
        worst = violation(self._task.constraints, objective.initial_position())
        # The variables round their values.
        if worst <= _ROUNDINGS * objective.storage_eps:
            return 0.0
        return float(np.nan_to_num(worst, nan=np.inf))

    def _take_over(self, runner: Runner) -> None:
        """Makes a runner's point and state the present ones."""
        self._objective.assign(runner.theta)
        self._attachment.keep(runner.state)
        self._attachment.keep_progress(runner.progress)


class Restarts(NamedTuple):
    """The user's arguments for a race.

    Attributes:
        number: the number of starts, or `None`.
        starts: see `drawn_starts`.
        seed: the seed of the generator that draws them.
        is_shown: whether to print a line after each round.
        draw: see `drawn_starts`.
    """

    number: int | None = None
    starts: Any = None
    seed: int = 0
    is_shown: bool = False
    draw: Draw | None = None


def run(
    optimizer: BatchOptimizer,
    stages: Sequence[Stage],
    task: Task,
    observer: SessionObserver,
    *,
    budget: Budget,
    resume: bool,
    restarts: Restarts,
    loss_callback: Callable[[float], object] | None = None,
) -> Result:
    """Runs a session, after a race for its start if the user asked for one.

    Args:
        optimizer: see `Session`.
        stages: see `Session`.
        task: see `Session`.
        observer: see `Session`. It is not called during the race.
        budget: the limits of race and session, with a deadline in seconds from
            the start.
        resume: see `Session`.
        restarts: the `Restarts`.
        loss_callback: see `Session`.

    Returns:
        The `Result` of the session. After a race it has `restarts`, and its
        evaluations and seconds are those of all starts.

    Raises:
        ValueError: if there is nothing to start from.
    """
    session_for = functools.partial(
        Session, optimizer, stages, task, observer, loss_callback=loss_callback
    )
    check_restarts(restarts.number, restarts.starts, restarts.seed)
    # It raises an error if the session cannot be run.
    session = session_for(budget=budget, resume=resume)
    if restarts.number is None and restarts.starts is None:
        return session()
    if any(s.uses_batches or s.pretrain_fn for s in stages):
        raise ValueError(
            "Argument `restarts` needs stages that take their steps on all "
            "rows, without `pretrain_fn`: pass `full_batch=True` to a "
            f"`Chain`. Received: optimizer '{optimizer.name}' with "
            f"restarts={restarts.number}"
        )
    began = now()
    objective = task.objective
    starts = drawn_starts(
        objective,
        task.box,
        restarts.number,
        restarts.starts,
        restarts.draw,
        restarts.seed,
    )
    shown = print if restarts.is_shown and current().is_first else None
    own = budget
    if own.evaluations is not None:
        # The winner's session evaluates its start again.
        own = own._replace(evaluations=own.evaluations - 1)
    race = Race(
        optimizer,
        stages,
        observer.steps,
        task.without_validation(),
        own,
        shown,
        loss_callback,
    )
    has_float64 = objective.has_float64
    ends = race(starts)
    left = budget.without(race.evaluations)
    if left.evaluations is not None:
        left = left._replace(evaluations=max(1, left.evaluations))
    if left.deadline is not None:
        # The last session needs time to evaluate its start.
        seconds = max(1e-3, left.deadline - (now() - began))
        left = left._replace(deadline=seconds)
    is_known = optimizer.solver_state is not None
    result = session_for(
        budget=left,
        resume=is_known,
        before=_before(stages, race.done),
        is_interrupted=race.is_interrupted,
        is_in_float64=has_float64 and not task.objective.has_float64,
    )()
    result.restarts = ends
    result.evaluations += race.evaluations
    result.time = now() - began
    return result


def _before(stages: Sequence[Stage], done: int) -> int | None:
    """The epochs from which to continue to count: see `Session`.

    The stages of a chain end where they would without a race. A single method
    has all of its epochs after the race.
    """
    return done if len(stages) > 1 else None


def _in_iterations(stage: Stage, steps: int) -> Stage:
    """A stage with iterations in place of epochs.

    Args:
        stage: the stage.
        steps: the iterations of an epoch.
    """
    epochs, patience = stage.epochs, stage.patience
    return stage._replace(
        epochs=None if epochs is None else epochs * steps,
        patience=None if patience is None else patience * steps,
    )


def _in_epochs(runner: Runner, steps: int) -> StageProgress | None:
    progress = runner.progress
    if progress is None:
        return None
    return progress._replace(
        done=progress.done // steps, waited=progress.waited // steps
    )
