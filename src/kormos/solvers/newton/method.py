"""What the trust-region Newton method knows, beside a point."""

from typing import NamedTuple

import numpy as np

from kormos.solvers.quasi_newton.lbfgs_curvature import LimitedMemory
from kormos.solvers.quasi_newton.lbfgs_curvature import MiddleMatrix
from kormos.solvers.quasi_newton.lbfgs_curvature import Store
from kormos.solvers.quasi_newton.state import ROW
from kormos.types import Scalar

# Columns of `State.rows`.
NEWTON_ROW = (*ROW, "products")


class Known(NamedTuple):
    """What is known, but for the pairs.

    Attributes:
        memory: that of the preconditioner.
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
        most_products: the most Hessian products for a step.
    """

    def __init__(self, memory: int, most_products: int):
        self.memory = LimitedMemory(memory, "usual")
        self.most_products = most_products
        self.key = f"newton, products={most_products}, {self.memory.key}"

    def empty(self, size: int) -> tuple[Store, Known]:
        store, known = self.memory.empty(size)
        return store, Known(known, np.float64(0), np.int32(0))
