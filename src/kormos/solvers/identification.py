"""Which parameters a loss does not determine at its optimum.

There are three kinds: parameters without effect; combinations of parameters
along which the Hessian is zero, for example of regressors that depend on each
other; and parameters that the loss drives to infinity, such as a logit of a
group that has no events.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kormos.processes import now
from kormos.solvers.surroundings import PART
from kormos.solvers.surroundings import Box
from kormos.solvers.surroundings import Evaluate
from kormos.solvers.surroundings import Hessian
from kormos.solvers.surroundings import Point
from kormos.solvers.surroundings import Surroundings
from kormos.types import Vector

# Models with more parameters are not examined. Our choice: each parameter takes
# a few evaluations, and a message about more is hard to read.
MOST = 20
# The examination may take this many seconds, or this part of the run's time.
_SECONDS, _SHARE = 1.0, 0.1
# The examination takes about this many evaluations for each parameter, or for a
# Hessian.
_EVALUATIONS = 3
# A message names at most this many parameters.
_MOST_NAMES = 8

EVERYWHERE: Box = (-np.inf, np.inf)


class Undetermined(NamedTuple):
    """What a loss does not determine.

    Attributes:
        without_effect: indices of parameters that change nothing.
        combined: indices of parameters that can move together without changing
            the loss.
        directions: how many such combinations there are.
        endless: indices of parameters for which the loss does not rise,
            however far they go.
    """

    without_effect: list[int]
    combined: list[int]
    directions: int
    endless: list[int]

    def sentences(self, name_of: Callable[[int], str]) -> str:
        """The findings, in sentences.

        Args:
            name_of: function from an index to the name of a parameter.
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
                "however large they become, as in a group without events, or "
                "if groups are perfectly separated."
            )
        return text


def _listed(indices: list[int], name_of: Callable[[int], str]) -> str:
    names = [name_of(i) for i in indices[:_MOST_NAMES]]
    more = len(indices) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _seconds(call: Callable[[], object], enough: float) -> float:
    """The shortest time of up to three calls.

    A call may compile, or wait for another process. A call that takes much
    longer than `enough` seconds is not repeated.
    """
    shortest = np.inf
    for _ in range(3):
        began = now()
        call()
        shortest = min(shortest, now() - began)
        if shortest <= enough or shortest > 10 * enough:
            break
    return shortest


def undetermined(
    evaluate: Evaluate,
    hessian: Hessian | None,
    start: tuple[Vector, float],
    here: Point,
    box: Box,
    evaluation_eps: float,
    seconds: float,
) -> Undetermined | None:
    """Looks around an optimum, with a few evaluations for each parameter.

    Args:
        evaluate: loss and gradient as a function of a float64 array `(size,)`.
        hessian: the Hessian, `(size, size)`, as such a function; `None` to
            take differences of the gradient instead.
        start: where the run began, and the loss there.
        here: the optimum.
        box: lower and upper bounds. Parameters at one of them are left out.
        evaluation_eps: the machine epsilon of the evaluation's dtype.
        seconds: the duration of the run.

    Returns:
        What was found; or `None` if nothing was found, or if looking would take
        too long.
    """
    theta = here.theta
    indices = np.flatnonzero((box[0] < theta) & (theta < box[1]))
    if not 0 < indices.size <= MOST:
        return None
    is_known = np.isfinite(here.loss) and np.isfinite(here.grad).all()
    count = _EVALUATIONS * (indices.size if hessian is None else 1)
    enough = max(_SECONDS, _SHARE * seconds) / count
    if not is_known or _seconds(lambda: evaluate(theta), enough) > enough:
        return None
    sizes = _sizes(theta, start[0], evaluation_eps)
    look = Surroundings(evaluate, hessian, here, sizes, box, evaluation_eps)
    matrix = look.hessian(here, indices, 1)
    if matrix is None:
        return None
    curvature = np.zeros_like(theta)
    curvature[indices] = np.diagonal(matrix)
    endless = look.endless(start, indices, curvature)
    rest = ~np.isin(indices, endless)
    directions = look.flat(indices[rest], matrix[np.ix_(rest, rest)])
    spread = np.linalg.norm(directions, axis=0)
    combined = [int(i) for i in np.flatnonzero(spread > PART)]
    without = indices[rest & ~matrix.any(axis=0)]
    if not (without.size or combined or endless):
        return None
    return Undetermined(
        [int(i) for i in without], combined, len(directions), endless
    )


def undetermined_at(
    evaluate: Evaluate, theta: Vector, evaluation_eps: float
) -> Undetermined | None:
    """Like `undetermined`, at a point that is not an optimum.

    It only finds directions in which moves by the parameters' own size change
    nothing.

    Args:
        evaluate: loss and gradient as a function of a float64 array `(size,)`.
        theta: the point.
        evaluation_eps: the machine epsilon of the evaluation's dtype.
    """
    here = Point(theta, *evaluate(theta))
    sizes = _sizes(theta, theta, evaluation_eps)
    look = Surroundings(evaluate, None, here, sizes, EVERYWHERE, evaluation_eps)
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
    combined = [int(i) for i in np.flatnonzero(spread > PART)]
    units = np.eye(theta.size)
    without = [
        int(i)
        for i in np.flatnonzero(~hessian.any(axis=0))
        if look.is_level(units[i], curvature)
    ]
    if not (without or combined):
        return None
    return Undetermined(without, combined, len(directions), [])


def _sizes(theta: Vector, start: Vector, evaluation_eps: float) -> Vector:
    """The size of each parameter; the largest for those that are about zero."""
    sizes = np.maximum(np.abs(theta), np.abs(start))
    largest = sizes.max(initial=0.0) or 1.0
    return np.where(sizes > evaluation_eps * largest, sizes, largest)
