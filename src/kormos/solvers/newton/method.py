"""The state of the trust-region Newton method, besides a point."""

from typing import NamedTuple

import numpy as np

from kormos.solvers.problem import Problem
from kormos.solvers.quasi_newton import state as states
from kormos.solvers.quasi_newton.lbfgs_curvature import LimitedMemory
from kormos.solvers.quasi_newton.lbfgs_curvature import MiddleMatrix
from kormos.solvers.quasi_newton.pair_store import Store
from kormos.solvers.quasi_newton.state import State
from kormos.types import Scalar
from kormos.types import Vector

# The size of the preconditioner where it knows nothing. Our choice: with the
# usual size, the radius makes steps in flat directions too short, and a
# network's loss falls half as far in the same number of steps.
_SCALING = "geometric"


# The defaults of the optimizers. Our choice: more pairs take memory, and rarely
# save products; more products for a step than these only take longer.
PAIRS, MOST_PRODUCTS = 20, 200


class Known(NamedTuple):
    """What is known, apart from the pairs.

    Attributes:
        memory: the middle matrix of the preconditioner.
        radius: the longest step, in the norm of the preconditioner's inverse,
            scalar.
        products: Hessian products so far, int32.
    """

    memory: MiddleMatrix
    radius: Scalar
    products: Scalar


class NewtonMethod:
    """The method and its preconditioner, as `protocols.Method`.

    Args:
        memory: the number of pairs of the preconditioner.
        most_products: the most products for a step.
        is_gauss_newton: whether products are with the Gauss-Newton matrix.
    """

    def __init__(
        self,
        memory: int = PAIRS,
        most_products: int = MOST_PRODUCTS,
        is_gauss_newton: bool = False,
    ):
        self.memory = LimitedMemory(memory, _SCALING)
        self.is_gauss_newton = is_gauss_newton
        name = "gauss-newton" if is_gauss_newton else "newton"
        self.most_products = most_products
        self.key = f"{name}, products={most_products}, {self.memory.key}"

    def empty(self, size: int, dtype: str = "float64") -> tuple[Store, Known]:
        store, known = self.memory.empty(size, dtype)
        return store, Known(known, np.float64(0), np.int32(0))


def first_state(method: NewtonMethod, problem: Problem, theta: Vector) -> State:
    """The state of a run that has not begun.

    Args:
        method: the method.
        problem: the problem.
        theta: the start.
    """
    first = states.init(
        method,
        problem.project(theta),
        problem.stride,
        problem.is_bounded,
        problem.objective.readings,
        problem.gradient_dtype,
    )
    # The products have their own column.
    more = np.zeros((len(first.rows), 1))
    return first._replace(rows=np.concatenate([first.rows, more], axis=1))
