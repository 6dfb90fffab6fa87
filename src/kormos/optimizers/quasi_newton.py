"""The quasi-Newton methods that kormos compiles itself: what they share."""

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
    """Base class of the quasi-Newton methods that kormos compiles itself.

    Iterations run on the device, in float64 but for the model: as many to a
    call as take a tenth of a second where nothing looks at each epoch (a
    callback, a metric, validation), else `steps_per_epoch` of them. The loss
    times a constant takes the same steps and stops alike. No end is claimed
    before a run that begins there, with its memory cleared, has gained nothing.

    Within bounds, and those that `NonNeg` constraints set, parameters that the
    gradient presses against one are held there. Their number is `active` in the
    History, and ends are judged by the gradient of the others.

    Weights with Keras' `L1` or `L1L2` regularizers are minimized as differences
    of two parts that are not negative, so that the loss has no kinks there and
    weights of zero are exactly zero: `active` counts these too. Their curvature
    is learned anew by each fit.

    Under constraints, each iteration takes a step of an augmented Lagrangian,
    with the curvature of damped BFGS: a dense matrix, or for `"lbfgs"` of more
    parameters than pairs, limited memory. It is learned anew by each fit;
    multipliers are kept for `resume=True`. The History has `violation`, the
    largest one of a constraint, and `complementarity`, the multipliers times
    what is violated or not active; `result.multipliers` are those of the end.

    Args:
        name: name of the optimizer.
        epochs: the number of epochs when `fit` is not told. Defaults to 20.
        batch_size: the most rows in memory at once when `fit` is not told.
        pretrain_fn: function of the model, called before the fit starts.
        gtol: converged when the curvature promises to lower the loss by no
            more than the square of this part of it. Defaults to 1e-9.
        ftol: converged when ten iterations in a row do not lower the lowest
            loss by more than this part of it. Defaults to 1e-14.
        xtol: converged when a step is this part of the parameters' length.
            Defaults to 0, which is never.
        bounds: as `BatchOptimizer` takes them.
        constraints: as `BatchOptimizer` takes them.
        keep_state: where the curvature is kept for `resume=True`: `None` in
            memory and in the backups of `BackupAndRestore`, `True` in saved
            models too, `False` nowhere. Of n parameters a dense method keeps
            8 n^2 bytes, L-BFGS 16 n for each of its pairs. Defaults to
            `None`.
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
    # Whether L1 regularized weights are minimized in two parts.
    takes_parts = True

    def method(self, size: int) -> Method:
        """What `solvers.quasi_newton.state.init` calls a method of curvature.

        Args:
            size: the number of parameters.
        """
        raise NotImplementedError

    def constrained_curvature(self, size: int) -> MakeCurvature:
        """What makes the curvature under constraints, of its first scale.

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
            observer,
            lambda problem, theta, observer: self._solve(
                problem, theta, None, observer
            ),
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
            earlier = state.restored(
                method.key, first, theta, problem.storage_eps
            )
            first = first if earlier is None else self._resumed(earlier)
        run = self._run_type(problem, self, observer)
        return run(method, first, earlier)

    def _first_state(self, problem: Problem, theta: Vector) -> State:
        """The state of a run that has not begun."""
        return states.init(
            self.method(problem.size),
            problem.project(theta),
            problem.stride,
            problem.is_bounded,
            problem.objective.readings,
        )

    def _resumed(self, state: State) -> State:
        """The state of an earlier run, as this one goes on from it."""
        return state
