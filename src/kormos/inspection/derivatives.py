"""Tests of an objective's derivatives, each of which returns a `Finding`."""

import numpy as np

from kormos.arithmetic.differences import Change
from kormos.arithmetic.differences import Tolerance
from kormos.arithmetic.differences import contradiction
from kormos.inspection.kinks import LEAST_SIZE
from kormos.inspection.kinks import away_from_kinks
from kormos.inspection.kinks import sizes
from kormos.inspection.report import Finding
from kormos.objective import Objective
from kormos.objective.start_checks import hessian_product_error
from kormos.objective.start_checks import layers_with_moments
from kormos.objective.start_checks import unused_variables
from kormos.solvers.identification import undetermined_at
from kormos.types import Vector

# The numbers below are our choices.

# With more parameters than this, it is not tested whether the data determine
# each of them. The test takes a few evaluations per parameter.
_MOST_IDENTIFIED = 50
# The most variables whose gradient is tested, each by two evaluations,
# or by a few more where they contradict the gradient.
_MOST_VARIABLES = 8
# The distance from the start at which the test looks for parameters that the
# data do not determine, relative to the sizes of the parameters. At the start
# itself, values such as zeros may hide the effect of a parameter.
_AWAY_FROM_START = 0.1
# A slope is right if differences miss it by no more than this part, or by this
# many roundings of each loss, or by the difference of the slopes on both sides
# of the point. With curvature, or at a kink, it lies between those two. Smaller
# values raise false alarms, larger ones miss small errors. Differences that are
# zero except for rounding contradict a large slope, even if they have not
# converged.
_TOLERANCE, _ROUNDINGS = Tolerance(part=0.02, of_error=0.5), 20
# The first step of differences is this many times the cube root of the
# rounding, at which a central difference is most exact. A longer one meets
# kinks, a shorter one rounding.
_FIRST = 2.0
# The shortest step, as a part of the first.
_SHORTEST = 2.0**-24


def gradient(objective: Objective, theta: Vector) -> Finding:
    """Whether finite differences of the loss agree with the gradient."""
    rng = np.random.default_rng(0)
    theta = away_from_kinks(theta, rng)
    value, grad = objective.value_and_grad(theta)
    counts = [int(np.prod(v.shape)) for v in objective.variables]
    parts = np.split(np.arange(objective.size), np.cumsum(counts)[:-1])
    largest = sorted(range(len(parts)), key=lambda i: -parts[i].size)
    names, worst = [], 0.0
    for i in largest[:_MOST_VARIABLES]:
        at = parts[i]
        direction = np.zeros_like(theta)
        direction[at] = rng.standard_normal(at.size)
        direction /= np.linalg.norm(direction)
        scale = max(float(np.linalg.norm(theta[at])), LEAST_SIZE * at.size**0.5)
        error = _slope_error(
            objective, theta, value, grad @ direction, direction, scale
        )
        if error:
            names.append(objective.variables[i].path)
            worst = max(worst, error)
    if not names:
        return Finding(
            "gradient", True, ("Finite differences of the loss agree with it.")
        )
    return Finding(
        "gradient",
        False,
        f"Finite differences of the loss differ from it by up to {worst:.0%} "
        f"in {', '.join(names)}: check custom gradients and `stop_gradient`.",
        tuple(names),
    )


def _slope_error(
    objective: Objective,
    theta: Vector,
    value: float,
    slope: float,
    direction: Vector,
    scale: float,
) -> float:
    """The relative error of a slope, or zero if differences cannot tell.

    Args:
        objective: the objective.
        theta: the point.
        value: the loss there.
        slope: the derivative of the loss along a direction, by the gradient.
        direction: the direction, a vector of length one.
        scale: the size of the parameters that the direction changes.
    """

    def change(step: float) -> Change:
        ahead = objective.value(theta + step * direction)
        behind = objective.value(theta - step * direction)
        size = max(abs(ahead), abs(behind), abs(value))
        noise = 2 * _ROUNDINGS * objective.evaluation_eps * size
        bend = 2 * abs(ahead + behind - 2 * value)
        return Change(ahead - behind, 2 * step * slope, noise + bend, step)

    step = _FIRST * objective.evaluation_eps ** (1 / 3) * scale
    wrong = contradiction(change, step, _SHORTEST * step, _TOLERANCE)
    if not wrong:
        return 0.0
    return wrong.error / max(wrong.size, abs(float(wrong.found)))


def hessian(objective: Objective, theta: Vector) -> Finding:
    """Whether differences of the gradient agree with a Hessian product."""
    error = hessian_product_error(objective, theta, lambda point: point)
    if not error:
        return Finding(
            "hessian",
            True,
            ("Finite differences of the gradient agree with it."),
        )
    names = tuple(layers_with_moments(objective.model))
    return Finding(
        "hessian",
        False,
        f"A Hessian product is off by {error:.0%}"
        + (f", because of {', '.join(names)}" if names else "")
        + ": use a method without Hessian products, such as 'lbfgs'.",
        names,
    )


def variables(objective: Objective, theta: Vector, grad: Vector) -> Finding:
    """Whether the loss depends on every variable."""
    names = tuple(unused_variables(objective, theta, grad, lambda t: t))
    if not names:
        return Finding(
            "variables", True, ("The loss depends on every variable.")
        )
    return Finding(
        "variables",
        False,
        f"The loss does not depend on {', '.join(names)}.",
        names,
        is_fatal=False,
    )


def identification(objective: Objective, theta: Vector) -> Finding:
    """Whether the data determine every parameter, if there are only a few."""
    found = None
    if objective.size <= _MOST_IDENTIFIED:
        rng = np.random.default_rng(0)
        scale = _AWAY_FROM_START * sizes(theta)
        point = theta + scale * rng.standard_normal(theta.shape)
        found = undetermined_at(
            objective.value_and_grad, point, objective.evaluation_eps
        )
    if found is None:
        return Finding(
            "identification",
            True,
            "No parameters were found that the data do not determine.",
        )
    indices = [*found.without_effect, *found.combined]
    return Finding(
        "identification",
        False,
        found.sentences(objective.name_of).strip(),
        tuple(objective.name_of(i) for i in indices),
        is_fatal=False,
    )
