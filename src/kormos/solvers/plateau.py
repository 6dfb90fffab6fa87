"""Whether an end is a plateau with saturated units, and not an optimum."""

from collections.abc import Callable

import numpy as np

from kormos.solvers.surroundings import Evaluate
from kormos.solvers.surroundings import Point
from kormos.types import Vector

# The gradient is also evaluated on both sides, at a distance of this part of
# the parameters. Our choice: an optimum whose parameters matter has a gradient
# on both.
_AWAY = 0.01
# A lower loss is looked for at the parameters times these factors. Our choice:
# saturated units have parameters that are too large.
_PARTS = 0.5, 0.1, 0.0
# A loss counts as lower if it is lower by this part. Our choice: far more than
# rounding.
_LOWER = 0.01


def loss_below(
    evaluate: Evaluate,
    here: Point,
    evaluation_eps: float,
    project: Callable[[Vector], Vector],
) -> float | None:
    """A lower loss than that of a plateau, at smaller parameters.

    If units are saturated, a gradient of zero says nothing, because it is zero
    around the point too.

    Args:
        evaluate: loss and gradient as a function of a float64 array `(size,)`.
        here: the end of a run.
        evaluation_eps: the machine epsilon of the evaluation's dtype.
        project: function that moves a point into the bounds.

    Returns:
        The loss, or `None` if the point is not on a plateau, or no lower loss
        was found.
    """
    theta, loss, grad = here
    rounding = evaluation_eps * abs(loss)

    def at(part: float) -> tuple[float, Vector]:
        return evaluate(project(part * theta))

    def is_level(grad: Vector) -> bool:
        """Whether parameters may move by their own size, to first order."""
        return bool(np.abs(grad) @ np.abs(theta) <= rounding)

    def is_flat(part: float) -> bool:
        beside, grad = at(part)
        return abs(beside - loss) <= rounding and is_level(grad)

    if not (is_level(grad) and (is_flat(1 - _AWAY) or is_flat(1 + _AWAY))):
        return None
    found = min(float(at(part)[0]) for part in _PARTS)
    return found if found < loss - _LOWER * abs(loss) else None
