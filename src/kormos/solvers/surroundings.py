"""The loss around a point: directions in which it is or stays flat."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kormos.arithmetic.vectors import NARROW
from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Vector

# An eigenvalue of the scaled Hessian is zero if it is at most `_ROOM` times a
# power of the spacing. These are the powers by which differences of the
# gradient are wrong over a step of its cube root: on one side of a point, and
# on both.
_ONE_SIDED, _CENTRAL = 1 / 3, 2 / 3
# Our choice: a smaller number misses flat directions in rough arithmetic, a
# larger one finds some that are only badly determined.
_ROOM = 10.0
# A difference of at most this many roundings of the loss counts as zero. Our
# choice: both losses are rounded, and sums of many rows by more than one
# spacing.
_HIDDEN = 8.0
# A parameter belongs to a direction if its part of the unit vector is larger
# than this. Our choice: smaller parts are the rounding of eigenvectors.
PART = 0.02
# A parameter may go to infinity on two conditions: by its present curvature,
# its move should raise the loss by less than this part of the run's gain; and
# this curvature is less than the same part of that at the start.
_CHEAP = 1e-3

Evaluate = Callable[[Vector], tuple[float, Vector]]
Hessian = Callable[[Vector], Matrix]
# Lower and upper bounds: an array with an entry for each parameter, or one
# number for all of them.
Box = tuple[Vector | float, Vector | float]


class Point(NamedTuple):
    """A point, its loss and its gradient."""

    theta: Vector
    loss: float
    grad: Vector


class Surroundings:
    """Evaluates around a point.

    Args:
        evaluate: loss and gradient as a function of a point.
        hessian: the Hessian as a function of a point, or `None` to take
            differences of the gradient.
        here: the point.
        sizes: the size of each parameter.
        box: the bounds, outside of which nothing is evaluated.
        evaluation_eps: the machine epsilon of the evaluation's dtype.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        hessian: Hessian | None,
        here: Point,
        sizes: Vector,
        box: Box,
        evaluation_eps: float,
    ):
        self._lower, self._upper = box
        self._evaluate, self._hessian = evaluate, hessian
        self._here = here
        self._sizes, self._epsilon = sizes, evaluation_eps

    def hessian(self, at: Point, indices: Array, sides: int) -> Matrix | None:
        """The Hessian of some parameters; `None` if it is not finite.

        Args:
            at: the point.
            indices: the indices of the parameters.
            sides: 1 or 2, whether differences are one-sided or central.
        """
        if self._hessian is not None:
            matrix = self._hessian(at.theta)[np.ix_(indices, indices)]
            return matrix if np.isfinite(matrix).all() else None
        columns = []
        for i in indices:
            step = np.zeros_like(self._sizes)
            step[i] = self._epsilon ** (1 / 3) * self._sizes[i]
            ahead, behind = self._inside(at.theta + step), at.theta
            if sides == 2 or ahead[i] == at.theta[i]:
                behind = self._inside(at.theta - step)
            before = at.grad
            if behind is not at.theta:
                before = self._evaluate(behind)[1]
            change = self._evaluate(ahead)[1] - before
            columns.append(change[indices] / (ahead[i] - behind[i]))
        hessian = np.array(columns)
        return (hessian + hessian.T) / 2 if np.isfinite(hessian).all() else None

    def flat(self, indices: Array, hessian: Matrix) -> Matrix:
        """Unit vectors, `(k, size)`, along which there is no curvature.

        Args:
            indices: the indices of the parameters that may be in them.
            hessian: the Hessian of these parameters.
        """
        coarse = _ROOM * self._epsilon**_ONE_SIDED
        fine = _ROOM * self._epsilon**_CENTRAL
        flat: list[Vector] = []
        curvature = np.zeros_like(self._sizes)
        curvature[indices] = np.diagonal(hessian)
        central = None
        if self._hessian is not None:
            central = hessian
        elif (_spectrum(hessian)[0] < coarse).any():
            central = self.hessian(self._here, indices, 2)
        if central is not None:
            for value, row in zip(*_spectrum(central), strict=True):
                direction = np.zeros_like(self._sizes)
                direction[indices] = row
                # Differences of a float32 gradient show too little. The loss
                # itself shows more.
                if self._epsilon > NARROW and self._hessian is None:
                    is_flat = value < coarse and self.is_level(
                        direction, curvature
                    )
                else:
                    is_flat = abs(value) < fine
                if is_flat:
                    flat.append(direction)
        return np.array(flat).reshape(len(flat), self._sizes.size)

    def is_level(self, direction: Vector, curvature: Vector) -> bool:
        """Whether a move by the parameters' own size leaves the loss unchanged.

        Args:
            direction: a unit vector.
            curvature: the diagonal of the Hessian.
        """
        moving = np.abs(direction) > PART
        length = np.min(self._sizes[moving] / np.abs(direction[moving]))
        room = np.minimum(
            self._here.theta - self._lower, self._upper - self._here.theta
        )
        length = min(length, np.min(room[moving] / np.abs(direction[moving])))
        step = length * direction
        # The direction is only known to the rounding of differences, so a move
        # along it may cost a little.
        bend = np.abs(curvature) @ step**2 / 2
        slope = np.abs(self._here.grad) @ np.abs(step)
        cost = self._room + self._epsilon**_CENTRAL * bend
        cost += self._epsilon**_ONE_SIDED * slope
        return all(abs(self._rise(s * step)) <= cost for s in (1.0, -1.0))

    def endless(
        self,
        start: tuple[Vector, float],
        indices: Array,
        curvature: Vector,
    ) -> list[int]:
        """Parameters that could move as far again without raising the loss.

        Args:
            start: where the run began, and the loss there.
            indices: the indices of the parameters that may be among them.
            curvature: the diagonal of the Hessian.
        """
        move = self._here.theta - start[0]
        cost = np.abs(curvature) * move**2 / 2
        gained = start[1] - self._here.loss
        cheap = [i for i in indices if move[i] and cost[i] <= _CHEAP * gained]
        if not cheap:
            return []
        # They had a curvature at the start, which has vanished.
        begun = Point(start[0], *self._evaluate(start[0]))
        gone = []
        for i in cheap:
            before = self.hessian(begun, np.array([i]), 1)
            was = 0.0 if before is None else before[0, 0]
            if was > 0 and curvature[i] <= _CHEAP * was:
                gone.append(int(i))

        def is_free(moved: list[int]) -> bool:
            step = np.zeros_like(move)
            step[moved] = move[moved]
            return self._rise(step) <= self._room

        found = [i for i in gone if is_free([i])]
        return gone if not found and gone and is_free(gone) else found

    def _inside(self, theta: Vector) -> Vector:
        return np.clip(theta, self._lower, self._upper)

    @property
    def _room(self) -> float:
        """The largest rise of the loss that is rounding."""
        return _HIDDEN * self._epsilon * abs(self._here.loss)

    def _rise(self, step: Vector) -> float:
        """By how much a step raises the loss; infinity if a bound stops it."""
        theta = self._here.theta + step
        if not np.array_equal(theta, self._inside(theta)):
            return np.inf
        return self._evaluate(theta)[0] - self._here.loss


def _spectrum(hessian: Matrix) -> tuple[Vector, Matrix]:
    """Eigenvalues of the Hessian with a unit diagonal, and unit vectors.

    Parameters without effect are left out. The vectors are rows, in the units
    of the parameters.
    """
    known = hessian.any(axis=0)
    inner = hessian[known][:, known]
    largest = np.abs(inner).max(axis=0, initial=0.0)
    diagonal = np.abs(np.diagonal(inner))
    scale = np.sqrt(np.where(diagonal > 0, diagonal, largest))
    values, vectors = np.linalg.eigh(inner / scale / scale[:, None])
    rows = np.zeros((values.size, len(hessian)))
    rows[:, known] = (vectors / scale[:, None]).T
    return values, rows / np.linalg.norm(rows, axis=1, keepdims=True)
