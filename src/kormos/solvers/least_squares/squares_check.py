"""A check that a loss is a sum of squared errors, whatever its name is."""

from typing import NoReturn

import numpy as np

from kormos.solvers.least_squares.penalty import PenalizedProblem
from kormos.solvers.protocols import Squares
from kormos.types import Vector

# The loss and the sum of squares may differ by this part. Our choice: float32
# rounds by far less, and other losses differ by more.
_SAME = 1e-3
# The loss is compared at the start, and at a point whose parameters have this
# size: a Huber loss is a sum of squares as long as errors are small.
_ELSEWHERE = 10.0


def checked_squares(problem: PenalizedProblem, theta: Vector) -> Squares | None:
    """What is known of a sum of squares at a point, or `None` if not finite.

    Args:
        problem: the problem.
        theta: the start.

    Raises:
        ValueError: if the loss is not a sum of squared errors.
    """
    if problem.matrix.inner.has_penalty:
        _refuse("a loss with a regularizer, or another term besides the errors")
    rng = np.random.default_rng(0)
    size = _ELSEWHERE * (1.0 + np.abs(theta))
    elsewhere = theta + size * rng.standard_normal(theta.size)
    here = problem.matrix.squares(theta)
    for squares in (here, problem.matrix.squares(elsewhere)):
        if squares is None:
            _refuse("a loss that is not a sum over the outputs")
        if not np.isfinite([squares.loss, squares.total]).all():
            continue
        if abs(squares.total - squares.loss) > _SAME * abs(squares.loss):
            _refuse(
                f"a loss of {squares.loss:.6g}, whose derivatives are those of "
                f"a sum of squares of {squares.total:.6g}"
            )
    if here is None or not np.isfinite([here.loss, here.total]).all():
        return None
    return here


def _refuse(received: str) -> NoReturn:
    raise ValueError(
        "`regularization='evidence'` needs a loss that is a sum or a mean of "
        "squared errors, such as 'mse', without regularizers: the penalty "
        "that it chooses takes their place. Fit other losses without it. "
        f"Received: {received}"
    )
