"""Checks of an objective before it is minimized."""

import keras
import numpy as np

from kormos import backend
from kormos.solvers.verification import refuse_silent
from kormos.warn import warn

# Layers whose second derivatives TensorFlow gets wrong: `tf.nn.moments` stops
# the gradient of its mean (tensorflow#19609), which changes no first
# derivative but every second one.
_MOMENTS = (
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.BatchNormalization,
)

# The most steps of differences. Each is a quarter of the one before.
_STEPS = 12


def unused_variables(objective, theta, grad, project):
    """The paths of the variables that do not change the loss.

    Args:
        objective: a `FlatObjective`.
        theta: the start.
        grad: the gradient there, or `None`.
        project: function that moves a point into the bounds.

    Raises:
        ValueError: if some change it without having a gradient.
    """
    unused = {id(v) for v in objective.unused_variables}
    read = [v for v in objective.variables if id(v) not in unused]
    if grad is not None:
        suspects = _zero_parts(objective, grad)
        if suspects - unused:
            # A gradient may be zero by chance of the start: look elsewhere.
            rng = np.random.default_rng(0)
            scale = 0.1 * (1 + np.abs(theta))
            elsewhere = theta + scale * rng.standard_normal(theta.shape)
            elsewhere = project(elsewhere)
            try:
                _, grad = objective.value_and_grad(elsewhere)
            except Exception:
                grad = np.ones_like(theta)  # Nothing can be known there.
            unused |= suspects & _zero_parts(objective, grad)
            silent = [v for v in read if id(v) in unused]
            if silent:
                refuse_silent(objective, elsewhere, silent)
    return [v.path for v in objective.variables if id(v) in unused]


def warn_of_unused_variables(objective, theta, grad, project):
    """Warns once, by name, of variables that do not change the loss."""
    names = unused_variables(objective, theta, grad, project)
    if names:
        warn(
            "The loss does not depend on some of the variables, which keep "
            f"their values: {', '.join(names)}.",
        )


def hessian_product_error(objective, theta, project):
    """By how much a Hessian product contradicts differences of gradients.

    Differences count only when they no longer change as their steps shrink.

    Args:
        objective: a `FlatObjective`.
        theta: the point.
        project: function that moves a point into the bounds.

    Returns:
        The error over the norm of the product, or zero where rounding
        explains it.
    """
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(theta.shape)
    direction /= np.linalg.norm(direction)
    step = objective.epsilon ** (1 / 3) * (1 + np.linalg.norm(theta))
    before = None
    for _ in range(_STEPS):
        above = project(theta + step * direction)
        below = project(theta - step * direction)
        length = np.linalg.norm(above - below) / 2
        if length == 0:
            return 0.0  # Bounds fix every parameter.
        _, ahead = objective.value_and_grad(above)
        _, behind = objective.value_and_grad(below)
        directional = (above - below) / (2 * length)
        product = objective.hvp((above + below) / 2, directional)
        difference = (ahead - behind) / (2 * length)
        error = np.linalg.norm(difference - product)
        size = np.linalg.norm(product)
        scale = max(np.linalg.norm(ahead), np.linalg.norm(behind))
        noise = 100 * objective.epsilon * scale / length
        if not np.isfinite(error) or error <= 0.01 * size + noise:
            return 0.0
        if before is not None:
            changed = np.linalg.norm(difference - before)
            if changed <= 0.1 * min(error, np.linalg.norm(difference)):
                return error / max(size, 1e-300)
        before, step = difference, step / 4
    return 0.0


def check_hessian_products(objective, theta, project):
    """Refuses Hessian products that contradict differences of gradients.

    On TensorFlow alone: JAX and PyTorch have no operations with wrong second
    derivatives that are known.

    Args:
        objective: a `FlatObjective`.
        theta: the start.
        project: function that moves a point into the bounds.

    Raises:
        ValueError: if they differ by more than rounding explains.
    """
    if not backend.has_own_gradients(objective.program.value_and_grad):
        return
    try:
        error = hessian_product_error(objective, theta, project)
    except Exception as failure:
        if not backend.is_numerical(failure):
            raise
        return  # Where the numerics fail, nothing can be compared.
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


def _zero_parts(objective, grad):
    parts = objective.program.packing.split_array(grad)
    return {
        id(v)
        for v, part in zip(objective.variables, parts, strict=True)
        if not part.any()
    }


def layers_with_moments(model):
    """The names of the layers of which that is known."""
    names = []
    for layer in model.layers:
        if isinstance(layer, _MOMENTS):
            names.append(layer.name)
        elif isinstance(layer, keras.Model):
            names.extend(layers_with_moments(layer))
    return names
