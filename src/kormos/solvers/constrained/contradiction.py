"""Whether the constraints contradict one another near a point."""

import numpy as np
import scipy.optimize

from kormos.solvers.problem import Problem
from kormos.types import Vector

# Steps of up to this many times the length of the parameters (or of one) are
# considered. Our choice: linear models of constraints hold no farther.
_REACH = 10.0
# Constraints contradict one another if no step leaves less than this part of
# the violation. Our choice: a run that can still gain as much has failed for
# another reason.
_LEAST = 0.1


def is_contradictory(problem: Problem, theta: Vector) -> bool:
    """Whether no step nearby makes the largest violation much smaller.

    That is so by a linear model of the constraints. Each counts in units in
    which its gradient has a length of one.

    Args:
        problem: the problem.
        theta: an infeasible point.
    """
    rows, values = [], []
    for constraint in problem.constraints:
        jac, found = constraint.jac(theta), constraint.fun(theta)
        signs = (1.0, -1.0) if constraint.type == "eq" else (1.0,)
        rows += [sign * jac for sign in signs]
        values += [sign * found for sign in signs]
    matrix, value = np.concatenate(rows), np.concatenate(values)
    if not (np.isfinite(matrix).all() and np.isfinite(value).all()):
        return False
    lengths = np.linalg.norm(matrix, axis=1)
    lengths[lengths == 0] = 1.0
    matrix, value = matrix / lengths[:, None], value / lengths
    worst = -float(value.min())
    if worst <= 0:
        return False
    reach = _REACH * max(float(np.linalg.norm(theta)), 1.0)
    lower, upper = np.full(theta.size, -reach), np.full(theta.size, reach)
    if problem.is_bounded:
        low, high = problem.box
        lower = np.maximum(lower, low - theta)
        upper = np.minimum(upper, high - theta)
    # The step, and the part of the violation that it leaves: the violation is
    # at least that after a step d if -(value + matrix @ d) <= part * worst.
    found = scipy.optimize.linprog(
        np.append(np.zeros(theta.size), 1.0),
        A_ub=np.hstack([-matrix / worst, -np.ones((len(matrix), 1))]),
        b_ub=value / worst,
        bounds=[*zip(lower, upper, strict=True), (0.0, None)],
    )
    return bool(found.success and found.fun >= _LEAST)
