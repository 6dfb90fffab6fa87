"""What the parts of the house expect of one another, written down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from typing import Any
from typing import NamedTuple
from typing import Protocol

import numpy as np

from kormos.types import Scalar
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


class Iterate(NamedTuple):
    """A point that a solver has accepted.

    Attributes:
        theta: the point, float64 array of shape `(size,)`, or `None` for an
            iterate inside a compiled call, whose point is gone.
        loss: the loss there.
        grad: the gradient there or its 2-norm, or `None` for a method without
            gradients.
        state: what a later run can go on from. It is valid until the observer
            returns. `None` for a solver that keeps no state.
        logs: numbers of the method for the History, by name.
    """

    theta: Vector | None
    loss: float
    grad: Vector | float | None
    state: SolverState | None = None
    logs: Mapping[str, Any] = {}


class Observer(Protocol):
    """Watches a solver, and says when it is to stop."""

    def started(self, point: Point) -> bool:
        """Called once, before the first step; returns whether to stop."""

    def accepted(self, iterate: Iterate) -> bool:
        """Called after each accepted iterate; returns whether to stop."""


class Solver(Protocol):
    """An algorithm: it changes nothing but what it returns."""

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
            state: the state of an earlier run to go on from, or `None`.
            observer: told of the start and of every accepted iterate.

        Returns:
            An `Outcome`, with the new state in it.
        """


class Objective(Protocol):
    """A loss of a flat vector, of the user's own.

    It may have `hvp(theta, vector)` too, the Hessian times a vector, which
    methods such as `"newton-cg"` and `"trust-ncg"` need.

    Attributes:
        size: the number of parameters.
    """

    size: int

    def value_and_grad(self, theta: Vector) -> tuple[Scalar, np.ndarray]:
        """The loss and its gradient.

        Args:
            theta: float64 array of shape `(size,)`.

        Returns:
            The loss, a number, and the gradient, an array of shape `(size,)`.
        """
