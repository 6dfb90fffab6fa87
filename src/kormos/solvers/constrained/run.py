"""One run of a native method under constraints, and the verdict on its end."""

from collections.abc import Callable

import numpy as np

from kormos.solvers import convergence
from kormos.solvers import statuses
from kormos.solvers.constrained.contradiction import is_contradictory
from kormos.solvers.constrained.curvature import Curvature
from kormos.solvers.constrained.loop import ConstrainedLoop
from kormos.solvers.constrained.optimality import ConstrainedOptimality
from kormos.solvers.fresh_run import MOST_NEWTON
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Iterate
from kormos.solvers.protocols import Observer
from kormos.solvers.protocols import Point
from kormos.solvers.solver_state import SolverState
from kormos.types import Vector

# Iterations end if this many iterations in a row predict no smaller decrease
# than the smallest before, and it is at most the second number times the loss's
# rounding.
_MOST_VAIN, _VAIN = 10, 1e4
# A run looks whether its constraints contradict one another after this many
# iterations in which the smallest violation did not fall below this part of it.
# Our choice: a feasible run that turns a corner takes fewer.
_STUCK, _LESS = 50, 0.999
# The end of a run is checked at most this many times. Our choice: each check
# that lowers the loss makes it less likely that the next one does.
_MOST_TRIALS = 6


class ConstrainedRun:
    """One run.

    Args:
        problem: the `Problem`.
        make_curvature: function of the first scale that makes a `Curvature`.
        observer: the `Observer`.
        key: a name for the method.
    """

    def __init__(
        self,
        problem: Problem,
        make_curvature: Callable[[float], Curvature],
        observer: Observer,
        key: str,
    ) -> None:
        self._problem, self._observer = problem, observer
        self._loop = ConstrainedLoop(problem, make_curvature)
        self._key = f"{key}, with constraints"
        self._is_stopped = False
        # The loss at which the memory was last cleared to try an end.
        self._tried: float | None = None

    def __call__(self, theta: Vector, state: SolverState | None) -> Outcome:
        """Runs.

        Args:
            theta: the start.
            state: the state of an earlier run, whose multipliers it begins
                with, or `None`.
        """
        problem, loop = self._problem, self._loop
        multipliers = None
        if state is not None:
            theta, multipliers = self._earlier(state, theta)
        loop.begin(theta, multipliers)
        at = loop.at
        problem.verify(Problem.evaluate, at.theta, at.loss)
        if self._observer.started(Point(at.theta, at.loss, at.grad)):
            return self._outcome(None)
        known = at.constraints.values, at.constraints.rows
        if not all(np.isfinite(part).all() for part in known):
            ended = self._outcome(statuses.NON_FINITE)
            ended.findings = "A constraint is not finite at the start."
            return ended
        for _ in range(_MOST_TRIALS):
            failure = self._iterate()
            if self._is_stopped:
                return self._outcome(problem.spent())
            outcome = self._judged(failure)
            if outcome is not None:
                return outcome
        return self._outcome(statuses.STALLED)

    def _earlier(
        self, state: SolverState, theta: Vector
    ) -> tuple[Vector, Vector | None]:
        """The point and the multipliers of an earlier run."""
        if state.key != self._key:
            # The function raises an error for the state of another method.
            state.restored(self._key, (), theta, self._problem.storage_eps)
        point = state.point(theta, self._problem.storage_eps)
        return self._problem.project(point), state.arrays().get("multipliers")

    def _iterate(self) -> str:
        """Iterates until nothing is gained; returns the status otherwise."""
        loop, problem = self._loop, self._problem
        vain, lowest = 0, np.inf
        stuck, least = 0, np.inf
        cleared: float | None = None
        while True:
            was_fresh = loop.is_fresh
            if problem.spent() is not None or not loop.iterate():
                if problem.spent() is not None:
                    self._is_stopped = True
                    return statuses.STALLED
                loss = loop.at.loss
                is_vain = (
                    cleared is not None
                    and loop.is_well_feasible()
                    and not self._is_gain(cleared, loss)
                )
                if was_fresh or is_vain:
                    return statuses.LINE_SEARCH_FAILED
                cleared = loss if cleared is None else min(cleared, loss)
                loop.clear()
                continue
            self._is_stopped = self._reported()
            if self._is_stopped or self._is_small():
                return statuses.STALLED
            rounding = problem.evaluation_eps * abs(loop.at.loss)
            vain = 0 if loop.left < lowest else vain + 1
            lowest = min(loop.left, lowest)
            if vain >= _MOST_VAIN and loop.left <= _VAIN * rounding:
                return statuses.STALLED
            worst = loop.violation()
            is_less = worst < _LESS * least
            stuck, least = (0, worst) if is_less else (stuck + 1, least)
            if stuck and stuck % _STUCK == 0 and self._is_infeasible():
                return statuses.INFEASIBLE

    def _is_infeasible(self) -> bool:
        """Whether the constraints contradict one another at this point."""
        problem, theta = self._problem, self._loop.at.theta
        return not problem.is_feasible(theta) and is_contradictory(
            problem, theta
        )

    def _is_small(self) -> bool:
        """Whether the latest program predicted almost nothing."""
        loop, problem = self._loop, self._problem
        rounding = problem.evaluation_eps * abs(loop.at.loss)
        return loop.left <= rounding and loop.is_well_feasible()

    def _reported(self) -> bool:
        """Reports the point; returns whether to stop."""
        loop, at = self._loop, self._loop.at
        pull = at.grad - at.constraints.rows.T @ loop.multipliers
        return self._observer.accepted(
            Iterate(
                at.theta,
                at.loss,
                self._problem.pull(at.theta, pull),
                state=self._state(),
                logs={
                    "step": loop.step,
                    "violation": loop.violation(),
                    "complementarity": loop.gap,
                },
                # A point with a lower loss violates the constraints more.
                is_penalized=True,
            )
        )

    def _state(self) -> SolverState:
        at = self._loop.at
        arrays = {
            "theta": at.theta,
            "loss": np.float64(at.loss),
            "grad": at.grad,
            "multipliers": self._loop.multipliers,
        }
        return SolverState(self._key, arrays)

    def _judged(self, failure: str) -> Outcome | None:
        """The end at the present point, or `None` to continue.

        Args:
            failure: the status if it is no optimum.
        """
        problem, at = self._problem, self._loop.at
        if self._is_infeasible():
            return self._outcome(statuses.INFEASIBLE)
        if not problem.is_feasible(at.theta):
            return self._outcome(failure)
        is_small = problem.size <= MOST_NEWTON
        most = convergence.MOST_MEASURING + (2 * problem.size) * is_small
        if not problem.affords(most):
            return self._outcome(statuses.EVALUATION_LIMIT)
        promise = self._by_conditions() if is_small else self._by_own_steps()
        if promise is None:
            return self._outcome(None) if self._is_stopped else None
        noise = 0.0
        if convergence.is_promising(promise, at.loss, convergence.LEAST_GAIN):
            noise = convergence.measured_noise(
                lambda point: problem.value(problem.project(point)),
                at.theta,
                at.loss,
                problem.evaluation_eps,
            )
        verdict = convergence.judge(
            promise, at.loss, convergence.LEAST_GAIN, noise, failure
        )
        outcome = self._outcome(verdict.status)
        outcome.test, outcome.value = verdict.test, verdict.value
        outcome.threshold = verdict.threshold
        outcome.findings = f"{verdict.findings} {outcome.findings}"
        return outcome

    def _by_own_steps(self) -> float | None:
        """What is left to gain, if a run with a cleared memory gained nothing.

        Returns:
            The predicted decrease, or `None` where such a run is to begin.
        """
        loss = self._loop.at.loss
        before, self._tried = self._tried, loss
        if before is None or self._is_gain(before, loss):
            self._loop.clear()
            return None
        return self._loop.left

    def _by_conditions(self) -> float | None:
        """What is left to gain by the conditions of optimality.

        Returns:
            The predicted decrease, or `None` where a step has gained.
        """
        problem, loop, at = self._problem, self._loop, self._loop.at
        optimality = ConstrainedOptimality(problem, problem.value_and_grad)
        try:
            gain = optimality(at.theta, at.loss, at.grad)
        except np.linalg.LinAlgError:
            return np.inf  # The derivatives are too large.
        if self._is_gain(at.loss, gain.loss):
            _, multipliers = optimality.active(gain.theta, gain.grad)
            loop.go_to(loop.evaluated(gain.theta), multipliers)
            self._is_stopped = self._reported()
            return None
        return convergence.sober(gain.promise, gain.theta, gain.grad)

    def _is_gain(self, before: float, after: float) -> bool:
        eps = self._problem.evaluation_eps
        return convergence.is_gain(before, after, eps, convergence.LEAST_GAIN)

    def _outcome(self, status: str | None) -> Outcome:
        loop, at = self._loop, self._loop.at
        ends = np.cumsum(at.sizes)
        return Outcome(
            status,
            at.theta,
            at.loss,
            findings=_on_constraints(status, loop.violation()),
            is_penalized=True,
            evaluate=self._problem.evaluate,
            state=self._state(),
            multipliers=np.split(loop.multipliers, ends[:-1]),
        )


def _on_constraints(status: str | None, violation: float) -> str:
    """A sentence on the constraints at an end."""
    if status != statuses.INFEASIBLE:
        return f"The constraints hold to {violation:.2g}."
    return (
        "No step nearby makes the largest violation of the constraints, "
        f"{violation:.2g}, much smaller. From another start it may."
    )
