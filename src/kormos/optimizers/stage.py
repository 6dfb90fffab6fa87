"""One run of one method, as an optimizer describes it."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from kormos.solvers.protocols import Solver
from kormos.solvers.solver_state import SolverState
from kormos.types import Array


class StageProgress(NamedTuple):
    """The progress of a chain of stages.

    Attributes:
        number: the number of the stage, from 0.
        done: the number of its epochs that are done.
        best: the loss from which `patience` counts.
        waited: the number of epochs since then.
    """

    number: int = 0
    done: int = 0
    best: float = np.inf
    waited: int = 0

    @classmethod
    def of(cls, array: Array) -> "StageProgress | None":
        """Reads the progress from an array; `None` if that is not valid."""
        if np.shape(array) != (4,) or not np.isfinite(array[[0, 1, 3]]).all():
            return None
        number, done, best, waited = array
        if min(number, done, waited) < 0:
            return None
        return cls(int(number), int(done), float(best), int(waited))

    def after(self, loss: float, min_delta: float) -> "StageProgress":
        """The progress after an epoch that has ended with a loss.

        Args:
            loss: the loss at the end of the epoch.
            min_delta: the relative decrease that counts as an improvement.
        """
        fell = self.best - loss > min_delta * abs(self.best)
        if fell or not np.isfinite(self.best):
            return StageProgress(self.number, self.done + 1, loss)
        return self._replace(done=self.done + 1, waited=self.waited + 1)


def takes_no_state(state: SolverState, size: int) -> bool:
    """The answer of a method that cannot use the state of another method."""
    del state, size
    return False


class LossSettings(NamedTuple):
    """The settings of the loss that a stage may change.

    Attributes:
        precision: `"float32"`, `"float64"`, `"auto"`, or `None` for the fit's
            precision.
        loss_weights: in the form that `compile` or `least_squares` takes, or
            `None` for theirs.
    """

    precision: str | None = None
    loss_weights: Any = None


def refuse_settings(
    function: str, stages: Sequence["Stage"], names: Sequence[str]
) -> None:
    """Raises a `ValueError` for settings that a function does not support.

    Args:
        function: the name of the function.
        stages: the stages.
        names: the fields of `LossSettings` that it does not support.
    """
    for stage in stages:
        for name in names:
            value = getattr(stage.loss, name)
            if value is not None:
                raise ValueError(
                    f"Argument `{name}` of a `Chain` cannot be used in "
                    f"`kormos.{function}`: leave it out. "
                    f"Received: {name}={value!r} in a stage '{stage.name}'"
                )


class Stage(NamedTuple):
    """One run of one method.

    Attributes:
        epochs: the largest number of epochs of the stage, or `None` if the
            stage has no limit.
        pretrain_fn: function of the model that is called before the stage, or
            `None`.
        check: function of `(size, bounded, constraint_types)` that raises a
            `ValueError` if the method cannot do what was asked for.
        run: the `Solver`.
        uses_hessian: whether the method needs Hessian products.
        uses_jacobian: whether it needs derivatives of outputs.
        uses_batches: whether it takes its steps on batches of the data.
        assigns: whether it assigns the variables itself, and other state of the
            model such as the averages of batch normalization.
        takes_state: function of `(state, size)` that tells whether the method
            can continue from the `SolverState` of the stage before.
        takes_rest: whether it may also use epochs that earlier stages did not
            use.
        patience: the number of epochs without an improvement after which the
            stage ends, or `None`.
        min_delta: the relative decrease of the loss that counts as an
            improvement.
        share: the part of `max_seconds` after which it ends, or `None`.
        name: the name of its optimizer.
        loss: the `LossSettings`.
    """

    epochs: int | None
    pretrain_fn: Callable[[Any], object] | None
    check: Callable[[int, bool, list[str]], None]
    run: Solver
    uses_hessian: bool = False
    uses_jacobian: bool = False
    uses_batches: bool = False
    assigns: bool = False
    takes_state: Callable[[SolverState, int], bool] = takes_no_state
    takes_rest: bool = False
    patience: int | None = None
    min_delta: float = 0.0
    share: float | None = None
    name: str = ""
    loss: LossSettings = LossSettings()
