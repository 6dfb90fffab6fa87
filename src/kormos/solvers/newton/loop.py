"""One run of the trust-region Newton method."""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

from kormos.solvers.newton import step
from kormos.solvers.newton.method import NEWTON_ROW
from kormos.solvers.newton.method import NewtonMethod
from kormos.solvers.quasi_newton.driver import CompiledLoop
from kormos.solvers.quasi_newton.loop import QuasiNewtonRun
from kormos.solvers.quasi_newton.region import Region
from kormos.solvers.quasi_newton.state import Limits
from kormos.solvers.quasi_newton.state import State


class NewtonLoop(CompiledLoop):
    """The compiled loop, which makes products with a matrix too."""

    _curvature: NewtonMethod

    can_be_stepped = False
    columns = NEWTON_ROW

    def _functions(self) -> tuple[Sequence[Callable[..., Any]], Any]:
        objective = self._problem.objective
        value_and_grad, arguments = objective.traceable()
        products = (
            objective.traceable_gauss_newton()
            if self._curvature.is_gauss_newton
            else objective.traceable_hvp()
        )
        return (value_and_grad, products), arguments

    @staticmethod
    def _on(
        curvature: Any,
        region: Region,
        functions: Sequence[Callable[..., Any]],
        limits: Limits,
        state: State,
    ) -> State:
        del region
        value_and_grad, hvp = functions
        return step.advance(curvature, value_and_grad, hvp, limits, state)


class NewtonRun(QuasiNewtonRun):
    """One run, which counts Hessian products."""

    _loop_type = NewtonLoop

    def _count(self) -> None:
        super()._count()
        self._problem.hessp_evals = int(self._state.curvature.products)
