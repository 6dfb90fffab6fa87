"""The solver protocol, and the records that solvers exchange with sessions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from typing import Any
from typing import NamedTuple
from typing import Protocol

import numpy as np

from kormos.types import Vector

if TYPE_CHECKING:
    from kormos.solvers.outcome import Outcome
    from kormos.solvers.problem import Problem
    from kormos.solvers.solver_state import SolverState


class Point(NamedTuple):
    """Where a solver starts.

    Attributes:
        theta: the point, float64 array of shape `(size,)`.
        loss: the loss there.
        grad: the gradient there, or `None` for a method without gradients.
    """

    theta: Vector
    loss: float
    grad: Vector | None

    @property
    def is_finite(self) -> bool:
        """Whether the loss and the gradient are finite, as far as known."""
        grad = self.grad
        return bool(
            np.isfinite(self.loss) and (grad is None or np.isfinite(grad).all())
        )


class Iterate(NamedTuple):
    """A point that a solver has accepted.

    Attributes:
        theta: the point, float64 array of shape `(size,)`, or `None` for an
            iterate inside a compiled call, whose point is gone.
        loss: the loss there.
        grad: the gradient there or its 2-norm, or `None` for a method without
            gradients.
        state: the state from which a later run can continue. It is valid until
            the observer returns. `None` for a solver that keeps no state.
        logs: numbers of the method for the History, by name.
        is_penalized: whether the method minimizes the loss and a penalty of its
            own, so that an earlier point with a lower loss is no better.
        readings: other numbers that the objective has computed there, in the
            same pass over the data: float64 array of shape `(readings,)`;
            `None` if they are not at hand.
    """

    theta: Vector | None
    loss: float
    grad: Vector | float | None
    state: SolverState | None = None
    logs: Mapping[str, Any] = {}
    is_penalized: bool = False
    readings: Vector | None = None


class Observer(Protocol):
    """Observes a solver, and tells it when to stop."""

    def started(self, point: Point) -> bool:
        """Called once, before the first step; returns whether to stop."""

    def accepted(self, iterate: Iterate) -> bool:
        """Called after each accepted iterate; returns whether to stop."""


class Solver(Protocol):
    """An algorithm. It has no side effects; all results are returned."""

    def __call__(
        self,
        problem: Problem,
        theta: Vector,
        state: SolverState | None,
        observer: Observer,
    ) -> Outcome:
        """Minimizes a loss from a point.

        Args:
            problem: the loss, its derivatives and its limits.
            theta: the start, float64 array of shape `(size,)`.
            state: the state of an earlier run to continue from, or `None`.
            observer: is called at the start and after every accepted iterate.

        Returns:
            An `Outcome`, with the new state in it.
        """


class Tolerances(Protocol):
    """The tolerances of one of kormos' own methods, all relative.

    Attributes:
        gtol: on the decrease that a model of the loss predicts.
        ftol: on the decrease of the loss.
        xtol: on the length of a step.
    """

    gtol: float
    ftol: float
    xtol: float


class LeastSquaresSettings(Tolerances, Protocol):
    """The options of Levenberg-Marquardt's method.

    Attributes:
        acceleration: whether half the geodesic acceleration is added to steps.
        preset: `"matlab"` for the rule of MATLAB's `trainlm`, or `None`.
        linear_solver: `"rows"`, `"dense"`, `"cg"` or `"auto"`.
        regularization: `"evidence"` or `"evidence-by-variable"` for a penalty
            whose weights the data choose, or `None`.
    """

    acceleration: bool
    preset: str | None
    linear_solver: str
    regularization: str | None
