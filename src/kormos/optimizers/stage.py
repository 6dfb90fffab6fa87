"""One run of one method, as an optimizer describes it."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import numpy as np

from kormos.solvers.protocols import Solver
from kormos.solvers.solver_state import SolverState
from kormos.types import Array


class StageProgress(NamedTuple):
    """How far a chain of stages has got.

    Attributes:
        number: the number of the stage, from 0.
        done: the epochs of it that are done.
        best: the loss from which `patience` counts.
        waited: the epochs since then.
    """

    number: int = 0
    done: int = 0
    best: float = np.inf
    waited: int = 0

    @classmethod
    def of(cls, array: Array) -> "StageProgress | None":
        """The progress that was written as an array; `None` if spoilt."""
        if np.shape(array) != (4,) or not np.isfinite(array[[0, 1, 3]]).all():
            return None
        number, done, best, waited = array
        if min(number, done, waited) < 0:
            return None
        return cls(int(number), int(done), float(best), int(waited))

    def after(self, loss: float, min_delta: float) -> "StageProgress":
        """The progress after an epoch with a loss at its end."""
        fell = self.best - loss > min_delta * abs(self.best)
        if fell or not np.isfinite(self.best):
            return StageProgress(self.number, self.done + 1, loss)
        return self._replace(done=self.done + 1, waited=self.waited + 1)


def takes_no_state(state: SolverState, size: int) -> bool:
    """The answer of a method that cannot use what another one knows."""
    del state, size
    return False


class Stage(NamedTuple):
    """One run of one method.

    Attributes:
        epochs: the most epochs of the stage, or `None` if not said.
        pretrain_fn: function of the model, called before the stage, or `None`.
        check: function of `(size, bounded, constraint_types)` that raises a
            `ValueError` if the method cannot honour what was asked.
        run: the `Solver`.
        uses_hessian: whether the method asks for Hessian products.
        uses_jacobian: whether it asks for derivatives of outputs.
        uses_batches: whether it takes its steps on batches of the data.
        assigns: whether it assigns the variables itself, and what else a
            model has: averages of batch normalization for instance.
        takes_state: function of `(state, size)` that tells whether the method
            can go on with the `SolverState` that the stage before has left.
        takes_rest: whether it may also take the epochs that stages before it
            have left.
        patience: the number of epochs without an improvement after which the
            stage ends, or `None`.
        min_delta: the part of the loss by which it must fall to improve.
        share: the part of `max_seconds` after which it ends, or `None`.
        name: the name of its optimizer.
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
