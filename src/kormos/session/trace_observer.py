"""Iterations of a function's minimization: callbacks and what is recorded."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any
from typing import cast

import keras
import numpy as np

from kormos.objective.base import FlatObjective
from kormos.objective.functions.residuals import ResidualObjective
from kormos.optimizers.stage import Stage
from kormos.processes import current
from kormos.session.displays import is_interactive
from kormos.session.observer import STRIDE
from kormos.session.observer import SessionObserver
from kormos.session.progress import Progress
from kormos.session.progress import level_of
from kormos.session.progress import warning_of
from kormos.session.replacement import Replacement
from kormos.session.result import Result
from kormos.session.run import ConvergenceWarning
from kormos.session.run import is_worth_a_warning
from kormos.solvers.protocols import Iterate
from kormos.solvers.rejections import or_else
from kormos.types import Vector
from kormos.warn import warn

if TYPE_CHECKING:
    from kormos.optimizers.base import BatchOptimizer
    from kormos.session.reporter import Reporter


# The most iterations if neither the user nor the optimizer sets a limit.
DEFAULT_ITERATIONS = 1000

# Keras' callbacks that need the weights or the learning rate of a model.
_NEED_A_MODEL = (
    "BackupAndRestore",
    "LearningRateScheduler",
    "ModelCheckpoint",
    "OrbaxCheckpoint",
    "ReduceLROnPlateau",
    "SwapEMAWeights",
)


def stages_of(
    name: str,
    optimizer: BatchOptimizer,
    max_iterations: int | None,
    **settings: Any,
) -> list[Stage]:
    """The stages of an optimizer, for a function without a model.

    Args:
        name: the name of the function, for messages.
        optimizer: the optimizer.
        max_iterations: the user's limit, or `None`.
    """
    if max_iterations is None:
        max_iterations = optimizer.epochs
    if max_iterations is None:
        max_iterations = DEFAULT_ITERATIONS
    stages = optimizer.stages(max_iterations, **settings)
    if any(stage.pretrain_fn is not None for stage in stages):
        raise ValueError(
            f"`kormos.{name}` has no model for a `pretrain_fn`: run one "
            f"stage per call. Received: {len(stages)} stages, with a "
            "`pretrain_fn`"
        )
    if any(stage.uses_batches for stage in stages):
        raise ValueError(
            f"`kormos.{name}` takes its steps on all of the data: leave out "
            "`stochastic`, and pass `full_batch=True` to a `Chain` with one "
            "of Keras' optimizers. Received: an optimizer that takes its "
            "steps on batches"
        )
    return stages


class TraceObserver(SessionObserver):
    """Records the iterations of a session.

    Args:
        callbacks: functions `(iteration, logs)`, Keras callbacks that need no
            model, and `Resample`s.
        verbose: 0, 1, 2, 3 or `"auto"`.
        own_limit: whether the user chose the number of iterations.
        is_evaluated_too: whether something else needs every evaluation.
        is_quiet: whether to suppress warnings about how the session ends.
    """

    def __init__(
        self,
        callbacks: Sequence[Any] = (),
        verbose: int | str = 0,
        own_limit: bool = True,
        is_evaluated_too: bool = False,
        is_quiet: bool = False,
    ):
        callbacks = _checked(callbacks)
        self.resamplers = [c for c in callbacks if isinstance(c, Replacement)]
        self._functions = [
            c
            for c in callbacks
            if not isinstance(c, (Replacement, keras.callbacks.Callback))
        ]
        mine = [c for c in callbacks if isinstance(c, keras.callbacks.Callback)]
        level = level_of(verbose, auto=int(is_interactive()))
        self._level = level if current().is_first else 0
        self._mine = mine
        self._shown: list[Progress] = []
        self._model = _StandIn()
        # The display of progress only reads the trace, and does not need each
        # iterate.
        self._is_watching = bool(self._functions or mine)
        self._is_evaluated_too = is_evaluated_too
        self._own_limit = own_limit
        self.is_quiet = is_quiet
        self._is_stopped = False
        self._logs: dict[str, Any] = {}

    def refuse_resamplers(self, door: str) -> None:
        """Refuses a `Resample` in a function that has no data to replace."""
        if self.resamplers:
            raise ValueError(
                f"A `Resample` replaces data, and `kormos.{door}` has none: "
                "use `kormos.least_squares`. Received: callbacks with a "
                "`Resample`"
            )

    @property
    def is_stopped(self) -> bool:
        if current().is_alone:
            return self._is_stopped or self._model.stop_training
        # A callback may have stopped only one of the processes so far.
        return self._is_stopped

    def begin(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._is_watching = current().agree(self._is_watching)
        self._blocks = list(getattr(reporter.task.objective, "names", ()))
        looks = (
            self._is_watching or self._blocks[1:] or reporter.task.validation
        )
        self.stride = 1 if looks else STRIDE
        for name in ("loss", "grad", "fg_evals", "hessp_evals", "seconds"):
            reporter.record.trace[name] = []
        level, last = self._level, reporter.plan.epochs
        self._shown = [Progress(last, level)] if level else []
        self._keras = keras.callbacks.CallbackList([*self._shown, *self._mine])
        for callback in self._keras.callbacks:
            callback.set_model(self._model)
            callback.set_params({"verbose": level, "epochs": last, "steps": 1})
        for progress in self._shown:
            progress.of_method = reporter.record.of_method
        current().together(self._keras.on_train_begin)

    def accepts(self, iterate: Iterate, logs: dict[str, Any]) -> None:
        reporter, theta = self._reporter, iterate.theta
        self._logs = logs = {**logs, **self._looked(theta)}
        reporter.record.add(logs)
        self.done += 1
        reporter.count(logs["loss"])
        if self._is_watching or self._is_evaluated_too:
            # If a callback needs each iterate, a compiled call has one
            # iteration.
            assert theta is not None
            if self._is_watching:
                reporter.write(theta)
            reporter.call_out(theta, self._tell, logs)
        else:
            self._tell(logs)

    def finish(self, result: Result) -> None:
        result.history = self._reporter.record.trace
        self._model.history = types.SimpleNamespace(result=result)
        self._keras.on_train_end(self._logs)
        is_due = is_worth_a_warning(result, self._own_limit)
        if is_due and not self.is_quiet:
            warn(warning_of(result, self._shown), ConvergenceWarning)

    def abandon(self) -> None:
        for progress in self._shown:
            progress.abandon()

    def _tell(self, logs: dict[str, Any]) -> None:
        if not self._is_watching:
            self._tell_own(logs)
            return

        def is_stopped() -> bool:
            self._tell_own(logs)
            return self._is_stopped or self._model.stop_training

        self._is_stopped = current().anywhere(is_stopped)

    def _tell_own(self, logs: dict[str, Any]) -> None:
        """Calls the callbacks of this process."""
        answers = [fn(self.done, logs) for fn in self._functions]
        self._is_stopped = any(answers)
        if self._keras.callbacks:
            epoch = self.done - 1
            self._keras.on_epoch_begin(epoch)
            self._keras.on_train_batch_begin(0)
            self._keras.on_train_batch_end(0, {"loss": logs["loss"]})
            self._keras.on_epoch_end(epoch, dict(logs))

    def _looked(self, theta: Vector | None) -> dict[str, Any]:
        """The losses of blocks and of held-out data at an iterate."""
        reporter = self._reporter
        objective, validation = (
            reporter.task.objective,
            reporter.task.validation,
        )
        found: dict[str, Any] = {}
        if self._blocks[1:]:
            losses = self._block_losses(objective, theta)
            found.update({f"{k}_loss": v for k, v in losses.items()})
        if validation is not None:
            found["val_loss"] = or_else(np.nan, validation.value, theta)
            if self._blocks[1:]:
                losses = self._block_losses(validation, theta)
                found.update({f"val_{k}_loss": v for k, v in losses.items()})
        return found

    def _block_losses(
        self, objective: FlatObjective, theta: Vector | None
    ) -> dict[str, float]:
        instead = dict.fromkeys(self._blocks, np.nan)
        block_losses = cast(ResidualObjective, objective).block_losses
        return or_else(instead, block_losses, theta)


class _StandIn:
    """The object that Keras' callbacks receive in place of a model."""

    def __init__(self) -> None:
        self.stop_training = False
        self.name = "kormos"
        self.history: Any = None
        # Keras' callbacks read these attributes, but do not need their values.
        self.metrics: list[Any] = []
        self.optimizer = self.train_function = None

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            "A callback needs a model, but there is none here: use a "
            "function `(iteration, logs)`, or a Keras callback that needs no "
            f"model. Received: a callback that reads `model.{name}`"
        )


def _checked(callbacks: Any) -> Sequence[Any]:
    if not isinstance(callbacks, (list, tuple)):
        raise ValueError(
            "Argument `callbacks` must be a list. "
            f"Received: callbacks={callbacks!r}"
        )
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.Callback):
            _refuse_needs(callback)
        elif not (callable(callback) or isinstance(callback, Replacement)):
            raise ValueError(
                "Argument `callbacks` must be a list of functions "
                "`(iteration, logs)`, Keras callbacks that need no model and "
                f"`kormos.callbacks.Resample`s. Received: {callback!r}"
            )
    return callbacks


def _refuse_needs(callback: keras.callbacks.Callback) -> None:
    """Refuses a callback that needs a model."""
    names = {kind.__name__ for kind in type(callback).__mro__}
    needs = sorted(names & set(_NEED_A_MODEL))
    if getattr(callback, "restore_best_weights", False):
        needs.append("restore_best_weights=True")
    if getattr(callback, "histogram_freq", 0) or getattr(
        callback, "embeddings_freq", 0
    ):
        needs.append("histogram_freq or embeddings_freq")
    if needs:
        raise ValueError(
            "There is no model here, only variables: leave out callbacks "
            "that read or write a model. The result keeps the best variables "
            f"anyway. Received: {type(callback).__name__}, with "
            f"{', '.join(needs)}"
        )
