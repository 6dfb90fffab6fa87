"""Multipliers of constraints and bounds, and what they say is left to gain.

By duality, any multipliers of the right signs give an upper bound on the
decrease that a quadratic model predicts: from the part of the gradient that
they do not explain, and from the slack of the constraints that they belong to.
Non-negative least squares finds multipliers for which the bound is small.

J. Nocedal and S. J. Wright, "Numerical Optimization", 2nd edition, equation
16.82 onwards.
"""

from typing import NamedTuple

import numpy as np
import scipy.optimize

from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Vector

# A constraint may be active if its slack is at most this number times the norm
# of its gradient. Each number is tried, and the smallest bound counts. Our
# choice: they span the accuracies with which SciPy's methods end.
_NEAR = (0.0, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2)


class Conditions(NamedTuple):
    """The constraints and bounds at a point, all as `value >= 0` or `= 0`.

    Attributes:
        values: their values.
        slack: the same, but zero where rounding explains the value.
        rows: their gradients.
        equal: which are equalities.
    """

    values: Vector
    slack: Vector
    rows: Matrix
    equal: Array


def promised(
    root: Array, grad: Vector, conditions: Conditions
) -> tuple[float, Vector]:
    """A bound on the predicted decrease, and the multipliers that give it.

    Args:
        root: the lower triangular root of the Hessian.
        grad: the gradient of the loss.
        conditions: the constraints and bounds.
    """
    least, best = np.inf, np.zeros(conditions.values.size)
    for near in _NEAR:
        weights = multipliers_of(root, grad, conditions, near)
        rest = np.linalg.solve(root, grad - conditions.rows.T @ weights)
        promise = rest @ rest / 2 + conditions.slack @ np.abs(weights)
        if promise < least:
            least, best = float(promise), weights
    return least, best


def multipliers_of(
    root: Array,
    grad: Vector,
    conditions: Conditions,
    near: float = _NEAR[1],
) -> Vector:
    """Multipliers that explain most of the gradient, in a metric.

    Args:
        root: the lower triangular root of the metric's inverse.
        grad: the gradient of the loss.
        conditions: the constraints and bounds.
        near: the slack over the norm of the gradient up to which a constraint
            may be active.
    """
    rows, equal = conditions.rows, conditions.equal
    scale = np.abs(np.linalg.solve(root, rows.T)).max(axis=0, initial=0.0)
    reach = np.linalg.norm(rows, axis=1)
    chosen = equal | (conditions.slack <= near * reach)
    chosen &= scale > 0
    weights = np.zeros(equal.size)
    if not chosen.any():
        return weights
    columns = np.linalg.solve(root, rows[chosen].T) / scale[chosen]
    both = np.hstack([columns, -columns[:, equal[chosen]]])
    target = np.linalg.solve(root, grad)
    size = np.linalg.norm(target)
    if size == 0:
        return weights
    try:
        found, _ = scipy.optimize.nnls(both, target / size)
    except RuntimeError:
        return weights
    count = int(chosen.sum())
    signed = found[:count].copy()
    signed[equal[chosen]] -= found[count:]
    weights[chosen] = signed * size / scale[chosen]
    return weights
