"""Constraints as SciPy takes them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from kormos.solvers.problem import Constraint
from kormos.solvers.scipy.evaluation import checked
from kormos.solvers.scipy.methods import ScipyMethod
from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Vector

# A constraint that is NaN or infinite counts as violated by this many times the
# largest value that was seen. Our choice. Methods with gradients compare points
# by a merit function, in which no decrease of the loss outweighs the first
# number. Methods without gradients fit models to the values, which such a
# number would spoil.
_VIOLATION, _VIOLATION_OF_MODELS = 1e10, 2.0


class AdaptedConstraints:
    """The constraints of a problem, as functions of the free parameters.

    Args:
        constraints: the constraints.
        spec: what the method takes.
        point: function from SciPy's `x` to the point `theta`.
        free: the parameters that `x` has, a mask or a slice.
    """

    def __init__(
        self,
        constraints: list[Constraint],
        spec: ScipyMethod,
        point: Callable[[Vector], Vector],
        free: slice | Array,
    ):
        self._constraints = constraints
        self._splits_equalities = spec.splits_equalities
        self._point = point
        self._free = free
        self._violation = _VIOLATION if spec.gradient else _VIOLATION_OF_MODELS
        # The largest value of a constraint that was seen, but at least one.
        self._largest = 1.0

    def all(self) -> list[dict[str, Any]]:
        """A list of dicts, as `scipy.optimize.minimize` takes it."""
        adapted: list[dict[str, Any]] = []
        for constraint in self._constraints:
            signs = [1.0]
            if constraint.type == "eq" and self._splits_equalities:
                signs = [1.0, -1.0]
            adapted.extend(
                self._adapted(constraint, sign, len(signs)) for sign in signs
            )
        return adapted

    def _adapted(
        self, constraint: Constraint, sign: float, parts: int
    ) -> dict[str, Any]:
        """A constraint, or one of the inequalities that an equality makes.

        Args:
            constraint: the constraint.
            sign: what it is multiplied by.
            parts: the number of constraints that are made of it.
        """

        def fun(x: Vector) -> Vector:
            values = sign * constraint.fun(self._point(x))
            finite = np.isfinite(values)
            size = np.abs(values[finite]).max(initial=0.0)
            self._largest = max(self._largest, size)
            return np.where(finite, values, -self._violation * self._largest)

        def jac(x: Vector) -> Matrix:
            jacobian = sign * constraint.jac(self._point(x))
            jacobian = checked(jacobian, "the Jacobian of a constraint")
            return jacobian[:, self._free]

        kind = constraint.type if parts == 1 else "ineq"
        return {"type": kind, "fun": fun, "jac": jac}
