"""A check, at the start, that Gauss-Newton methods suit a loss."""

from typing import NoReturn

import numpy as np

from kormos.arithmetic.differences import Change
from kormos.arithmetic.differences import Tolerance
from kormos.arithmetic.differences import contradiction
from kormos.solvers.least_squares.local_models import Linearized
from kormos.solvers.least_squares.local_models import LocalModels
from kormos.solvers.problem import Problem
from kormos.types import Vector

# These numbers are our choices. They lean towards not refusing, because a wrong
# refusal stops a user who made no mistake.

# A step of fewer spacings of the parameters' numbers is lost in rounding.
_SHORTEST = 32.0
# A gradient is in doubt if differences miss it by the first part. It is wrong
# if the differences stay the same, within the second part, as steps shrink.
_TOLERANCE = Tolerance(part=0.3, of_found=0.1)
# Losses are rounded by up to this many spacings of their numbers: sums of many
# rows may be.
_ROUNDINGS = 1e3
# The loss of all rows may differ from the sum row by row by this many times the
# square root of the spacing.
_ROW_ROUNDINGS = 100
# Rows are also compared at a point that is this part of the parameters' sizes
# away, with the second size for parameters that are zero.
_ELSEWHERE, _LEAST_SIZE = 0.1, 0.1


def check_derivatives(
    problem: Problem,
    models: LocalModels,
    here: Linearized,
    theta: Vector,
    loss: float,
) -> None:
    """Refuses outputs that mix rows, and a loss that is not of outputs.

    Args:
        problem: the problem.
        models: makes models of the loss.
        here: what is known at the start.
        theta: the start.
        loss: the loss there.

    Raises:
        ValueError: if the loss differs when it is evaluated row by row, or if
            its differences contradict the gradient.
    """
    _check_rows(problem, models, here, theta, loss)
    # Along the scaled gradient, so that no parameter moves far.
    model, grad = here.model, here.grad
    finite = np.isfinite(model.scale)
    slope = np.where(finite, -grad / model.scale**2, 0.0)
    length = model.scaled(slope)
    if length == 0:
        return
    reach = model.scaled(theta) or 1.0
    # A scaled step moves a parameter far if that has almost no effect.
    size = float(np.linalg.norm(theta)) or 1.0
    reach = min(reach, size * length / float(np.linalg.norm(slope)))

    def change(part: float) -> Change:
        step = slope * (part * reach / length)
        ahead, behind, moved = _along(problem, theta, step)
        # A difference is wrong by less than the curvature that it shows, and
        # by the rounding of the losses and of the points.
        unknown = abs(ahead + behind - 2 * loss)
        unknown += (
            _ROUNDINGS * problem.evaluation_eps * max(abs(ahead), abs(behind))
        )
        unknown += problem.evaluation_eps * float(np.abs(theta) @ np.abs(grad))
        return Change(ahead - behind, float(grad @ moved), unknown, part)

    first, shortest = (
        problem.evaluation_eps ** (1 / 3),
        _SHORTEST * problem.evaluation_eps,
    )
    wrong = contradiction(change, first, shortest, _TOLERANCE)
    if wrong:
        raise ValueError(
            "Gauss-Newton methods need the derivatives of the outputs: a "
            "gradient that is that of another function (a straight-through "
            "estimator by `stop_gradient`, a `custom_gradient`), batch "
            "normalization in training mode, and a `compute_loss` that reads "
            "variables lead to other steps. Use 'lbfgs', which takes no step "
            "that raises the loss, or one of Keras' own optimizers. "
            f"Received: a loss that changes by {wrong.found:.6g} where its "
            f"derivatives say {wrong.expected:.6g}"
        )


def _along(
    problem: Problem, theta: Vector, step: Vector
) -> tuple[float, float, Vector]:
    """The losses a step ahead and behind, and the difference of both points."""
    points = [problem.project(theta + s) for s in (step, -step)]
    ahead, behind = map(problem.value, points)
    return ahead, behind, points[0] - points[1]


def _check_rows(
    problem: Problem,
    models: LocalModels,
    here: Linearized,
    theta: Vector,
    loss: float,
) -> None:
    """Refuses a loss that differs when it is evaluated row by row.

    Where terms cancel each other, rounding can make the two differ. Then they
    agree at another point, where the loss is larger.
    """
    allowed = _ROW_ROUNDINGS * problem.evaluation_eps**0.5
    if abs(here.row_loss - loss) <= allowed * abs(loss):
        return
    rng = np.random.default_rng(0)
    shift = _LEAST_SIZE + np.abs(theta)
    shift = _ELSEWHERE * shift * rng.standard_normal(theta.size)
    there = problem.project(theta + shift)
    elsewhere, apart = problem.value(there), models.row_loss(there)
    if not abs(apart - elsewhere) > allowed * abs(elsewhere):
        return
    _refuse(f"a loss of {loss:.6g}, but of {here.row_loss:.6g} row by row")


def _refuse(received: str) -> NoReturn:
    raise ValueError(
        "Gauss-Newton methods need a loss that depends on the variables only "
        "through the outputs of each row of data: batch normalization in "
        "training mode mixes rows, random numbers (dropout, noise) are not "
        "those of a row, and a `compute_loss` that reads variables does not "
        "depend on the outputs only. Use 'lbfgs' or another method. "
        f"Received: {received}"
    )
