"""The augmented Lagrangian of Powell, Hestenes and Rockafellar.

    L(x) = f(x) + sum_i (rho_i s_i^2 - m_i^2 / rho_i) / 2,
    s_i = m_i / rho_i - c_i(x)

where s_i of an inequality, c_i >= 0, counts only above zero: J. Nocedal and
S. J. Wright, "Numerical Optimization", 2nd edition, equations 17.36 and 17.65.
"""

import numpy as np

from kormos.solvers.constrained.subproblem import Conditions
from kormos.types import Vector


def forces(
    conditions: Conditions, multipliers: Vector, penalties: Vector
) -> Vector:
    """The factors of the constraints' gradients in that of L, `(m,)`."""
    found = multipliers - penalties * conditions.values
    return np.where(conditions.equal, found, np.maximum(found, 0.0))


def merit(
    loss: float, conditions: Conditions, multipliers: Vector, penalties: Vector
) -> float:
    """L at a point.

    Args:
        loss: f there.
        conditions: the constraints there, without bounds.
        multipliers: m, `(m,)`.
        penalties: rho, `(m,)`.
    """
    felt = forces(conditions, multipliers, penalties)
    return loss + float(np.sum((felt**2 - multipliers**2) / penalties)) / 2


def slope(
    grad: Vector,
    direction: Vector,
    conditions: Conditions,
    multipliers: Vector,
    penalties: Vector,
) -> float:
    """The slope of L along a direction.

    Args:
        grad: the gradient of f, `(size,)`.
        direction: the direction, `(size,)`.
        conditions: the constraints at the point, without bounds.
        multipliers: m, `(m,)`.
        penalties: rho, `(m,)`.
    """
    felt = forces(conditions, multipliers, penalties)
    return float(grad @ direction - felt @ (conditions.rows @ direction))


def change(
    conditions: Conditions,
    multipliers: Vector,
    penalties: Vector,
    changes: Vector,
) -> float:
    """By how much L changes, to first order, if all values do.

    Args:
        conditions: the constraints at the point, without bounds.
        multipliers: m, `(m,)`.
        penalties: rho, `(m,)`.
        changes: the sizes of the changes of the values, `(m,)`.
    """
    return float(np.abs(forces(conditions, multipliers, penalties)) @ changes)
