"""A check, at the start, that Gauss-Newton methods suit a loss."""

import numpy as np


def check_derivatives(problem, here, theta, loss):
    """Refuses outputs that mix rows, and a loss that is not of outputs.

    Args:
        problem: the `Problem`.
        here: the `Linearized` at the start.
        theta: the start.
        loss: the loss there.

    Raises:
        ValueError: if the loss, row by row, is another one, or if its
            differences contradict the gradient.
    """
    error = abs(here.row_loss - loss)
    if error > 100 * problem.epsilon**0.5 * abs(loss):
        _refuse(f"a loss of {loss:.6g}, but of {here.row_loss:.6g} row by row")
    # Along the scaled gradient, so that no parameter moves far.
    model, grad = here.model, here.grad
    finite = np.isfinite(model.scale)
    slope = np.where(finite, -grad / model.scale**2, 0.0)
    length = model.scaled(slope)
    if length == 0:
        return
    reach = model.scaled(theta) or 1.0
    step = slope * (problem.epsilon ** (1 / 3) * reach / length)
    points = [problem.project(theta + s) for s in (step, -step)]
    ahead, behind = map(problem.value, points)
    expected = grad @ (points[0] - points[1])
    # What a difference leaves out is less than its curvature, and rounding.
    unknown = abs(ahead + behind - 2 * loss)
    unknown += 1e3 * problem.epsilon * max(abs(ahead), abs(behind))
    if abs(ahead - behind - expected) > 0.3 * abs(expected) + unknown:
        _refuse(
            f"a loss that changes by {ahead - behind:.6g} where its "
            f"derivatives say {expected:.6g}"
        )


def _refuse(received):
    raise ValueError(
        "Gauss-Newton methods need a loss that depends on the variables "
        "through the outputs of each row of data alone: batch normalization "
        "in training mode mixes rows, and a `compute_loss` that reads "
        "variables goes past the outputs. Use 'lbfgs' or another method. "
        f"Received: {received}"
    )
