"""Tests of an objective's derivatives, each with a `Finding` in words."""

import numpy as np

from kormos.inspection.report import Finding
from kormos.objective.start_checks import hessian_product_error
from kormos.objective.start_checks import layers_with_moments
from kormos.objective.start_checks import unused_variables
from kormos.solvers.identification import undetermined_at

# Parameters up to which it is looked for what the data leave open.
_MOST_IDENTIFIED = 50
# Variables whose gradient is tested one by one.
_MOST_VARIABLES = 8


def gradient(objective, theta):
    """Whether differences of the loss are what the gradient says."""
    rng = np.random.default_rng(0)
    packing = objective.program.packing
    # Away from kinks that a start is exactly on, as of zeros in a `relu`.
    theta = theta + 1e-2 * (0.1 + np.abs(theta)) * rng.standard_normal(
        theta.shape
    )
    value, grad = objective.value_and_grad(theta)
    parts = packing.split_array(np.arange(objective.size))
    largest = sorted(range(len(parts)), key=lambda i: -parts[i].size)
    names, worst = [], 0.0
    for i in largest[:_MOST_VARIABLES]:
        at = parts[i].reshape(-1)
        direction = np.zeros_like(theta)
        direction[at] = rng.standard_normal(at.size)
        direction /= np.linalg.norm(direction)
        scale = max(np.linalg.norm(theta[at]), 0.1 * at.size**0.5)
        error = _slope_error(
            objective, theta, value, grad @ direction, direction, scale
        )
        if error:
            names.append(objective.variables[i].path)
            worst = max(worst, error)
    if not names:
        return Finding(
            "gradient", True, "Differences of the loss agree with it."
        )
    return Finding(
        "gradient",
        False,
        f"Differences of the loss contradict it by up to {worst:.0%} in "
        f"{', '.join(names)}: look at custom gradients and `stop_gradient`.",
        tuple(names),
    )


def _slope_error(objective, theta, value, slope, direction, scale):
    """The relative error of a slope; zero where differences cannot tell."""
    slopes, noise = [], 0.0
    for factor in (1.0, 2.0):
        step = factor * objective.epsilon ** (1 / 3) * scale
        ahead = objective.value(theta + step * direction)
        behind = objective.value(theta - step * direction)
        slopes += [(ahead - value) / step, (value - behind) / step]
        size = max(abs(ahead), abs(behind), abs(value))
        noise = max(noise, 20 * objective.epsilon * size / step)
    if not np.isfinite(slopes).all():
        return 0.0
    # Curvature and kinks lie between the slopes of both sides.
    low, high = min(slopes), max(slopes)
    room = noise + 0.5 * (high - low) + 0.02 * abs(slope)
    if low - room <= slope <= high + room:
        return 0.0
    nearest = low if slope < low else high
    return abs(slope - nearest) / max(abs(slope), abs(nearest))


def hessian(objective, theta):
    """Whether differences of the gradient are what a Hessian product says."""
    error = hessian_product_error(objective, theta, lambda point: point)
    if not error:
        return Finding(
            "hessian", True, "Differences of the gradient agree with it."
        )
    names = tuple(layers_with_moments(objective.model))
    return Finding(
        "hessian",
        False,
        f"A Hessian product is off by {error:.0%}"
        + (f" by {', '.join(names)}" if names else "")
        + ": use a method without them, such as 'lbfgs'.",
        names,
    )


def variables(objective, theta, grad):
    """Whether the loss depends on every variable."""
    names = tuple(unused_variables(objective, theta, grad, lambda t: t))
    if not names:
        return Finding("variables", True, "The loss depends on all of them.")
    return Finding(
        "variables",
        False,
        f"The loss does not depend on {', '.join(names)}.",
        names,
        is_fatal=False,
    )


def identification(objective, theta):
    """Whether the data determine every parameter, of a few."""
    found = None
    if objective.size <= _MOST_IDENTIFIED:
        rng = np.random.default_rng(0)
        scale = 0.1 * (0.1 + np.abs(theta))
        point = theta + scale * rng.standard_normal(theta.shape)
        found = undetermined_at(
            objective.value_and_grad, point, objective.epsilon
        )
    if found is None:
        return Finding(
            "identification", True, "Nothing shows parameters that are open."
        )
    indices = [*found.without_effect, *found.combined]
    return Finding(
        "identification",
        False,
        found.sentences(objective.name_of).strip(),
        tuple(objective.name_of(i) for i in indices),
        is_fatal=False,
    )
