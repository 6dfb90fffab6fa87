"""A way down from a point where only the first-order conditions hold.

At a maximum or a saddle point under constraints, the gradient of the Lagrangian
is zero, but its Hessian is negative along a direction that keeps the active
constraints: J. Nocedal and S. J. Wright, "Numerical Optimization", 2nd edition,
section 12.5.
"""

import numpy as np

from kormos.solvers.constrained.optimality import ConstrainedOptimality
from kormos.solvers.parameter_units import sizes_of
from kormos.solvers.problem import Problem
from kormos.solvers.saddle import way_down
from kormos.solvers.surroundings import Evaluate
from kormos.solvers.surroundings import Point
from kormos.types import Vector

# Gradients of constraints depend on one another up to this part. Our choice:
# rounding is less, and gradients that differ for a reason differ by more.
_DEPENDENT = 1e-10


def beside_constraints(
    problem: Problem, evaluate: Evaluate, here: Point
) -> Point | None:
    """A lower feasible point beside an end; `None` if there is none.

    Args:
        problem: the problem, with constraints.
        evaluate: loss and gradient as a function of a point.
        here: the end of a run, a feasible point.
    """
    optimality = ConstrainedOptimality(problem, evaluate)
    theta, _, grad = here
    sizes = np.where(optimality.free, sizes_of(theta, None), 0.0)
    rows, multipliers = optimality.active(theta, grad)
    _, values, basis = np.linalg.svd(rows * sizes, full_matrices=False)
    basis = basis[values > _DEPENDENT * values.max(initial=0.0)]

    def along(vector: Vector) -> Vector:
        """The part of a vector, in sizes, that keeps what is active."""
        return np.asarray(vector - basis.T @ (basis @ vector))

    def lagrangian(step: Vector) -> tuple[float, Vector]:
        """Its value at the feasible point near a step, and its slopes there."""
        point = problem.project(theta + sizes * step)
        _, slope = evaluate(point)
        bent = [c.jac(point) for c in problem.constraints]
        slope = slope - multipliers @ np.concatenate(bent)
        feasible = optimality.restored(point)
        if feasible is None:
            return np.inf, along(sizes * slope)
        # A violation that counts as rounding may lower the loss.
        left = [np.atleast_1d(c.fun(feasible)) for c in problem.constraints]
        value = evaluate(feasible)[0] - multipliers @ np.concatenate(left)
        return float(value), along(sizes * slope)

    zero = np.zeros_like(theta)
    start = np.random.default_rng(0).normal(size=theta.size)
    found = way_down(
        lagrangian,
        Point(zero, *lagrangian(zero)),
        along(np.where(sizes > 0, start, 0.0)),
        np.ones_like(theta),
        problem.evaluation_eps,
    )
    if found is None:
        return None
    feasible = optimality.restored(problem.project(theta + sizes * found.theta))
    assert feasible is not None  # Its value is finite.
    return Point(feasible, *evaluate(feasible))
