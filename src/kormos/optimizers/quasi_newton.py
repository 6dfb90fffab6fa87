"""The options that the quasi-Newton methods of kormos share."""

import functools
from collections.abc import Callable
from typing import Any
from typing import TypeAlias

from kormos.optimizers.native import NativeOptimizer
from kormos.solvers.constrained.curvature import (
    Curvature as ConstrainedCurvature,
)
from kormos.solvers.constrained.curvature import DenseCurvature
from kormos.solvers.constrained.run import ConstrainedRun
from kormos.solvers.in_two_parts import run_in_parts
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Method
from kormos.solvers.protocols import Observer
from kormos.solvers.quasi_newton import state as states
from kormos.solvers.quasi_newton.loop import QuasiNewtonRun
from kormos.solvers.quasi_newton.state import State
from kormos.solvers.solver_state import SolverState
from kormos.types import Vector

MakeCurvature: TypeAlias = Callable[[float], ConstrainedCurvature]


class QuasiNewton(NativeOptimizer):
    """Base class of the quasi-Newton methods that kormos compiles.

    The iterations run on the device, in float64 except for the model itself. If
    nothing has to be computed between two epochs (by a callback or a
    validation), one call runs as many iterations as take a tenth of a second;
    otherwise `steps_per_epoch` of them. If the loss is multiplied by a
    constant, the steps and the end of the run stay the same. A run is called
    converged only after a new run from its end, without memory, has gained
    nothing.

    Within `bounds`, and within those of `NonNeg` constraints, parameters that
    the gradient pushes against a bound are held there. The column `active` of
    the History is their number. Convergence is tested on the gradient of the
    other parameters.

    Weights with Keras' `L1` or `L1L2` regularizers are minimized as the
    difference of two non-negative parts. The loss then has no kinks there, and
    weights can become exactly zero. `active` counts these too. Their curvature
    is not kept for a later fit.

    With `constraints`, each iteration takes one step on an augmented
    Lagrangian, with the curvature of damped BFGS: a dense matrix or, for
    `"lbfgs"` with more parameters than pairs, limited memory. This curvature is
    not kept for a later fit, but the multipliers are kept for `resume=True`.
    The History has the columns `violation`, the largest violation of a
    constraint, and `complementarity`, the largest product of a multiplier and a
    constraint that is violated or not active. `result.multipliers` has the
    multipliers at the end.

    Args:
        name: String, the name of the optimizer.
        epochs: Integer, the number of epochs of a `fit` without `epochs`.
            Defaults to 20.
        batch_size: Integer, the largest number of rows that are evaluated at
            the same time in a `fit` without `batch_size`.
        pretrain_fn: Function of the model that is called before the fit starts,
            for example to freeze layers.
        gtol: Float. The run has converged when the decrease of the loss that
            the curvature predicts is at most `gtol**2` times the loss. Defaults
            to 1e-9.
        ftol: Float. The run has converged when ten iterations in a row have not
            lowered the lowest loss by more than `ftol` times the loss. Defaults
            to 1e-14.
        xtol: Float. The run has converged when the length of a step is at most
            `xtol` times the length of the parameters. Defaults to 0, which
            turns this test off.
        bounds: Bounds of the variables. See `BatchOptimizer`.
        constraints: Constraints. See `BatchOptimizer`.
        keep_state: Where the curvature is kept for `resume=True`. `None` keeps
            it in memory and in the backups of `BackupAndRestore`, `True` in
            saved models too, `False` nowhere. For n parameters, a dense method
            keeps `8 n**2` bytes, and L-BFGS `16 n` bytes for each pair.
            Defaults to `None`.
    """

    _run_type: type[QuasiNewtonRun] = QuasiNewtonRun

    def __init__(
        self,
        name: str,
        epochs: int | None = None,
        batch_size: int | None = None,
        pretrain_fn: Any = None,
        gtol: float = 1e-9,
        ftol: float = 1e-14,
        xtol: float = 0.0,
        bounds: Any = None,
        constraints: Any = None,
        keep_state: bool | None = None,
    ) -> None:
        super().__init__(
            name,
            epochs,
            batch_size,
            pretrain_fn,
            gtol,
            ftol,
            xtol,
            bounds,
            keep_state,
            constraints,
        )

    takes_constraints = True
    # Whether L1-regularized weights are split in two parts.
    takes_parts = True

    def method(self, size: int) -> Method:
        """Returns the curvature that `solvers.quasi_newton.state.init` takes.

        Args:
            size: the number of parameters.
        """
        raise NotImplementedError

    def constrained_curvature(self, size: int) -> MakeCurvature:
        """Returns a function that makes the curvature under constraints.

        The function takes the first scale.

        Args:
            size: the number of parameters.
        """
        return functools.partial(DenseCurvature, size)

    def check_size(self, size: int) -> None:
        """Raises a `ValueError` if there are too many parameters."""

    def _takes_state(self, state: SolverState, size: int) -> bool:
        return state.key == self.method(size).key

    def _check(
        self, size: int, bounded: bool, constraint_types: list[str]
    ) -> None:
        super()._check(size, bounded, constraint_types)
        self.check_size(size)

    def _run(
        self,
        problem: Problem,
        theta: Vector,
        state: SolverState | None,
        observer: Observer,
    ) -> Outcome:
        parts = None
        if self.takes_parts:
            parts = problem.objective.in_parts(problem.lower, problem.upper)
        if parts is None:
            return self._solve(problem, theta, state, observer)
        self._check(parts.size, True, [c.type for c in problem.constraints])
        return run_in_parts(
            problem,
            parts,
            theta,
            state,
            observer,
            self._solve,
        )

    def _solve(
        self,
        problem: Problem,
        theta: Vector,
        state: SolverState | None,
        observer: Observer,
    ) -> Outcome:
        """Minimizes a loss without known kinks; see `_run`."""
        method = self.method(problem.size)
        if problem.constraints:
            make = self.constrained_curvature(problem.size)
            constrained = ConstrainedRun(problem, make, observer, method.key)
            return constrained(theta, state)
        first, earlier = self._first_state(problem, theta), None
        if state is not None:
            earlier = self._converted(state, method).restored(
                method.key, first, theta, problem.storage_eps
            )
            first = first if earlier is None else self._resumed(earlier)
        run = self._run_type(problem, self, observer)
        return run(method, first, earlier)

    def _converted(self, state: SolverState, method: Method) -> SolverState:
        """The state of another method, converted to this one if possible."""
        del method
        return state

    def _first_state(self, problem: Problem, theta: Vector) -> State:
        """The state of a run that has not begun."""
        return states.init(
            self.method(problem.size),
            problem.project(theta),
            problem.stride,
            problem.is_bounded,
            problem.objective.readings,
            problem.gradient_dtype,
        )

    def _resumed(self, state: State) -> State:
        """The state of an earlier run, from which this run continues."""
        return state
