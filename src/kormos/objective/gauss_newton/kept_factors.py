"""The derivatives of the latest points, kept for further use there."""

from typing import NamedTuple

import numpy as np

from kormos.objective.arguments import ProgramArguments
from kormos.objective.gauss_newton.factors import Factor
from kormos.types import Vector

# Two points are of use: the accepted one, whose second derivatives may be
# needed again, and the one that is tried.
_MOST_POINTS = 2


class _Point(NamedTuple):
    """A point, and what was computed there.

    Attributes:
        arguments: the data, and the values of other variables.
        theta: the point, `(size,)`.
        factors: the factor of each chunk.
    """

    arguments: ProgramArguments
    theta: Vector
    factors: list[Factor]


class KeptFactors:
    """The factors of the points that were used last."""

    def __init__(self) -> None:
        self._points: list[_Point] = []

    def add(
        self, arguments: ProgramArguments, theta: Vector, factors: list[Factor]
    ) -> None:
        """Keeps the factors of a point, and forgets an old one.

        Args:
            arguments: the arguments with which they were computed.
            theta: the point; it is copied.
            factors: the factors.
        """
        point = _Point(arguments, np.array(theta), factors)
        self._points = [*self._points[1 - _MOST_POINTS :], point]

    def at(
        self, arguments: ProgramArguments, theta: Vector
    ) -> list[Factor] | None:
        """The factors of a point, or `None` if they are not kept.

        Args:
            arguments: see `add`.
            theta: the point.
        """
        for i, point in enumerate(self._points):
            is_same = point.arguments is arguments
            if is_same and np.array_equal(point.theta, theta):
                self._points.append(self._points.pop(i))
                return point.factors
        return None

    def clear(self) -> None:
        """Forgets all points, so that their memory is free."""
        self._points = []
