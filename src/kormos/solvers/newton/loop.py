"""One run of the trust-region Newton method."""

import functools
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import numpy as np

from kormos.arithmetic.vectors import to_array
from kormos.solvers.newton import step
from kormos.solvers.newton.attempt import Product
from kormos.solvers.newton.attempt import attempt
from kormos.solvers.newton.attempt import attempt_outside
from kormos.solvers.newton.attempt import given
from kormos.solvers.newton.diagonal import diagonal
from kormos.solvers.newton.method import NewtonMethod
from kormos.solvers.outcome import Outcome
from kormos.solvers.parameter_units import units_of
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Method
from kormos.solvers.quasi_newton.driver import CompiledLoop
from kormos.solvers.quasi_newton.loop import QuasiNewtonRun
from kormos.solvers.quasi_newton.region import Region
from kormos.solvers.quasi_newton.state import Limits
from kormos.solvers.quasi_newton.state import State
from kormos.types import Vector

# Up to this many parameters get new units, if most columns of J differ by more
# than the second number. Our choice: the parameters of a regression have
# different units. In a network, short columns may belong to parameters without
# effect: with new units, a network of 4,810 parameters on digits makes no
# progress, and Poisson's equation with 10,065 ends at a loss that is thirty
# times as large.
_MOST, _APART = 1_000, 1e3


class NewtonLoop(CompiledLoop):
    """The compiled loop, which also makes products with a matrix."""

    _curvature: NewtonMethod

    @property
    def columns(self) -> tuple[str, ...]:
        return (*super().columns, "products")

    def _functions(self) -> tuple[Sequence[Callable[..., Any]], Any]:
        objective = self._problem.objective
        value_and_grad, arguments = objective.traceable()
        products = (
            objective.traceable_gauss_newton()
            if self._curvature.is_gauss_newton
            else objective.traceable_hvp()
        )
        return (value_and_grad, products), arguments

    def _outside(
        self,
    ) -> tuple[Sequence[Callable[..., Any]], Callable[[State], Any]]:
        product = product_of(self._problem, self._curvature.is_gauss_newton)
        made = functools.partial(
            attempt_outside, self._curvature, self._problem, product
        )
        return (given,), made

    @staticmethod
    def _on(
        curvature: Any,
        region: Region,
        functions: Sequence[Callable[..., Any]],
        limits: Limits,
        state: State,
    ) -> State:
        if len(functions) == 1:
            return step.advance(
                curvature,
                region,
                lambda state: functions[0](state.theta),
                limits,
                state,
            )
        value_and_grad, hvp = functions
        return step.advance(
            curvature,
            region,
            functools.partial(attempt, curvature, region, value_and_grad, hvp),
            limits,
            state,
        )


def product_of(problem: Problem, is_gauss_newton: bool) -> Product:
    """The Hessian or the Gauss-Newton matrix, outside of the compiled loop."""
    return problem.gauss_newton().product if is_gauss_newton else problem.hvp


def units_at(problem: Problem, method: NewtonMethod, theta: Vector) -> Vector:
    """Units of the parameters for a run that begins at a point.

    In these units, the columns of J have about the same length. They are only
    used where J has few columns of very different lengths. A Hessian gives no
    units, because its diagonal may have negative entries.
    """
    units = np.ones_like(theta)
    if not method.is_gauss_newton or theta.size > _MOST:
        return units
    matrix = problem.gauss_newton()

    def product(vector: Vector) -> Vector:
        problem.hessp_evals += 1
        return matrix.product(theta, vector)

    squares = diagonal(product, theta.size)
    if not np.isfinite(squares).all():
        return units
    # A column shorter than the rounding of the longest one does not count.
    known = squares > 2.0**-104 * squares.max()
    if not known.any():
        return units
    shorter, longer = np.quantile(squares[known], (0.1, 0.9))
    if not longer > _APART**2 * shorter:
        return units
    return units_of(np.where(known, squares, 0.0))


class NewtonRun(QuasiNewtonRun):
    """One run, which counts Hessian products."""

    _loop_type = NewtonLoop

    def __call__(
        self, method: Method, state: State, earlier: State | None
    ) -> Outcome:
        if earlier is None and isinstance(method, NewtonMethod):
            units = units_at(self._problem, method, to_array(state.theta))
            known = state.curvature._replace(
                products=np.int32(self._problem.hessp_evals)
            )
            state = state._replace(units=units, curvature=known)
        return super().__call__(method, state, earlier)

    def _count(self) -> None:
        super()._count()
        self._problem.hessp_evals = int(self._state.curvature.products)
