"""A check, at the start, that Gauss-Newton methods suit a loss."""

import numpy as np

# A step of fewer spacings of the parameters' numbers is lost in rounding.
_SHORTEST = 32.0


def check_derivatives(problem, models, here, theta, loss):
    """Refuses outputs that mix rows, and a loss that is not of outputs.

    Args:
        problem: the `Problem`.
        models: the `LocalModels`.
        here: the `Linearized` at the start.
        theta: the start.
        loss: the loss there.

    Raises:
        ValueError: if the loss, row by row, is another one, or if its
            differences contradict the gradient.
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
    # The scaled step moves a parameter far that has next to no effect.
    size = float(np.linalg.norm(theta)) or 1.0
    reach = min(reach, size * length / float(np.linalg.norm(slope)))
    part, before = problem.epsilon ** (1 / 3), None
    while part > _SHORTEST * problem.epsilon:
        step = slope * (part * reach / length)
        ahead, behind, moved = _along(problem, theta, step)
        expected, found = float(grad @ moved), ahead - behind
        # What a difference leaves out is less than its curvature, and the
        # rounding of the losses and of the points.
        unknown = abs(ahead + behind - 2 * loss)
        unknown += 1e3 * problem.epsilon * max(abs(ahead), abs(behind))
        unknown += problem.epsilon * float(np.abs(theta) @ np.abs(grad))
        error = abs(found - expected)
        # Where nothing is finite, nothing can be compared.
        if not error > 0.3 * abs(expected) + unknown:
            return
        # A long step says nothing. A mistake stays the same as steps shrink.
        if before is not None and abs(4 * found - before) <= 0.1 * abs(before):
            _refuse(
                f"a loss that changes by {found:.6g} where its derivatives "
                f"say {expected:.6g}"
            )
        before, part = found, part / 4


def _along(problem, theta, step):
    """Losses ahead and behind, and what lies between the two points."""
    points = [problem.project(theta + s) for s in (step, -step)]
    ahead, behind = map(problem.value, points)
    return ahead, behind, points[0] - points[1]


def _check_rows(problem, models, here, theta, loss):
    """Refuses a loss that differs when it is evaluated row by row.

    Where terms cancel each other, rounding alone makes the two differ. At
    another point, where the loss is larger, it does not.
    """
    allowed = 100 * problem.epsilon**0.5
    if abs(here.row_loss - loss) <= allowed * abs(loss):
        return
    rng = np.random.default_rng(0)
    shift = 0.1 * (0.1 + np.abs(theta)) * rng.standard_normal(theta.size)
    there = problem.project(theta + shift)
    elsewhere, apart = problem.value(there), models.row_loss(there)
    if not abs(apart - elsewhere) > allowed * abs(elsewhere):
        return
    _refuse(f"a loss of {loss:.6g}, but of {here.row_loss:.6g} row by row")


def _refuse(received):
    raise ValueError(
        "Gauss-Newton methods need a loss that depends on the variables "
        "through the outputs of each row of data alone: batch normalization "
        "in training mode mixes rows, random numbers (dropout, noise) are not "
        "those of a row, and a `compute_loss` that reads variables goes past "
        "the outputs. Use 'lbfgs' or another method. "
        f"Received: {received}"
    )
