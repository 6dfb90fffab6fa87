"""A single step of the trust-region Newton method, on a batch of the data."""

import numpy as np

from kormos import backend
from kormos.arithmetic.vectors import to_array
from kormos.solvers.newton.loop import NewtonLoop
from kormos.solvers.newton.loop import units_at
from kormos.solvers.newton.method import NewtonMethod
from kormos.solvers.newton.method import first_state
from kormos.solvers.problem import Problem
from kormos.solvers.quasi_newton.state import NON_FINITE
from kormos.solvers.quasi_newton.state import RUNNING
from kormos.solvers.quasi_newton.state import State
from kormos.solvers.solver_state import SolverState
from kormos.types import Vector


class NewtonStep:
    """A step from a point. It keeps its state from one batch to the next.

    Args:
        problem: the problem of a batch.
        method: the method.
    """

    def __init__(self, problem: Problem, method: NewtonMethod):
        self._problem = problem
        self._method = method

    def begin(self, theta: Vector, earlier: SolverState | None) -> bool:
        """Evaluates the start.

        Args:
            theta: the start.
            earlier: the `SolverState` to continue from, or `None`.

        Returns:
            Whether the loss and its gradient are finite there.
        """
        problem, method = self._problem, self._method
        state = first_state(method, problem, theta)
        known = None
        if earlier is not None:
            known = earlier.restored(
                method.key, state, theta, problem.storage_eps
            )
        if known is None:
            state = state._replace(units=units_at(problem, method, theta))
        else:
            state = known._replace(theta=problem.project(theta))
        self._loop = NewtonLoop(method, problem, state)
        self._advance()
        return int(self._state.status) != NON_FINITE

    def step(self) -> Vector:
        """Makes a step; returns the point, the old one if no step gains."""
        # A test of convergence on a batch says nothing about all of the data.
        self._loop.replace(status=np.int32(RUNNING))
        first = int(self._state.iterations)
        while (
            int(self._state.status) == RUNNING
            and int(self._state.iterations) == first
        ):
            self._advance()
        return to_array(self._state.theta)

    def logs(self) -> dict[str, float]:
        """The radius, for the History."""
        return {"radius": float(self._state.curvature.radius)}

    def state(self, theta: Vector) -> SolverState:
        """The `SolverState` at a point."""
        return SolverState(self._method.key, self._state._replace(theta=theta))

    @property
    def _state(self) -> State:
        return self._loop.state

    def _advance(self) -> None:
        """Makes one evaluation, and counts it."""
        problem, before = self._problem, self._state
        tolerances = (0.0, 0.0, 0.0, problem.evaluation_eps, -np.inf)
        with backend.float64():
            self._loop.advance(
                tolerances,
                int(before.evaluations) + 1,
                int(before.iterations) + 1,
            )
        problem.fg_evals += 1
        made = self._state.curvature.products - before.curvature.products
        problem.hessp_evals += int(made)
