"""Epochs of Keras: callbacks, History, metrics and validation of a fit."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any
from typing import cast

import keras
import numpy as np

from kormos.checks import check_count
from kormos.objective import Objective
from kormos.processes import current
from kormos.session.epoch_logs import EpochLogs
from kormos.session.history import History
from kormos.session.observer import STRIDE
from kormos.session.observer import SessionObserver
from kormos.session.progress import Progress
from kormos.session.progress import level_of
from kormos.session.progress import warning_of
from kormos.session.record import aligned
from kormos.session.replacement import Replacement
from kormos.session.result import Result
from kormos.session.run import ConvergenceWarning
from kormos.session.run import is_worth_a_warning
from kormos.session.shared_callbacks import own_callbacks
from kormos.session.sharing import share_values
from kormos.solvers.outcome import Outcome
from kormos.solvers.protocols import Iterate
from kormos.solvers.protocols import Point
from kormos.types import Vector
from kormos.warn import warn

if TYPE_CHECKING:
    from kormos.session.reporter import Reporter

_BATCH_HOOKS = (
    "on_batch_begin",
    "on_batch_end",
    "on_train_batch_begin",
    "on_train_batch_end",
)
_BEGIN_HOOKS = "on_epoch_begin", "on_batch_begin", "on_train_batch_begin"
_RATE_CALLBACKS = (
    keras.callbacks.LearningRateScheduler,
    keras.callbacks.ReduceLROnPlateau,
)


class KerasObserver(SessionObserver):
    """Makes epochs of a session.

    Args:
        model: the model.
        callbacks: the user's Keras callbacks and `Resample`s, in any form that
            `fit` of Keras takes.
        verbose: 0, 1, 2, 3 or `"auto"`.
        initial_epoch: the number at which to start counting epochs.
        steps_per_epoch: the accepted iterations of an epoch.
        validation_freq: the number of epochs between two validations; or a list
            of the epochs with a validation, counted from 1.
        own_limit: whether the user chose the number of epochs.

    Raises:
        ValueError: if an argument cannot be used.
    """

    def __init__(
        self,
        model: Any,
        callbacks: Any,
        verbose: int | str,
        initial_epoch: int,
        steps_per_epoch: int,
        validation_freq: int | Collection[int],
        own_limit: bool,
    ):
        check_count("initial_epoch", initial_epoch, 0)
        callbacks = _checked(callbacks)
        self.resamplers = [c for c in callbacks if isinstance(c, Replacement)]
        callbacks = [c for c in callbacks if c not in self.resamplers]
        self._model = model
        self._given_callbacks = callbacks
        self._verbose = level_of(verbose, auto=1)
        self._shown: list[Progress] = []
        self._initial_epoch = initial_epoch
        self._epoch_logs = EpochLogs(validation_freq)
        self._own_limit = own_limit
        self.steps = self.stride = steps_per_epoch
        # Without callbacks, the variables are written only at the end.
        self._is_watching = bool(callbacks)
        self._batch_hooks = _have(callbacks, _BATCH_HOOKS)
        self._begin_hooks = _have(callbacks, _BEGIN_HOOKS)
        self._taken = 0
        self._epoch_is_open = self._batch_is_open = False
        self._is_stopped_everywhere = False
        self._early_interrupt: KeyboardInterrupt | None = None
        self._logs: dict[str, Any] = {}

    @property
    def is_stopped(self) -> bool:
        if current().is_alone:
            return bool(self._model.stop_training)
        # A callback may have stopped only one of the processes so far.
        return self._is_stopped_everywhere

    def begin(self, reporter: Reporter) -> None:
        model, self._reporter = self._model, reporter
        processes = current()
        model.stop_training = self._is_stopped_everywhere = False
        self._is_watching = processes.agree(self._is_watching)
        self._batch_hooks = processes.agree(self._batch_hooks)
        self._begin_hooks = processes.agree(self._begin_hooks)
        verbose = self._verbose if processes.is_first else 0
        last = reporter.plan.epochs
        self._shown = [Progress(last, verbose)] if verbose else []
        for progress in self._shown:
            progress.of_method = reporter.record.of_method
        self._callbacks = keras.callbacks.CallbackList(
            [
                *self._shown,
                *own_callbacks(self._given_callbacks, reporter.optimizer),
                *self._own_history(),
            ],
            model=model,
            verbose=verbose,
            epochs=last,
            steps=self.steps,
        )
        history = model.history
        history.iteration, history.seconds, history.val_epoch = [], [], []
        history.trace = history.iterations = reporter.record.trace
        # `BackupAndRestore` restores weights, state and epoch here. They are
        # read afterwards. The epoch is reset, because otherwise the next fit
        # would use it again.
        processes.together(self._callbacks.on_train_begin)
        share_values(model.variables)
        restored = processes.from_first(
            lambda: getattr(model, "_initial_epoch", None)
        )
        model._initial_epoch = None
        self.done = restored or self._initial_epoch
        self._has_epochs = self.done < last
        objective = cast(Objective, reporter.task.objective)
        looks = self._looks()
        # For a History alone, Keras' list of callbacks would only cost time.
        self._has_listeners = (
            looks or bool(self._shown) or objective.has_metrics
        )
        if not looks and processes.is_alone:
            self.stride = self.steps * max(1, STRIDE // self.steps)
        if self._has_epochs:
            try:
                self._begin_epoch()
            except KeyboardInterrupt as error:
                # An interrupt here ends the first run like one in a later run:
                # the user gets the History, with the loss of the weights.
                self._early_interrupt = error

    def _own_history(self) -> list[History]:
        """A History, unless the user has passed one, as in Keras."""
        given = self._given_callbacks
        is_given = any(isinstance(c, keras.callbacks.History) for c in given)
        return [] if is_given else [History()]

    def _looks(self) -> bool:
        """Whether anything needs the weights at the end of every epoch."""
        task = self._reporter.task
        objective = cast(Objective, task.objective)
        return (
            self._is_watching
            or task.validation is not None
            or (objective.has_metrics and not objective.readings)
        )

    def run_begins(self, theta: Vector) -> None:
        self._taken = 0
        self._latest: Iterate = Iterate(theta, np.nan, None)
        self._row: dict[str, Any] | None = None
        self._standing = theta

    def starts(self, point: Point) -> None:
        self._latest = Iterate(*point)
        error, self._early_interrupt = self._early_interrupt, None
        if error is not None:
            raise error

    def opens(self, iterate: Iterate) -> None:
        self._latest = iterate
        if iterate.theta is not None:
            # After an interrupt from here on, the row has the iterate's own
            # numbers.
            self._row = None
        if not self._epoch_is_open:
            # The optimizer runs its own loop, so whether another iterate
            # follows is only known when it comes.
            if self._begin_hooks:
                self._tell(self._standing, self._begin_epoch)
            else:
                # Nobody assigns anything.
                self._begin_epoch()

    def discards(self) -> None:
        # The epoch must begin with the values that were set now.
        self._taken = 0

    def accepts(self, iterate: Iterate, logs: dict[str, Any]) -> None:
        self._row = logs
        self._reporter.record.add(logs)
        self._taken += 1
        if self._taken == self.steps:
            self._end_epoch()

    def run_ended(self, outcome: Outcome) -> None:
        if self._latest.theta is None:
            # An interrupt came between the iterates of a compiled call.
            self._latest = Iterate(outcome.theta, outcome.loss, None)
            self._row = {
                **(self._row or {}),
                "loss": float(outcome.loss),
                "grad": np.nan,
            }
        if self._taken:
            self._end_epoch()

    def latest(self) -> tuple[Vector, float] | None:
        # A callback that stops a fit may set weights itself.
        if not (self._is_watching and self.is_stopped):
            return None
        return self._latest_theta(), self._latest.loss

    def _latest_theta(self) -> Vector:
        theta = self._latest.theta
        assert theta is not None  # Only called between compiled calls.
        return theta

    def close(self) -> None:
        # A fit without an iteration has a row for its start, unless it was
        # interrupted before the start was evaluated.
        is_known = self._reporter.record.initial_loss is not None
        if self._epoch_is_open and is_known:
            self._end_epoch()

    def finish(self, result: Result) -> None:
        result.history = self._reporter.record.trace
        self._model.history.result = result
        self._end_training(result)
        if self._has_epochs and is_worth_a_warning(result, self._own_limit):
            text = warning_of(result, self._shown)
            warn(f"{self._model.name}: {text}", ConvergenceWarning)

    def _end_training(self, result: Result) -> None:
        """Tells the callbacks, which may set other weights."""
        task = self._reporter.task
        if not self._is_watching:
            self._callbacks.on_train_end(self._logs)
            return
        before = task.objective.initial_position()
        task.note()
        self._callbacks.on_train_end(self._logs)
        if current().agree(task.followed(before) is not None):
            here = task.objective.initial_position()
            result.kept_loss = float(task.objective.value(here))
            result.message += (
                " A callback then set other weights, with loss "
                f"{result.kept_loss:.6g}."
            )

    def abandon(self) -> None:
        for progress in self._shown:
            progress.abandon()

    def _tell(self, theta: Vector, fn: Any, *args: Any) -> None:
        """Calls a function that calls callbacks; adopts what they assign."""
        if self._is_watching:
            self._reporter.call_out(theta, fn, *args)
        else:
            fn(*args)

    def _begin_epoch(self) -> None:
        # This comes before the hooks, so that none is called twice after an
        # interrupt in one of them.
        self._epoch_is_open = True
        if self._has_listeners:
            self._together(self._callbacks.on_epoch_begin, self.done)
        if self._batch_hooks:
            self._together(self._callbacks.on_train_batch_begin, 0)
            self._batch_is_open = True

    def _end_epoch(self) -> None:
        """Writes weights, validates, and tells the callbacks."""
        theta = self._latest.theta
        if theta is None:
            # The iterate is inside a compiled call, and no callback needs it.
            self._tell_epoch_end(None)
            return
        objective = cast(Objective, self._reporter.task.objective)
        # Validation uses the averages of layers, which are assigned with it.
        is_needed = objective.uses_training_state and self._validates()
        if self._is_watching or is_needed:
            self._reporter.write(theta)
        self._standing = theta
        self._tell(theta, self._tell_epoch_end, theta)

    def _validates(self) -> bool:
        """Whether this epoch has a validation."""
        has_data = self._reporter.task.validation is not None
        return has_data and self._epoch_logs.validates(self.done + 1)

    def _tell_epoch_end(self, theta: Vector | None) -> None:
        self._row = self._row or self._reporter.record.row(self._latest)
        if self._batch_is_open:
            self._batch_is_open = False
            logged = {"loss": self._row["loss"]}
            self._together(self._callbacks.on_train_batch_end, 0, logged)
        logs = self._logs = self._logs_at(theta, self._row)
        self._taken = 0
        self._epoch_is_open = False
        history, epoch = self._model.history, self.done
        self.done += 1
        self._reporter.count(logs["loss"])
        record = self._reporter.record
        history.iteration.append(record.iterations)
        history.seconds.append(record.seconds)
        if any(name.startswith("val_") for name in logs):
            history.val_epoch.append(epoch)
        history.history.update(
            aligned(history.history, self._row or {}, len(history.epoch))
        )
        if not self._has_listeners:
            history.on_epoch_end(
                epoch, {name: float(logs[name]) for name in sorted(logs)}
            )
            return
        try:
            self._together(self._callbacks.on_epoch_end, epoch, logs)
        except BaseException:
            # The user's History comes after the callbacks.
            if epoch not in history.epoch:
                history.on_epoch_end(epoch, logs)
            raise

    def _together(self, fn: Any, *args: Any) -> None:
        """Calls callbacks on all processes, which agree on whether to stop."""
        model = self._model

        def is_stopped() -> bool:
            fn(*args)
            return bool(model.stop_training)

        if self._is_watching:
            model.stop_training = current().anywhere(is_stopped)
            self._is_stopped_everywhere = model.stop_training
        else:
            fn(*args)

    def _logs_at(
        self, theta: Vector | None, row: dict[str, Any]
    ) -> dict[str, Any]:
        """The logs of an epoch: its row, metrics and validation."""
        task = self._reporter.task
        objective = cast(Objective, task.objective)
        logs = {**row, **self._epoch_logs.metrics(objective, self._latest)}
        if theta is None:
            return logs
        if self._validates():
            validation = cast(Objective, task.validation)
            logs.update(
                self._epoch_logs.validation(
                    validation, theta, self._callbacks, self._together
                )
            )
        return logs


def _have(
    callbacks: Sequence[keras.callbacks.Callback], hooks: Sequence[str]
) -> bool:
    """Whether a callback has its own method for one of the hooks."""
    # An instance may have its own method, as in a `LambdaCallback`.
    return any(
        getattr(getattr(callback, hook), "__func__", None)
        is not getattr(keras.callbacks.Callback, hook)
        for callback in callbacks
        for hook in hooks
    )


def _checked(callbacks: Any) -> list[Any]:
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    callbacks = keras.tree.flatten(callbacks)
    callbacks = [c for c in callbacks if c is not None]
    for callback in callbacks:
        if not isinstance(callback, (keras.callbacks.Callback, Replacement)):
            raise ValueError(
                "Argument `callbacks` must be a `keras.callbacks.Callback`, "
                "or a list of these (`LambdaCallback` calls functions). "
                f"Received: {callback!r}"
            )
        if isinstance(callback, _RATE_CALLBACKS):
            raise ValueError(
                "The optimizers of kormos have no learning rate, because "
                "line searches and trust regions choose the steps. Leave the "
                f"callback out. Received: {type(callback).__name__}"
            )
    return callbacks
