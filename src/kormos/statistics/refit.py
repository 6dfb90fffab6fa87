"""Fits again: with parameters held, or to other rows of data.

A refit does not assign to variables: it works on a vector.
"""

import numpy as np

from kormos import optimizers
from kormos.arithmetic.vectors import symmetric
from kormos.objective.base import FlatObjective
from kormos.objective.given import GivenObjective
from kormos.session.session import Session
from kormos.session.task import Task
from kormos.session.trace_observer import TraceObserver
from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Vector

# The most iterations of a refit. Our choice: a refit that starts near its end
# takes a few.
_MOST_ITERATIONS = 200


def refit(
    objective: FlatObjective,
    theta: Vector,
    held: Array,
    box: tuple[Vector | None, Vector | None] = (None, None),
) -> tuple[Vector, float]:
    """Minimizes a loss over some of its parameters.

    Args:
        objective: the loss.
        theta: the start, with the values to hold, `(size,)`.
        held: a mask of the parameters that are held.
        box: the lower and upper bounds, or a pair of `None`.

    Returns:
        The point of the minimum, and the loss there.
    """
    if held.all():
        return theta, float(objective.value(theta))
    part = _Part(objective, theta, ~held)
    lower, upper = box
    bounds = None
    if lower is not None and upper is not None:
        pairs = np.stack([lower, upper], 1)[~held]
        bounds = [tuple(pair) for pair in pairs]
    method = "lm" if part.has_matrix else "bfgs" if bounds is None else "slsqp"
    optimizer = optimizers.get(method)
    (stage,) = optimizer.stages(_MOST_ITERATIONS)
    given = GivenObjective(part, theta[~held])
    result = Session(
        optimizer,
        [stage],
        Task(optimizer, lambda settings: (given, None), bounds),
        TraceObserver(is_quiet=True),
    )()
    return part.whole(given.initial_position()), result.loss


class _Part:
    """A loss as a function of some parameters; an `Objective`.

    Args:
        objective: the loss.
        theta: the values of the other parameters, `(size,)`.
        free: a mask of the parameters that the loss is a function of.
    """

    def __init__(
        self, objective: FlatObjective, theta: Vector, free: Array
    ) -> None:
        self._objective, self._theta, self._free = objective, theta, free
        self.size = int(free.sum())
        self.epsilon = objective.evaluation_eps
        try:
            objective.gauss_newton()
            self.has_matrix = True
        except ValueError:
            self.has_matrix = False

    def whole(self, part: Vector) -> Vector:
        """All parameters, from the free ones."""
        theta = self._theta.copy()
        theta[self._free] = part
        return theta

    def value_and_grad(self, part: Vector) -> tuple[float, Vector]:
        """The loss and its gradient."""
        loss, grad = self._objective.value_and_grad(self.whole(part))
        return float(loss), np.asarray(grad)[self._free]

    def gauss_newton(self, part: Vector) -> Matrix:
        """The Gauss-Newton matrix."""
        own = self._objective.gauss_newton()
        _, _, matrix = own.normal_equations(self.whole(part))
        return symmetric(matrix)[np.ix_(self._free, self._free)]
