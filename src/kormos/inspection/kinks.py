"""Kinks of a loss in its parameters, such as those of L1 regularizers."""

import numpy as np

from kormos.inspection.report import Finding
from kormos.objective import Objective
from kormos.objective.l1 import strength
from kormos.types import Vector

# The smallest size of a parameter, for parameters that are zero; and the length
# of a step away from kinks, over the sizes of the parameters. Both are our
# choices. After a shorter step, the differences there may cross the kink, and
# after a longer one, another point is tested.
LEAST_SIZE = 0.1
_AWAY = 1e-2


def sizes(theta: Vector) -> Vector:
    """The sizes of parameters, none of which is zero."""
    return LEAST_SIZE + np.abs(theta)


def away_from_kinks(theta: Vector, rng: np.random.Generator) -> Vector:
    """A point near `theta`, which itself may be exactly on a kink.

    An example is a start at zero, where `relu` has its kink.
    """
    return theta + _AWAY * sizes(theta) * rng.standard_normal(theta.shape)


def kinks(objective: Objective) -> Finding:
    """Whether a regularizer gives the loss kinks, at which methods stop."""
    names = tuple(v.path for v in objective.variables if strength(v) > 0)
    if not names:
        return Finding("kinks", True, "No variable has an L1 regularizer.")
    return Finding(
        "kinks",
        False,
        f"The L1 regularizer of {', '.join(names)} has a kink where an entry "
        "is zero. 'lbfgs' and kormos' other quasi-Newton methods write these "
        "weights as differences of two non-negative parts, and reach zeros "
        "exactly; other methods stop there, above the minimum.",
        names,
        is_fatal=False,
    )
