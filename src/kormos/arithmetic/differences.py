"""Compares a derivative with finite differences of its function.

A difference over one step proves little. It is inexact if the step is long and
the function has curvature, or if the step is short and the function is rounded.
Only an error of the derivative remains as steps shrink.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kormos.types import Vector

# Each step is this part of the one before. Our choice: the error of a central
# difference of a smooth function then falls to a sixteenth. With a larger part,
# it falls too little to distinguish it from an error of the derivative.
_SHORTER = 1 / 4


class Change(NamedTuple):
    """The change of a function between two points.

    Attributes:
        found: the change, a number or a vector.
        expected: the change according to the derivative, of the same shape.
        unknown: the error that rounding of the values, or curvature of the
            function between the points, may make.
        length: the distance of the points, in a unit that all changes of one
            comparison share.
    """

    found: Vector | float
    expected: Vector | float
    unknown: float
    length: float

    @property
    def error(self) -> float:
        """The size of the difference between the two changes."""
        return _size(self.found - self.expected)

    @property
    def size(self) -> float:
        """The size of the change that is expected."""
        return _size(self.expected)


class Tolerance(NamedTuple):
    """When a derivative counts as wrong.

    Attributes:
        part: an error of at most this part of the expected change is allowed.
        of_error: differences have converged if a shorter step changes them by
            no more than this part of the error, so that the length of the step
            does not explain the error; infinity to skip this test.
        of_found: they must also change by no more than this part of themselves.
            That excludes small differences that still grow, as near a spike,
            and those that are only rounding; infinity to skip this test.
    """

    part: float
    of_error: float = np.inf
    of_found: float = np.inf


def contradiction(
    change: Callable[[float], Change | None],
    step: float,
    shortest: float,
    tolerance: Tolerance,
) -> Change | None:
    """The change that contradicts a derivative, or `None` if there is none.

    Steps become shorter until the change agrees with the derivative, or has
    converged without agreeing. Changes that cannot be compared, because they
    are not finite or do not converge, are no contradiction.

    Args:
        change: function from the length of a step to the `Change` over it, or
            to `None` if no step is possible, for example between equal bounds.
        step: the length of the first step.
        shortest: steps that are not longer than this are not taken.
        tolerance: when the derivative counts as wrong.
    """
    before: Vector | float | None = None
    while step > shortest:
        now = change(step)
        if now is None:
            return None
        error, allowed = now.error, tolerance.part * now.size + now.unknown
        if not (np.isfinite(error) and error > allowed):
            return None
        if before is not None and _has_settled(now, before, tolerance):
            return now
        before, step = now.found / now.length, step * _SHORTER
    return None


def _has_settled(
    now: Change, before: Vector | float, tolerance: Tolerance
) -> bool:
    """Whether a longer step had about the same change per length."""
    changed = _size(now.found / now.length - before) * now.length
    # Infinity times zero would be NaN.
    return all(
        part == np.inf or changed <= part * whole
        for part, whole in (
            (tolerance.of_error, now.error),
            (tolerance.of_found, _size(now.found)),
        )
    )


def _size(change: Vector | float) -> float:
    return float(np.linalg.norm(change))
