"""The state that a session attaches to its optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

import keras

from kormos import backend
from kormos.optimizers.stage import StageProgress
from kormos.session.record import Counts
from kormos.session.sharing import share_optimizer
from kormos.types import Vector
from kormos.warn import warn

if TYPE_CHECKING:
    from kormos.optimizers.base import BatchOptimizer
    from kormos.solvers.solver_state import SolverState


class Attachment:
    """The state that callbacks save, and from which a session can continue.

    Only this class writes to an optimizer.

    Args:
        optimizer: the `BatchOptimizer`.

    Attributes:
        optimizer: the same.
        state: the `SolverState` to continue from, or `None`.
        progress: the progress of the earlier session that is continued, or
            `None`.
    """

    def __init__(self, optimizer: BatchOptimizer):
        self.optimizer = optimizer
        self._loads = self._earlier_iterations = 0
        # Each session has its own list, because another session may use the
        # optimizer at the same time.
        self._results: list[Any] = []
        self.state: SolverState | None = None
        self.progress: StageProgress | None = None

    def build(self, variables: Sequence[Any]) -> None:
        """Builds the optimizer, before a backup may be read into it."""
        optimizer = self.optimizer
        optimizer.build([v for v in variables if isinstance(v, keras.Variable)])
        optimizer.results = self._results
        self._loads = optimizer.loads

    def share(self) -> None:
        """Copies the state of the first process to all processes of a fit."""
        share_optimizer(self.optimizer)

    def take_over(self, resume: bool, counts_on: bool = False) -> None:
        """Takes over the state that the optimizer keeps of an earlier session.

        Args:
            resume: whether to continue with its state. A backup that was
                read since `build` is always used.
            counts_on: whether the count of its stage's epochs continues, even
                if there is no state.
        """
        optimizer = self.optimizer
        is_restored = optimizer.loads > self._loads
        resume = resume or is_restored
        progress = optimizer.stage_progress
        if progress is not None and (is_restored or counts_on):
            self.progress = progress
        elif progress is not None and resume:
            # Epochs are counted from zero again.
            self.progress = StageProgress(progress.number)
        self._earlier_iterations = int(backend.to_numpy(optimizer.iterations))
        self.state = optimizer.solver_state if resume else None
        is_lost = self.state is None and (
            optimizer.loads or self._earlier_iterations
        )
        if resume and optimizer.keeps_state and is_lost:
            warn(
                "The optimizer has not kept the state of its earlier "
                "iterations, and continues from the weights only. To save "
                "the state with a model, set `optimizer.keep_state = True` "
                "before you save it. Received: resume=True, "
                f"'{optimizer.name}' after {self._earlier_iterations} "
                "iterations"
            )

    def keep(self, state: SolverState | None) -> None:
        """Stores a state, which callbacks save and a later session finds."""
        self.state = state
        self.optimizer.keep(state)

    def keep_position(self, theta: Vector, iterations: int) -> None:
        """Notes the present values of the variables.

        Args:
            theta: the point before they rounded it.
            iterations: accepted iterations of this session so far.
        """
        if self.state is not None:
            self.state.position = theta
        self.optimizer.iterations.assign(self._earlier_iterations + iterations)

    def keep_progress(self, progress: StageProgress | None) -> None:
        """Keeps the progress of the stages, for callbacks to save."""
        self.optimizer.stage_progress = progress

    def add_result(self, raw: Any) -> None:
        """Adds the result of a method."""
        if raw is not None:
            self._results.append(raw)

    def tell(self, counts: Counts) -> None:
        """Copies the counts of evaluations to the optimizer."""
        self.optimizer.fg_evals = counts.evaluations
        self.optimizer.hessp_evals = counts.hessian_products
        self.optimizer.jacobians = counts.jacobians


def check_resume(
    optimizer: BatchOptimizer, is_named: bool, was_fitted: bool = False
) -> None:
    """Warns if `resume=True` has nothing to continue from.

    Args:
        optimizer: the optimizer.
        is_named: whether the user gave its name, so that it is a new one.
        was_fitted: whether the variables were fitted before.
    """
    has_run = optimizer.built and int(backend.to_numpy(optimizer.iterations))
    is_new = not (has_run or optimizer.loads or optimizer.solver_state)
    if not optimizer.keeps_state:
        text = (
            f"Optimizer '{optimizer.name}' keeps no curvature: the fit "
            "continues from the weights only."
        )
    elif is_named:
        text = (
            "A name makes a new optimizer, which has no state to continue "
            "from: the fit continues from the weights only. Make an instance, "
            "and pass it to each call. Received: resume=True and "
            f"'{optimizer.name}'"
        )
    elif is_new and was_fitted:
        text = (
            "The optimizer is a new one, without the state of the earlier "
            "fit: the fit continues from the weights only. Compile once, or "
            "use a `kormos.optimizers.Chain` to continue with another method. "
            f"Received: resume=True and a new '{optimizer.name}'"
        )
    else:
        return
    warn(text)
