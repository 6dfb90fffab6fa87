"""The base class of the methods that kormos implements itself."""

import numbers
from typing import Any

from kormos.optimizers import predecessor
from kormos.optimizers.base import DEFAULT_EPOCHS
from kormos.optimizers.base import BatchOptimizer
from kormos.optimizers.base import check_epochs
from kormos.optimizers.stage import Stage
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Observer
from kormos.solvers.solver_state import SolverState
from kormos.types import Vector


class NativeOptimizer(BatchOptimizer):
    """Base class of kormos' own methods: one stage, relative tolerances.

    Subclasses implement `_run(problem, theta, state, observer)`, a `Solver`.

    Args:
        name: name of the optimizer.
        epochs: the number of epochs of a `fit` without `epochs`.
        batch_size: the largest number of rows that are evaluated at the same
            time in a `fit` without `batch_size`.
        pretrain_fn: function of the model that is called before the fit starts.
        gtol: a relative tolerance, which each method defines.
        ftol: likewise.
        xtol: likewise.
        bounds: see `BatchOptimizer`.
        constraints: see `BatchOptimizer`; for a method that
            `takes_constraints`.
        keep_state: see `BatchOptimizer`.
    """

    keeps_state = True
    uses_jacobian = False
    takes_constraints = False
    uses_hessian = False

    def __init__(
        self,
        name: str,
        epochs: int | None,
        batch_size: int | None,
        pretrain_fn: Any,
        gtol: float,
        ftol: float,
        xtol: float,
        bounds: Any = None,
        keep_state: bool | None = None,
        constraints: Any = None,
    ) -> None:
        super().__init__(
            name=name,
            epochs=epochs,
            batch_size=batch_size,
            pretrain_fn=pretrain_fn,
            bounds=bounds,
            constraints=constraints,
            keep_state=keep_state,
        )
        for key, value in (("gtol", gtol), ("ftol", ftol), ("xtol", xtol)):
            if not (isinstance(value, numbers.Real) and 0 <= float(value) < 1):
                raise ValueError(
                    f"Argument `{key}` must be a relative tolerance, from 0 "
                    f"up to 1. Received: {key}={value!r}"
                )
        self.gtol = gtol
        self.ftol = ftol
        self.xtol = xtol

    def stages(
        self, epochs: Any = None, pretrain_fn: Any = None, **overrides: Any
    ) -> list[Stage]:
        given = sorted(k for k, v in overrides.items() if v is not None)
        if given:
            raise ValueError(
                f"Give '{self.name}' its options in its constructor, as in "
                f"`{type(self).__name__}(gtol=...)`; `options` and `tol` are "
                "for SciPy's methods, such as 'l-bfgs-b'."
                f"{predecessor.advice(given, predecessor.ARGUMENTS)} "
                f"Received: {given}"
            )
        if epochs is None:
            epochs = DEFAULT_EPOCHS if self.epochs is None else self.epochs
        check_epochs(epochs)
        return [
            Stage(
                epochs,
                pretrain_fn or self.pretrain_fn,
                self._check,
                self._run,
                uses_hessian=self.uses_hessian,
                uses_jacobian=self.uses_jacobian,
                takes_state=self._takes_state,
                name=self.name,
            )
        ]

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        if not self.takes_constraints:
            del config["constraints"]
        tolerances = {"gtol": self.gtol, "ftol": self.ftol, "xtol": self.xtol}
        return {**config, **tolerances}

    def _takes_state(self, state: SolverState, size: int) -> bool:
        """Whether a run can continue from the state of another stage."""
        del state, size
        return False

    def _check(
        self, size: int, bounded: bool, constraint_types: list[str]
    ) -> None:
        del size, bounded
        if constraint_types and not self.takes_constraints:
            raise ValueError(
                f"Optimizer '{self.name}' does not support constraints. Use "
                f"'lbfgs' or 'slsqp'. Received: optimizer='{self.name}' with "
                f"constraints {sorted(set(constraint_types))}"
            )

    def _run(
        self,
        problem: Problem,
        theta: Vector,
        state: SolverState | None,
        observer: Observer,
    ) -> Outcome:
        raise NotImplementedError
