"""Checks of an objective before it is minimized."""

from collections.abc import Callable

import keras
import numpy as np

from kormos import backend
from kormos.arithmetic.differences import Change
from kormos.arithmetic.differences import Tolerance
from kormos.arithmetic.differences import contradiction
from kormos.objective.base import FlatObjective
from kormos.solvers.verification import differ
from kormos.solvers.verification import refuse_silent
from kormos.solvers.verification import with_values_of
from kormos.types import Vector
from kormos.warn import warn

# Layers with wrong second derivatives on TensorFlow. `tf.nn.moments` stops the
# gradient of its mean (tensorflow#19609). The first derivatives are still
# right.
_LAYERS_WITH_MOMENTS = (
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.BatchNormalization,
)

# The shortest step of differences, as a part of the first. Our choice:
# differences over larger steps may not converge for a loss that bends within a
# short distance.
_SHORTEST = 2.0**-24
# A product is right if it differs from differences of gradients by no more than
# this part, or by this many roundings of each gradient. Both are our choices,
# and so is the test of when the differences have converged. With a smaller
# tolerance, rounding and third derivatives would be taken for errors of the
# product.
_TOLERANCE = Tolerance(part=0.01, of_error=0.1, of_found=0.1)
_ROUNDINGS = 100


def unused_variables(
    objective: FlatObjective,
    theta: Vector,
    grad: Vector | None,
    project: Callable[[Vector], Vector],
) -> list[str]:
    """The paths of the variables that do not change the loss.

    Args:
        objective: a `FlatObjective`.
        theta: the start.
        grad: the gradient there, or `None`.
        project: function that moves a point into the bounds.

    Raises:
        ValueError: if some change it although their gradient is zero.
    """
    unused = {id(v) for v in objective.unused_variables}
    if grad is not None:
        suspects = unused | _zero_parts(objective, grad)
        if suspects:
            unused = _without_gradient(
                objective, theta, suspects, unused, project
            )
    return [v.path for v in objective.variables if id(v) in unused]


def check_rows(objective: FlatObjective, theta: Vector) -> None:
    """Refuses data that are other rows whenever they are read.

    Args:
        objective: a `FlatObjective`.
        theta: the start.

    Raises:
        ValueError: if the loss differs when streamed data are read again.
    """
    if not objective.is_streamed:
        return
    if not objective.processes.agree(not objective.is_read_alike):
        return
    first, second = (objective.value(theta) for _ in range(2))
    if differ(objective, first, second):
        raise ValueError(
            "A dataset that is streamed must yield the same rows every time "
            "it is read, in any order: the loss of full-batch methods is one "
            "function. Augment the rows beforehand, or draw the same numbers "
            "for each row. Received: losses of "
            f"{first:.6g} and {second:.6g} at the same weights"
        )


def _without_gradient(
    objective: FlatObjective,
    theta: Vector,
    suspects: set[int],
    unused: set[int],
    project: Callable[[Vector], Vector],
) -> set[int]:
    """The suspects whose gradient is zero at another point, too.

    The gradient may be zero at the start by chance.

    Args:
        objective: see `unused_variables`.
        theta: see `unused_variables`.
        suspects: ids of the variables whose gradient is zero at the start.
        unused: ids of those that the backend does not differentiate.
        project: see `unused_variables`.

    Raises:
        ValueError: if some of them change the loss.
    """
    rng = np.random.default_rng(0)
    # About a tenth of the parameters' sizes away.
    distance = 0.1 * (1 + np.abs(theta))
    elsewhere = project(theta + distance * rng.standard_normal(theta.shape))
    try:
        loss, grad = objective.value_and_grad(elsewhere)
        silent = unused | suspects & _zero_parts(objective, grad)
        if not silent:
            return silent
        variables = [v for v in objective.variables if id(v) in silent]
        back = with_values_of(objective, elsewhere, theta, variables)
        other, _ = objective.value_and_grad(back)
    except Exception:
        return unused  # These points tell nothing.
    if other != loss:
        refuse_silent(objective.in_memory(), elsewhere, variables)
    return silent


def warn_of_unused_variables(
    objective: FlatObjective,
    theta: Vector,
    grad: Vector | None,
    project: Callable[[Vector], Vector],
) -> None:
    """Warns once, by name, of variables that do not change the loss.

    Args:
        objective: see `unused_variables`.
        theta: see `unused_variables`.
        grad: see `unused_variables`.
        project: see `unused_variables`.
    """
    names = unused_variables(objective, theta, grad, project)
    if names:
        warn(
            "The loss does not depend on some of the variables, which keep "
            f"their values: {', '.join(names)}.",
        )


def hessian_product_error(
    objective: FlatObjective, theta: Vector, project: Callable[[Vector], Vector]
) -> float:
    """The error of a Hessian product, from finite differences of gradients.

    Args:
        objective: a `FlatObjective`.
        theta: the point.
        project: function that moves a point into the bounds.

    Returns:
        The norm of the error over that of the product, or zero where rounding
        explains the error.
    """
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(theta.shape)
    direction /= np.linalg.norm(direction)

    def change(step: float) -> Change | None:
        above = project(theta + step * direction)
        below = project(theta - step * direction)
        length = float(np.linalg.norm(above - below))
        if length == 0:
            return None  # Bounds fix every parameter.
        _, ahead = objective.value_and_grad(above)
        _, behind = objective.value_and_grad(below)
        directional = (above - below) / length
        product = objective.hvp((above + below) / 2, directional)
        slopes = [float(np.linalg.norm(g)) for g in (ahead, behind)]
        noise = 2 * _ROUNDINGS * objective.evaluation_eps * max(slopes)
        return Change(ahead - behind, length * product, noise, length)

    step = objective.evaluation_eps ** (1 / 3) * (
        1 + float(np.linalg.norm(theta))
    )
    wrong = contradiction(change, step, _SHORTEST * step, _TOLERANCE)
    return wrong.error / max(wrong.size, 1e-300) if wrong else 0.0


def check_hessian_products(
    objective: FlatObjective, theta: Vector, project: Callable[[Vector], Vector]
) -> None:
    """Refuses Hessian products that contradict differences of gradients.

    It checks only on TensorFlow: no operation of JAX or PyTorch is known to
    have wrong second derivatives.

    Args:
        objective: a `FlatObjective`.
        theta: the start.
        project: function that moves a point into the bounds.

    Raises:
        ValueError: if they differ by more than rounding explains.
    """
    compiled = objective.program.value_and_grad
    if not backend.has_own_gradients(compiled):
        return
    try:
        # Its operations are known after its first call. They are those of this
        # function, without metrics.
        FlatObjective.value_and_grad(objective, theta)
        if not backend.has_own_gradients(compiled):
            return
        error = hessian_product_error(objective, theta, project)
    except Exception as failure:
        if not backend.is_numerical(failure):
            raise
        return  # There are no numbers to compare.
    if not error:
        return
    model = getattr(objective, "model", None)
    names = [] if model is None else layers_with_moments(model)
    raise ValueError(
        "TensorFlow computes wrong second derivatives here, as it does for "
        "layers built on `ops.moments`. Use a method without Hessian products "
        "such as 'l-bfgs-b', or the JAX or PyTorch backend. Received: a "
        f"product that is off by {error:.0%}"
        + (f", layers {', '.join(names)}" if names else "")
    )


def _zero_parts(objective: FlatObjective, grad: Vector) -> set[int]:
    """The ids of the variables with a gradient of zero."""
    parts = objective.program.packing.split_array(grad)
    return {
        id(v)
        for v, part in zip(objective.variables, parts, strict=True)
        if not part.any()
    }


def layers_with_moments(model: keras.Model) -> list[str]:
    """The names of the layers with wrong second derivatives on TensorFlow."""
    names = []
    for layer in model.layers:
        if isinstance(layer, _LAYERS_WITH_MOMENTS):
            names.append(layer.name)
        elif isinstance(layer, keras.Model):
            names.extend(layers_with_moments(layer))
    return names
