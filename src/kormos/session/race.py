"""A race of several starts: in each round, the better half continues.

Successive halving (Jamieson and Talwalkar 2016, AISTATS): all starts are given
the same number of evaluations, and the better half of them as many more, until
one is left, which runs to its end.
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
from kormos.session.session import Session
from kormos.session.starts import Draw
from kormos.session.starts import check_restarts
from kormos.session.starts import drawn_starts
from kormos.session.task import Task
from kormos.session.trace_observer import TraceObserver
from kormos.solvers import statuses
from kormos.solvers.budget import Budget
from kormos.solvers.solver_state import SolverState
from kormos.types import Matrix
from kormos.types import Vector

# Evaluations of each start in the first round, a choice of ours: fewer tell
# little of where a start leads to.
_FIRST_EVALUATIONS = 4
# Two ends are at the same minimum if their parameters differ by at most this
# part of their size.
_SAME_POINT = 1e-3


class Runner(NamedTuple):
    """A start, and how far it has got.

    Attributes:
        number: the number of the start.
        theta: the point, `(size,)`.
        loss: the loss there.
        state: the `SolverState` to go on from, or `None`.
        progress: how far its stages have got, or `None`.
        status: how its latest run ended.
        evaluations: the evaluations so far.
        iterations: the iterations so far.
    """

    number: int
    theta: Vector
    loss: float = np.nan
    state: SolverState | None = None
    progress: StageProgress | None = None
    status: str = statuses.EVALUATION_LIMIT
    evaluations: int = 0
    iterations: int = 0

    @property
    def is_over(self) -> bool:
        """Whether its run has ended by itself."""
        return self.status != statuses.EVALUATION_LIMIT


class Race:
    """Runs starts against one another until one of them is left.

    Args:
        optimizer: the `BatchOptimizer`, which keeps the winner's state.
        stages: its stages.
        steps: the iterations of an epoch. In the race, an epoch is an
            iteration.
        task: the `Task`, whose variables keep the winner.
        budget: the limits of the whole race, with a deadline in seconds from
            now.
        shown: function of a line of text that tells how the race goes, or
            `None`.

    Attributes:
        evaluations: the evaluations so far.
        done: the epochs of the winner.
    """

    done = 0

    def __init__(
        self,
        optimizer: BatchOptimizer,
        stages: Sequence[Stage],
        steps: int,
        task: Task,
        budget: Budget,
        shown: Callable[[str], None] | None,
    ):
        self._optimizer = optimizer
        self._attachment = Attachment(optimizer)
        self._stages = [_in_iterations(stage, steps) for stage in stages]
        self._steps = steps
        self._objective = task.objective
        self._task = task
        self._budget = budget.started(now())
        self._shown = shown
        self.evaluations = 0

    def __call__(self, starts: Matrix) -> list[Restart]:
        """Runs the race, and leaves the winner in the variables.

        Args:
            starts: the starts, of shape `(count, size)`.

        Returns:
            How far each start got, in their order. The first evaluations of
            the winner's own run are still to come.
        """
        runners = [Runner(i, theta) for i, theta in enumerate(starts)]
        field, share = list(runners), _FIRST_EVALUATIONS
        while len(field) > 1 and self._budget.spent(self.evaluations) is None:
            field = _ranked([self._run(runner, share) for runner in field])
            for runner in field:
                runners[runner.number] = runner
            if self._shown is not None:
                self._shown(_line(field))
            if field[0].status in statuses.SUCCESSES:
                break
            left = field[: (len(field) + 1) // 2]
            # A good start may lie behind for long: the user's own goes on.
            own = [r for r in field[len(left) :] if r.number == 0]
            field = [r for r in left + own if not r.is_over]
            share *= 2
        winner = _ranked(runners)[0]
        self._take_over(winner)
        self._attachment.keep_progress(_in_epochs(winner, self._steps))
        self.done = winner.iterations // self._steps
        return table(runners, winner)

    def _run(self, runner: Runner, evaluations: int) -> Runner:
        """A runner after so many more evaluations."""
        if runner.is_over or self._budget.spent(self.evaluations):
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
            TraceObserver(self._stages, is_quiet=True),
            budget=budget._replace(evaluations=most),
            resume=runner.state is not None,
            before=_before(self._stages, runner.iterations),
        )()
        return self._after(runner, result)

    def _after(self, runner: Runner, result: Result) -> Runner:
        self.evaluations += result.evaluations
        state = self._optimizer.solver_state
        if state is not None:
            # The arrays of a live state are used again by the next run.
            state.arrays()
        return runner._replace(
            theta=self._objective.initial_position(),
            loss=result.kept_loss,
            state=state,
            progress=self._optimizer.stage_progress,
            status=result.status,
            evaluations=runner.evaluations + result.evaluations,
            iterations=runner.iterations + result.iterations,
        )

    def _take_over(self, runner: Runner) -> None:
        """Makes a runner's point and state the present ones."""
        self._objective.assign(runner.theta)
        self._attachment.keep(runner.state)
        self._attachment.keep_progress(runner.progress)


class Restarts(NamedTuple):
    """What a user asks of a race.

    Attributes:
        number: the number of starts, or `None`.
        starts: where they come from, as `drawn_starts` takes it.
        seed: of the generator that draws them.
        draw: what draws a start where none are given, or `None`.
        is_shown: whether to print a line after each round.
    """

    number: int | None = None
    starts: Any = None
    seed: int = 0
    draw: Draw | None = None
    is_shown: bool = False


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
    """Runs a session; before it a race for its start, where that is asked.

    Args:
        optimizer: see `Session`.
        stages: see `Session`.
        task: see `Session`.
        observer: see `Session`. It sees nothing of the race.
        budget: the limits of all, with a deadline in seconds from the start.
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
    check_restarts(restarts.number, restarts.starts)
    # It refuses what cannot be done.
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
    race = Race(
        optimizer,
        stages,
        observer.steps,
        task.without_validation(),
        budget,
        shown,
    )
    ends = race(starts)
    left = budget.without(race.evaluations)
    if left.evaluations is not None:
        left = left._replace(evaluations=max(1, left.evaluations))
    if left.deadline is not None:
        # The last session needs time to say where it stands.
        seconds = max(1e-3, left.deadline - (now() - began))
        left = left._replace(deadline=seconds)
    is_known = optimizer.solver_state is not None
    result = session_for(
        budget=left, resume=is_known, before=_before(stages, race.done)
    )()
    result.restarts = ends
    result.evaluations += race.evaluations
    result.time = now() - began
    return result


def _before(stages: Sequence[Stage], done: int) -> int | None:
    """The epochs to count on from, as `Session` takes them.

    The stages of a chain end where they would without a race. A single method
    has as many epochs as it is given when the winner is known.
    """
    return done if len(stages) > 1 else None


def _in_iterations(stage: Stage, steps: int) -> Stage:
    """A stage with iterations in place of epochs."""
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


def _ranked(runners: Sequence[Runner]) -> list[Runner]:
    """The runners, of which that with the lowest loss is the first."""
    return sorted(
        runners,
        key=lambda r: (not np.isfinite(r.loss), np.nan_to_num(r.loss)),
    )


def table(runners: Sequence[Runner], winner: Runner) -> list[Restart]:
    """How far each runner got."""
    found: list[Restart] = []
    minima: list[Runner] = []
    for runner in runners:
        minimum = None
        if runner.status in statuses.SUCCESSES:
            minimum = next(
                (i for i, m in enumerate(minima) if _is_same(m, runner)), None
            )
            if minimum is None:
                minimum = len(minima)
                minima.append(runner)
        status = runner.status if runner.is_over else "left behind"
        if runner is winner:
            status = "winner"
        found.append(
            Restart(
                runner.loss,
                status,
                runner.iterations,
                runner.evaluations,
                minimum,
                runner.theta,
            )
        )
    return found


def _is_same(one: Runner, other: Runner) -> bool:
    """Whether two runners have arrived at the same minimum."""
    distance = np.linalg.norm(one.theta - other.theta)
    return bool(distance <= _SAME_POINT * np.linalg.norm(one.theta))


def _line(field: Sequence[Runner]) -> str:
    best, worst = field[0], field[-1]
    return (
        f"{len(field)} starts, losses from {best.loss:.6g} (start "
        f"{best.number}) to {worst.loss:.6g}"
    )
