"""One run of a quasi-Newton method: calls of the loop, and reports."""

import time
from typing import Any

import numpy as np

from kormos import backend
from kormos.arithmetic.vectors import to_array
from kormos.solvers import statuses
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Iterate
from kormos.solvers.protocols import Method
from kormos.solvers.protocols import Observer
from kormos.solvers.protocols import Point
from kormos.solvers.protocols import Tolerances
from kormos.solvers.quasi_newton import state as states
from kormos.solvers.quasi_newton.claims import Claims
from kormos.solvers.quasi_newton.driver import CompiledLoop
from kormos.solvers.quasi_newton.pace import NO_LIMIT
from kormos.solvers.quasi_newton.pace import Burst
from kormos.solvers.quasi_newton.pace import Pace
from kormos.solvers.quasi_newton.rounding import Rounding
from kormos.solvers.quasi_newton.state import State
from kormos.solvers.solver_state import SolverState
from kormos.types import Vector

# A resumed run takes these fields from the evaluation at its start, and all
# others from the earlier run, because values that are computed again may differ
# by rounding or lack what happened before. JAX has donated the memory of the
# earlier store.
_OF_THE_START = "store", "rows", "status", "value", "evaluations", "latest"


class QuasiNewtonRun:
    """One run.

    Args:
        problem: the `Problem`.
        optimizer: the `QuasiNewton`, for its tolerances.
        observer: the `Observer`.
    """

    _loop_type: type[CompiledLoop] = CompiledLoop

    def __init__(
        self, problem: Problem, optimizer: Tolerances, observer: Observer
    ):
        self._problem = problem
        self._optimizer = optimizer
        self._observer = observer
        self._kept: SolverState | None = None
        self._pace = Pace(problem.budget.deadline)
        self._burst = Burst()
        self._claims: Claims | None = None

    def __call__(
        self, method: Method, state: State, earlier: State | None
    ) -> Outcome:
        """Runs.

        Args:
            method: the method of curvature.
            state: the `State` to begin from.
            earlier: the earlier run's state from which it was made, or `None`.

        Returns:
            An `Outcome`.
        """
        self._key = method.key
        self._loop = self._loop_type(method, self._problem, state)
        self._rounding = Rounding(self._loop, self._problem)
        first = self._goal = int(state.iterations)
        with backend.float64():
            stop = self._start(earlier)
            outcome = None
            self._claims = Claims(
                self._loop,
                self._problem,
                self._optimizer,
                self._rounding,
                self._call,
            )
            while not stop and outcome is None:
                outcome = self._ended() or self._claims.look()
                # A trial may end at its start.
                if (
                    outcome is None
                    and int(self._state.status) == states.RUNNING
                ):
                    if int(self._state.iterations) == self._goal:
                        self._goal = self._next_goal(first)
                    stop = self._advance()
            self._keep(self._state)
        outcome = outcome or self._outcome(None)
        outcome.evaluate = self._problem.evaluate
        outcome.state = self._kept
        return outcome

    @property
    def _state(self) -> State:
        return self._loop.state

    @property
    def _is_in_trial(self) -> bool:
        """Whether a claim is being tried."""
        claims = self._claims
        return claims is not None and claims.last_evaluation is not None

    def _start(self, earlier: State | None) -> bool:
        """Evaluates the start and reports it; returns whether to stop."""
        self._call()
        if earlier is not None:
            fields = _as_it_was(
                self._state, earlier, self._problem.evaluation_eps
            )
            self._loop.replace(**fields)
            self._keep(self._state)
        state = self._state
        self._count()
        theta, grad = to_array(state.theta), to_array(state.grad)
        self._verify(theta, float(state.loss))
        return self._observer.started(Point(theta, float(state.loss), grad))

    def _verify(self, theta: Vector, loss: float) -> None:
        problem = self._problem
        if problem.objective.is_streamed:
            problem.verify(Problem.evaluate, theta)
            return
        kept = None if problem.is_verified else self._loop.copy()
        if kept is not None:
            problem.verify(
                lambda _, point: self._loop.value(point), theta, loss
            )
            self._loop.restore(kept)
            self._keep(kept)

    def _advance(self) -> bool:
        """Advances to the next look; returns whether to stop."""
        done, began = int(self._state.iterations), time.perf_counter()
        self._call()
        made = int(self._state.iterations) - done
        self._burst.note(made, time.perf_counter() - began)
        return self._report_since(done)

    def _next_goal(self, first: int) -> int:
        """The count of iterations after which to look again."""
        problem, goal = self._problem, self._goal
        # The run is looked at after every multiple of the stride.
        due = problem.stride - (goal - first) % problem.stride
        goal += due if self._loop.is_stepped else min(due, self._burst.count)
        most = problem.budget.iterations
        return goal if most is None else min(goal, first + most)

    def _call(self) -> None:
        spent = int(self._state.evaluations)
        tolerances, evaluations = self._limits(spent)
        if self._kept is not None:
            # After an interrupt, the state may be half changed.
            self._kept.lose()
        self._loop.advance(tolerances, evaluations, self._goal)
        state = self._state
        self._keep(state)
        self._pace.note(int(state.evaluations) - spent)
        if self._problem.on_evaluation is not None:
            self._problem.on_evaluation(float(state.latest))

    def _keep(self, state: State) -> None:
        """Keeps a state from which a later run can continue."""
        self._kept = SolverState(self._key, state)

    def _limits(self, spent: int) -> tuple[tuple[float, ...], int]:
        """The tolerances of a call, and the count that ends it."""
        problem, optimizer = self._problem, self._optimizer
        budget = problem.budget
        evaluations = [NO_LIMIT, spent + self._pace.affordable()]
        if budget.evaluations is not None:
            evaluations.append(budget.evaluations)
        if problem.on_evaluation is not None or self._loop.is_stepped:
            evaluations.append(spent + 1)
        if self._claims is not None:
            last = self._claims.last_evaluation
            if last is not None:
                evaluations.append(max(last, spent + 1))
        target = -np.inf if budget.target is None else budget.target
        tolerances = (
            optimizer.gtol,
            optimizer.ftol,
            optimizer.xtol,
            self._rounding.share,
            target,
        )
        return tolerances, min(evaluations)

    def _report_since(self, done: int) -> bool:
        """Reports the iterations of a call; the last one has its point."""
        state, problem = self._state, self._problem
        count = int(state.iterations) - done
        rows = backend.to_numpy(state.rows)[:count]
        columns = self._loop.columns
        width, stop = len(columns), False
        is_read = rows.shape[1] > width and not self._loop.is_stepped
        for i, row in enumerate(rows[:, :width].tolist()):
            logs = dict(zip(columns, row, strict=True))
            readings = rows[i, width:] if is_read else None
            loss, grad = logs.pop("loss"), logs.pop("grad")
            problem.fg_evals = int(logs.pop("evaluations"))
            if "products" in logs:
                problem.hessp_evals = int(logs.pop("products"))
            theta = to_array(state.theta) if i == count - 1 else None
            iterate = Iterate(
                theta, loss, grad, self._kept, logs, readings=readings
            )
            stop = stop or self._observer.accepted(iterate)
        self._count()
        return stop

    def _count(self) -> None:
        """Sets the problem's count of evaluations."""
        self._problem.fg_evals = int(self._state.evaluations)

    def _ended(self) -> Outcome | None:
        """The end that is no claim, or `None`."""
        status = int(self._state.status)
        if status == states.NON_FINITE:
            return self._outcome(statuses.NON_FINITE)
        if status == states.TARGET:
            return self._outcome(None)
        spent = self._problem.spent()
        return None if spent is None else self._outcome(spent)

    def _outcome(self, status: str | None) -> Outcome:
        state = self._state
        return Outcome(status, to_array(state.theta), float(state.loss))


def _as_it_was(state: State, earlier: State, noise: float) -> dict[str, Any]:
    """The fields to restore from an earlier run, if its loss is the same.

    If the loss has changed, with other data for example, only the curvature is
    kept.

    Args:
        state: the state after the evaluation of the start.
        earlier: the state of the earlier run.
        noise: the rounding of the loss over its size.
    """
    grad, change = to_array(state.grad), abs(state.loss - earlier.loss)
    moved = np.linalg.norm(grad - earlier.grad)
    is_same = (
        earlier.iterations > 0
        and change <= 100 * noise * abs(state.loss)
        and moved <= 1e-3 * np.linalg.norm(grad)
    )
    if not is_same:
        return {}
    fields = earlier._asdict()
    for name in _OF_THE_START:
        del fields[name]
    return fields
