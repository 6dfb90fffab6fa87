"""The methods of `scipy.optimize.minimize`.

SciPy runs its own loop, and calls kormos back after each iteration. Differs
from calling `scipy.optimize.minimize` with the same functions in:

1. every method is given the derivatives that it can use and nothing else;
2. all methods count iterations in the same way, and a run ends after the last
   epoch: SciPy's `maxiter` counts evaluations in some methods;
3. a trial point with a NaN or infinite loss counts as a step too long;
4. no evaluation lies outside the bounds;
5. unknown options raise;
6. trust-constr with bounds or inequalities ends by `xtol`: its test of `gtol`
   is met while the barrier still keeps it away from them;
7. SciPy does not get parameters that the bounds fix, because it mishandles
   them;
8. TNC takes differences of gradients, with a step that suits their rounding;
9. a loss whose value and gradient start below one is multiplied by a power of
   two, unless a tolerance is given: most tolerances of SciPy are absolute, and
   a small loss would pass for converged where it starts;
10. COBYQA counts every evaluation after those of its first model as an
    iteration, because it reports no other;
11. a claim of convergence is verified: see `claims.py`.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from kormos.free_memory import check_square
from kormos.solvers import statuses
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Observer
from kormos.solvers.protocols import Point
from kormos.solvers.scipy.claims import Claims
from kormos.solvers.scipy.claims import Settings
from kormos.solvers.scipy.evaluator import Evaluator
from kormos.solvers.scipy.methods import METHODS
from kormos.solvers.scipy.methods import ScipyMethod
from kormos.solvers.solver_state import SolverState
from kormos.types import Vector

# The number of matrices that a method holds at once: the matrix, its successor
# or its factors, and about two more for products and workspace.
_MATRICES = 4


class ScipyRun:
    """Runs a method of `scipy.optimize.minimize`."""

    def __init__(
        self, spec: ScipyMethod, options: Mapping[str, Any], tol: float | None
    ):
        self._spec = spec
        # `tol` leaves a tolerance of zero, which is off, as it is.
        given: dict[str, Any] = {
            name: tol
            for name, default in spec.tolerances.items()
            if tol is not None and default != 0
        }
        given.update(options)
        first = {**spec.limits, **spec.tolerances, **given}
        again = {**first, **spec.strict, **given}
        self._settings = Settings(first, again, given)
        own = (*spec.tolerances, "f_target")
        self._is_absolute = any(name in given for name in own)

    def check(
        self, size: int, bounded: bool, constraint_types: Sequence[str]
    ) -> None:
        """Refuses what the method cannot honour."""
        spec = self._spec
        if bounded and not spec.bounds:
            raise ValueError(
                f"Method '{spec.name}' does not support bounds (nor a "
                "`NonNeg` constraint, which is a bound). Use one of "
                f"{_able('bounds')}. Received: method='{spec.name}' with "
                "bounds"
            )
        refused = sorted(set(constraint_types) - set(spec.constraints))
        if refused:
            raise ValueError(
                f"Method '{spec.name}' does not support constraints. Use one "
                f"of {_able('constraints')}. Received: method='{spec.name}' "
                f"with constraints {refused}"
            )
        if spec.square:
            check_square(
                f"Method '{spec.name}' keeps a dense matrix",
                size,
                _MATRICES,
                "Use 'lbfgs' or 'l-bfgs-b'.",
            )
        if spec.hessian:
            check_square(
                f"Method '{spec.name}' forms a dense Hessian from as many "
                "products as there are parameters",
                size,
                _MATRICES,
                "Use 'trust-ncg', 'trust-krylov' or 'newton-cg'.",
            )

    def __call__(
        self,
        problem: Problem,
        theta: Vector,
        state: SolverState | None,
        observer: Observer,
    ) -> Outcome:
        del state  # SciPy's methods keep no state.
        evaluator = Evaluator(problem, theta, self._spec)
        start = evaluator.accepted
        is_steep = self._spec.gradient
        problem.verify(
            Problem.evaluate if is_steep else Problem.peek,
            start.theta,
            start.loss,
        )
        if observer.started(Point(*start)):
            return Outcome(None, start.theta, start.loss)
        if evaluator.start().size == 0:
            is_feasible = problem.is_feasible(start.theta)
            return Outcome(
                statuses.CONVERGED if is_feasible else statuses.INFEASIBLE,
                start.theta,
                start.loss,
                detail="the bounds fix every parameter",
            )
        if not self._is_absolute:
            evaluator.rescale()
        outcome = Claims(
            self._spec,
            self._settings,
            problem,
            evaluator,
            observer,
            self._is_absolute,
        )()
        outcome.evaluate = problem.evaluate if is_steep else None
        return outcome


def _able(what: str) -> list[str]:
    return [name for name, spec in METHODS.items() if getattr(spec, what)]
