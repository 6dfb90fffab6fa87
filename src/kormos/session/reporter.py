"""Reports a run to an observer, and detects what callbacks have changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kormos.objective.start_checks import warn_of_unused_variables
from kormos.session.attachment import Attachment
from kormos.session.observer import SessionObserver
from kormos.session.plan import Plan
from kormos.session.record import Record
from kormos.session.run import Run
from kormos.session.task import Task
from kormos.solvers.protocols import Iterate
from kormos.solvers.protocols import Point
from kormos.types import Vector


class Reporter:
    """The link between the runs of a session and its observer.

    A run reports its start and every accepted iterate to it. Through it, the
    observer records them, writes them into the variables and calls callbacks.

    Args:
        task: the `Task`.
        record: the `Record`.
        attachment: the `Attachment`.
        observer: the `SessionObserver`.
        plan: the `Plan`.

    Attributes:
        task: the same.
        record: the same.
        optimizer: the optimizer of the session.
        plan: the same.
        has_started: whether the start of the present run is evaluated.
        followed: the point to continue from, where callbacks have changed the
            loss or the variables; `None` otherwise.
    """

    def __init__(
        self,
        task: Task,
        record: Record,
        attachment: Attachment,
        observer: SessionObserver,
        plan: Plan,
    ):
        self.task = task
        self.record = record
        self._attachment = attachment
        self.optimizer = attachment.optimizer
        self._observer = observer
        self.plan = plan
        self.has_started = False
        self.followed: Vector | None = None
        self._end = 0

    def begin_run(self, end: int) -> None:
        """Called before each run.

        Args:
            end: the epoch, or the iteration in functions without epochs,
                at which the run is to stop.
        """
        self.has_started, self.followed, self._end = False, None, end

    def started(self, point: Point) -> bool:
        """Called with the start of a run; returns whether to stop there."""
        self.has_started = True
        theta, loss, grad = point
        if not self.record.knows_start:
            self.record.initial_loss = loss
            if not self._observer.is_quiet:
                warn_of_unused_variables(
                    self.task.objective,
                    theta,
                    grad,
                    self._run.problem.project,
                )
        self._observer.starts(point)
        # A stage that an earlier session has ended has no more epochs.
        is_done = self._observer.done >= self._end
        return is_done or self.plan.is_on_plateau

    def accepted(self, iterate: Iterate) -> bool:
        """Called with every accepted iterate; returns whether to stop."""
        observer = self._observer
        self._attachment.keep(iterate.state)
        if self._run.stage.assigns:
            self.task.refresh_validation()
        observer.opens(iterate)
        if self.followed is not None:
            # A callback has changed the loss or the variables: the run must
            # start again from the values that it has set, without this iterate.
            observer.discards()
            self._run.iterations -= 1
            return True
        observer.accepts(iterate, self.record.row(iterate))
        is_over = observer.is_stopped or observer.done >= self._end
        is_over = is_over or self.plan.is_on_plateau
        return is_over or self.followed is not None

    def count(self, loss: float) -> None:
        """Counts an epoch, before callbacks are called with it.

        Args:
            loss: the loss at its end.
        """
        self.plan.count(loss)
        self._attachment.keep_progress(self.plan.progress)

    def call_out(
        self, theta: Vector, fn: Callable[..., object], *args: Any
    ) -> None:
        """Calls a function of the user, which may assign variables.

        Args:
            theta: the point that the variables keep, before they round it.
            fn: the function.
            *args: its arguments.
        """
        self.task.note()
        fn(*args)
        self.followed = self.task.followed(theta)

    def write(self, theta: Vector) -> None:
        """Writes a point into the variables, and notes that it is there."""
        self.task.assign(theta)
        self._attachment.keep_position(theta, self.record.iterations)

    @property
    def _run(self) -> Run:
        assert self.record.run is not None, "only a run reports iterates"
        return self.record.run
