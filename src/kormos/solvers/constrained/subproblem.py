"""The step of an augmented Lagrangian: a convex quadratic program.

With a positive definite model B of the Lagrangian's Hessian, the step d
minimizes

    g'd + d'Bd / 2 + sum_i rho_i / 2 (c_i + a_i'd - m_i / rho_i)^2

where inequalities, c_i >= 0, count only as far as they are violated. Bounds and
other `hard` conditions are kept exactly. The dual program is solved for the
multipliers, one for each condition. So B is never formed: only the products of
H = B^-1 with the gradients of the conditions are needed. As the penalties rho
grow, the step becomes that of sequential quadratic programming. The program has
a solution even where conditions contradict one another.

P. E. Gill and D. P. Robinson, "A primal-dual augmented Lagrangian", Comput.
Optim. Appl. 51(1), 2012, section 3, has the same program.
"""

from typing import NamedTuple

import numpy as np
import scipy.optimize

from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Vector


class Conditions(NamedTuple):
    """Constraints and bounds at a point.

    Attributes:
        values: their values, `(m,)`, which should be zero (equalities) or at
            least zero.
        rows: their gradients, `(m, size)`.
        equal: a mask of the equalities, bool, `(m,)`.
        hard: a mask of those that are kept exactly, bool, `(m,)`.
    """

    values: Vector
    rows: Matrix
    equal: Array
    hard: Array

    def violation(self) -> Vector:
        """The violation of each condition, `(m,)`."""
        return np.where(
            self.equal, np.abs(self.values), np.maximum(-self.values, 0.0)
        )


class Step(NamedTuple):
    """The solution of the program.

    Attributes:
        direction: d, `(size,)`.
        multipliers: the new multipliers, `(m,)`.
        force: B d, `(size,)`.
        landing: the bounds that it ends on, NaN elsewhere, `(size,)`.
    """

    direction: Vector
    multipliers: Vector
    force: Vector
    landing: Vector | None = None


def solve(
    grad: Vector,
    conditions: Conditions,
    multipliers: Vector,
    penalties: Vector,
    turned: tuple[Vector, Matrix],
) -> Step:
    """Solves the program.

    Args:
        grad: g, `(size,)`.
        conditions: the conditions.
        multipliers: m, `(m,)`.
        penalties: rho, `(m,)`; those of hard conditions do not count.
        turned: H times g, `(size,)`, and H times the gradients of the
            conditions, `(size, m)`.
    """
    rows, values = conditions.rows, conditions.values
    turned_grad, turned_rows = turned
    soft = np.where(conditions.hard, 0.0, 1 / penalties)
    matrix = rows @ turned_rows + np.diag(soft)
    matrix = (matrix + matrix.T) / 2
    right = rows @ turned_grad - values + soft * multipliers
    found = _dual(matrix, right, conditions.equal)
    direction = turned_rows @ found - turned_grad
    return Step(direction, found, rows.T @ found - grad)


def _dual(matrix: Matrix, right: Vector, free: Array) -> Vector:
    """Minimizes x'Mx / 2 - r'x, where only the `free` may be negative.

    Args:
        matrix: M, positive semidefinite, `(m, m)`.
        right: r, `(m,)`.
        free: a mask of the entries of x without a sign, bool, `(m,)`.
    """
    scale = np.sqrt(np.maximum(np.diag(matrix), 0.0))
    scale[scale == 0] = 1.0
    matrix = matrix / np.outer(scale, scale)
    eigenvalues, vectors = np.linalg.eigh(matrix)
    least = len(right) * np.finfo(float).eps * eigenvalues[-1]
    roots = np.sqrt(np.maximum(eigenvalues, least))
    root = roots[:, None] * vectors.T
    target = (vectors.T @ (right / scale)) / roots
    if free.all():
        return np.linalg.solve(root, target) / scale
    if not (np.isfinite(root).all() and np.isfinite(target).all()):
        raise np.linalg.LinAlgError("the program is not finite")
    # A free one is the difference of two that are not negative.
    columns = np.hstack([root, -root[:, free]])
    size = np.linalg.norm(target)
    if size == 0:
        return np.zeros(len(right))
    try:
        found, _ = scipy.optimize.nnls(columns, target / size)
    except RuntimeError:
        found = scipy.optimize.lsq_linear(columns, target / size, (0, np.inf)).x
    count = len(right)
    signed = found[:count].copy()
    signed[free] -= found[count:]
    return signed * size / scale
