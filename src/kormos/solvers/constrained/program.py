"""The quadratic program of a step, with only the bounds that the step meets."""

import numpy as np

from kormos.solvers.constrained import subproblem
from kormos.solvers.constrained.curvature import Curvature
from kormos.solvers.constrained.subproblem import Conditions
from kormos.solvers.constrained.subproblem import Step
from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Vector

# Bounds that a step would cross are added to the program, in at most this many
# rounds. Our choice: two or three rounds find all of them.
_MOST_ROUNDS = 20
# A step crosses a bound if it passes it by more than this part of the
# parameter. Our choice: rounding in the algebra takes a few digits, and the
# step is later moved exactly onto its bounds.
_ROUNDING = 1e-12


class Program:
    """The program at one point.

    Args:
        theta: the point, `(size,)`.
        grad: the gradient there, `(size,)`.
        rows: the gradients of the constraints there, `(m, size)`.
        box: the lower and upper bounds, `(size,)` each.
        curvature: the curvature.

    Attributes:
        along: the curvature along each constraint, a' H a, `(m,)`.
    """

    def __init__(
        self,
        theta: Vector,
        grad: Vector,
        rows: Matrix,
        box: tuple[Vector, Vector],
        curvature: Curvature,
    ) -> None:
        self._theta, self._grad = theta, grad
        self._lower, self._upper = box
        self._curvature = curvature
        turned = curvature.product(np.vstack([grad, rows]).T)
        self._turned_grad, self._turned_rows = turned[:, 0], turned[:, 1:]
        along = np.einsum("ij,ji->i", rows, self._turned_rows)
        self.along: Vector = np.where(along > 0, along, 1.0)

    def __call__(
        self, constraints: Conditions, multipliers: Vector, penalties: Vector
    ) -> Step:
        """The step.

        Args:
            constraints: the constraints, with the gradients of the point.
            multipliers: their multipliers, `(m,)`.
            penalties: their penalties, `(m,)`.
        """
        size = self._theta.size
        # The lower bounds, and then the upper ones.
        chosen = np.zeros(2 * size, dtype=bool)
        for _ in range(_MOST_ROUNDS):
            places = np.flatnonzero(chosen)
            step = self._solved(constraints, multipliers, penalties, places)
            crossed = self._crossed(step.direction) & ~chosen
            if not crossed.any():
                break
            chosen |= crossed
        landing = np.full(size, np.nan)
        held = places[step.multipliers[constraints.values.size :] > 0]
        ends = np.concatenate([self._lower, self._upper])
        landing[held % size] = ends[held]
        # Rounding of the algebra, times a large gradient, could hide the slope
        # along a short step.
        direction = np.where(
            np.isnan(landing), step.direction, landing - self._theta
        )
        return step._replace(direction=direction, landing=landing)

    def _solved(
        self,
        own: Conditions,
        multipliers: Vector,
        penalties: Vector,
        places: Array,
    ) -> Step:
        """The step, with some of the bounds as further conditions.

        Args:
            own: the constraints.
            multipliers: their multipliers, `(m,)`.
            penalties: their penalties, `(m,)`.
            places: the bounds to add: indices into the lower bounds, followed
                by the upper ones.
        """
        size, count = self._theta.size, places.size
        signs = np.where(places < size, 1.0, -1.0)
        slack = np.concatenate(
            [self._theta - self._lower, self._upper - self._theta]
        )[places]
        rows = np.zeros((count, size))
        rows[np.arange(count), places % size] = signs
        turned = self._turned_rows
        if count:
            turned = np.hstack([turned, self._curvature.product(rows.T)])
        return subproblem.solve(
            self._grad,
            Conditions(
                np.concatenate([own.values, slack]),
                np.concatenate([own.rows, rows]),
                np.concatenate([own.equal, np.zeros(count, dtype=bool)]),
                np.concatenate([own.hard, np.ones(count, dtype=bool)]),
            ),
            np.concatenate([multipliers, np.zeros(count)]),
            np.concatenate([penalties, np.ones(count)]),
            (self._turned_grad, turned),
        )

    def _crossed(self, direction: Vector) -> Array:
        """The bounds that a step crosses, bool, `(2 size,)`."""
        reached = self._theta + direction
        slack = _ROUNDING * (np.abs(self._theta) + np.abs(direction))
        return np.concatenate(
            [reached < self._lower - slack, reached > self._upper + slack]
        )
