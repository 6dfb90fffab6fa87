"""Which parameters a loss does not determine at its optimum.

Three kinds: parameters without effect; combinations along which the Hessian is
zero, of columns that depend on each other, say; and parameters that the loss
would have at infinity, as a logit has where one group has no events.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kormos.arithmetic.vectors import NARROW

# Up to so many parameters are looked at, and for so many seconds, or for such
# a part of those that the run took.
MOST = 20
_SECONDS, _SHARE = 1.0, 0.1
# Of the scaled Hessian, eigenvalues that a one-sided difference and one of both
# sides may show of a zero, in powers of the spacing.
_ONE_SIDED, _CENTRAL = 1 / 3, 2 / 3
_ROOM = 10.0
# A change of the loss by so many roundings does not show.
_HIDDEN = 8.0
# Parts of a direction that are below this part of it are rounding.
_PART = 0.02
# A parameter is tried farther out where its own move should cost a smaller
# part of what the run has gained.
_CHEAP = 1e-3

_MOST_NAMES = 8

Evaluate = Callable[[np.ndarray], tuple[float, np.ndarray]]
Hessian = Callable[[np.ndarray], np.ndarray]
# Lower and upper bounds: an array with an entry for each parameter, or one
# number for all of them.
Box = tuple[np.ndarray | float, np.ndarray | float]
EVERYWHERE: Box = (-np.inf, np.inf)


class Undetermined(NamedTuple):
    """What a loss does not determine.

    Attributes:
        without_effect: indices of parameters that change nothing.
        combined: indices of those that can move together at no cost.
        directions: how many such combinations there are.
        endless: indices of those for which the loss falls, or stays, however
            far they go.
    """

    without_effect: list[int]
    combined: list[int]
    directions: int
    endless: list[int]

    def sentences(self, name_of: Callable[[int], str]) -> str:
        """What was found, in words.

        Args:
            name_of: function of an index to the name of a parameter.
        """
        text = ""
        if self.without_effect:
            names = _listed(self.without_effect, name_of)
            text += f" The data do not determine {names}: without effect."
        if self.combined:
            names = _listed(self.combined, name_of)
            text += (
                f" The data do not determine {names}: other values give the "
                f"same loss, along {self.directions} "
                f"direction{'s' if self.directions > 1 else ''}."
            )
        if self.endless:
            names = _listed(self.endless, name_of)
            text += (
                f" The data do not bound {names}: the loss does not rise "
                "however far from the start it goes, as where groups have no "
                "events or are separated."
            )
        return text


def _listed(indices: list[int], name_of: Callable[[int], str]) -> str:
    names = [name_of(i) for i in indices[:_MOST_NAMES]]
    more = len(indices) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


class _Point(NamedTuple):
    theta: np.ndarray
    loss: float
    grad: np.ndarray


def undetermined(
    evaluate: Evaluate,
    hessian: Hessian | None,
    start: tuple[np.ndarray, float],
    theta: np.ndarray,
    box: Box,
    epsilon: float,
    seconds: float,
) -> Undetermined | None:
    """Looks around an optimum, in a few evaluations for each parameter.

    Args:
        evaluate: loss and gradient as a function of a float64 array `(size,)`.
        hessian: the Hessian, `(size, size)`, likewise; `None` to take it by
            differences of the gradient.
        start: where the run began, and the loss there.
        theta: the optimum.
        box: lower and upper bounds; what is at one of them is held.
        epsilon: the spacing of numbers near one in the evaluation's dtype.
        seconds: what the run took.

    Returns:
        What was found, or `None` where nothing was, or where it would take
        too long to look.
    """
    indices = np.flatnonzero((box[0] < theta) & (theta < box[1]))
    if not 0 < indices.size <= MOST:
        return None
    here = _Point(theta, *evaluate(theta))  # It may compile.
    began = time.perf_counter()
    evaluate(theta)
    each = time.perf_counter() - began
    is_known = np.isfinite(here.loss) and np.isfinite(here.grad).all()
    count = 3 * (indices.size if hessian is None else 1)
    too_long = count * each > max(_SECONDS, _SHARE * seconds)
    if too_long or not is_known:
        return None
    sizes = _sizes(theta, start[0], epsilon)
    look = _Look(evaluate, hessian, here, sizes, box, epsilon)
    matrix = look.hessian(here, indices, 1)
    if matrix is None:
        return None
    curvature = np.zeros_like(theta)
    curvature[indices] = np.diagonal(matrix)
    endless = look.endless(start, indices, curvature)
    rest = ~np.isin(indices, endless)
    directions = look.flat(indices[rest], matrix[np.ix_(rest, rest)])
    spread = np.linalg.norm(directions, axis=0)
    combined = [int(i) for i in np.flatnonzero(spread > _PART)]
    without = indices[rest & ~matrix.any(axis=0)]
    if not (without.size or combined or endless):
        return None
    return Undetermined(
        [int(i) for i in without], combined, len(directions), endless
    )


def undetermined_at(
    evaluate: Evaluate, theta: np.ndarray, epsilon: float
) -> Undetermined | None:
    """As `undetermined`, at a point that is no optimum.

    Only what changes nothing when parameters move by their own size is found.
    """
    here = _Point(theta, *evaluate(theta))
    sizes = _sizes(theta, theta, epsilon)
    look = _Look(evaluate, None, here, sizes, EVERYWHERE, epsilon)
    indices = np.arange(theta.size)
    hessian = look.hessian(here, indices, 1)
    if hessian is None:
        return None
    curvature = np.diagonal(hessian)
    directions = [
        direction
        for direction in look.flat(indices, hessian)
        if look.is_level(direction, curvature)
    ]
    spread = np.linalg.norm(directions, axis=0) if directions else 0 * theta
    combined = [int(i) for i in np.flatnonzero(spread > _PART)]
    units = np.eye(theta.size)
    without = [
        int(i)
        for i in np.flatnonzero(~hessian.any(axis=0))
        if look.is_level(units[i], curvature)
    ]
    if not (without or combined):
        return None
    return Undetermined(without, combined, len(directions), [])


def _sizes(theta: np.ndarray, start: np.ndarray, epsilon: float) -> np.ndarray:
    """The size of each parameter; of what is zero to rounding, the largest."""
    sizes = np.maximum(np.abs(theta), np.abs(start))
    largest = sizes.max(initial=0.0) or 1.0
    return np.where(sizes > epsilon * largest, sizes, largest)


class _Look:
    """Evaluates around an optimum.

    Args:
        evaluate: loss and gradient as a function of a point.
        hessian: the Hessian, likewise, or `None`.
        here: the optimum.
        sizes: the size of each parameter.
        box: the bounds, outside of which nothing is evaluated.
        epsilon: the spacing of numbers near one in the evaluation's dtype.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        hessian: Hessian | None,
        here: _Point,
        sizes: np.ndarray,
        box: Box,
        epsilon: float,
    ):
        self._lower, self._upper = box
        self._evaluate, self._hessian = evaluate, hessian
        self._here = here
        self._sizes, self._epsilon = sizes, epsilon

    def hessian(
        self, at: _Point, indices: np.ndarray, sides: int
    ) -> np.ndarray | None:
        """The Hessian of some parameters; `None` where it is not finite."""
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

    def flat(self, indices: np.ndarray, hessian: np.ndarray) -> np.ndarray:
        """Unit vectors, `(k, size)`, along which there is no curvature."""
        coarse = _ROOM * self._epsilon**_ONE_SIDED
        fine = _ROOM * self._epsilon**_CENTRAL
        flat: list[np.ndarray] = []
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
                # Of float32 differences show too little: the loss itself tells.
                if self._epsilon > NARROW and self._hessian is None:
                    is_flat = value < coarse and self.is_level(
                        direction, curvature
                    )
                else:
                    is_flat = abs(value) < fine
                if is_flat:
                    flat.append(direction)
        return np.array(flat).reshape(len(flat), self._sizes.size)

    def is_level(self, direction: np.ndarray, curvature: np.ndarray) -> bool:
        """Whether parameters can move by their own size together at no cost.

        Args:
            direction: a unit vector.
            curvature: the diagonal of the Hessian.
        """
        moving = np.abs(direction) > _PART
        length = np.min(self._sizes[moving] / np.abs(direction[moving]))
        room = np.minimum(
            self._here.theta - self._lower, self._upper - self._here.theta
        )
        length = min(length, np.min(room[moving] / np.abs(direction[moving])))
        step = length * direction
        # The direction itself is known to the rounding of differences.
        bend = np.abs(curvature) @ step**2 / 2
        slope = np.abs(self._here.grad) @ np.abs(step)
        cost = self._room + self._epsilon**_CENTRAL * bend
        cost += self._epsilon**_ONE_SIDED * slope
        return all(abs(self._rise(s * step)) <= cost for s in (1.0, -1.0))

    def endless(
        self,
        start: tuple[np.ndarray, float],
        indices: np.ndarray,
        curvature: np.ndarray,
    ) -> list[int]:
        """The parameters that could go as far again, and nothing is lost."""
        move = self._here.theta - start[0]
        cost = np.abs(curvature) * move**2 / 2
        gained = start[1] - self._here.loss
        cheap = [i for i in indices if move[i] and cost[i] <= _CHEAP * gained]
        if not cheap:
            return []
        # Their curvature was there at the start, and has vanished.
        begun = _Point(start[0], *self._evaluate(start[0]))
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

    def _inside(self, theta: np.ndarray) -> np.ndarray:
        return np.clip(theta, self._lower, self._upper)

    @property
    def _room(self) -> float:
        return _HIDDEN * self._epsilon * abs(self._here.loss)

    def _rise(self, step: np.ndarray) -> float:
        """By how much a step raises the loss; infinity if a bound stops it."""
        theta = self._here.theta + step
        if not np.array_equal(theta, self._inside(theta)):
            return np.inf
        return self._evaluate(theta)[0] - self._here.loss


def _spectrum(hessian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues where every curvature is one, and unit vectors, in rows.

    Of what has no effect there is neither.
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
