"""An evaluation for SciPy, and the exception that ends its run."""

from typing import NamedTuple

import numpy as np

from kormos.solvers import statuses
from kormos.types import Array
from kormos.types import Vector


class Evaluation(NamedTuple):
    """A point, its loss and its gradient (or `None`)."""

    theta: Vector
    loss: float
    grad: Vector | None

    def is_at(self, theta: Vector) -> bool:
        """Whether it is one at this point."""
        # Most points differ in every entry, so one entry is usually enough.
        mine = self.theta
        return mine[-1] == theta[-1] and np.array_equal(mine, theta)


class Halt(Exception):
    """Leaves SciPy's loop. A `StopIteration` would not leave TNC's.

    Args:
        status: why the run ends, one of the constants of `statuses`; `None` if
            it was stopped from outside.
        detail: the reason in words.
    """

    def __init__(self, status: str | None = None, detail: str = ""):
        super().__init__(status, detail)
        self.status = status
        self.detail = detail


def checked(array: Array, name: str) -> Array:
    """Returns the array; ends the run if it is not finite.

    Args:
        array: the array.
        name: its name in the message.
    """
    if not np.isfinite(array).all():
        raise Halt(statuses.NON_FINITE, f"{name} is NaN or infinite")
    return array
