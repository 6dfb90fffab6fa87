"""The verdict on the end of a quasi-Newton run: see `solvers/convergence`."""

from typing import NamedTuple

from kormos.arithmetic.vectors import to_array
from kormos.solvers import convergence
from kormos.solvers import statuses
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Tolerances
from kormos.solvers.quasi_newton import state as states
from kormos.solvers.quasi_newton.driver import CompiledLoop
from kormos.solvers.quasi_newton.state import State
from kormos.types import Vector


class Claim(NamedTuple):
    """An end that is being tried.

    Attributes:
        status: the state's status there.
        value: the value of the test that held there.
        theta: the point, `(size,)`.
        loss: the loss there.
        kept: a copy of the state there, or `None`.
    """

    status: int
    value: float
    theta: Vector
    loss: float
    kept: State | None


class QuasiNewtonEnd:
    """Judges a point from which no trial gained anything.

    Args:
        loop: the compiled loop, whose state is at the point.
        problem: the problem.
        tolerances: those of the optimizer.

    Attributes:
        tolerance: a predicted decrease of this part of the loss is small.
        least_gain: a decrease of this part of the loss is small.
    """

    def __init__(
        self, loop: CompiledLoop, problem: Problem, tolerances: Tolerances
    ):
        self._loop = loop
        self._problem = problem
        self._gtol, self._ftol = tolerances.gtol, tolerances.ftol
        self.tolerance = self._gtol**2
        self.least_gain = max(self._ftol, self.tolerance)

    def judge(
        self, claim: Claim, promise: float, noise: float | None
    ) -> Outcome:
        """The outcome of a run that ends at the point of the state.

        Args:
            claim: what was claimed there.
            promise: the decrease that is predicted there.
            noise: the measured rounding of the loss, or `None` if it was not
                measured.
        """
        state, problem = self._loop.state, self._problem
        theta, grad = to_array(state.theta), to_array(state.grad)
        loss = float(state.loss)
        failure = (
            statuses.LINE_SEARCH_FAILED
            if claim.status == states.LINE_SEARCH
            else statuses.STALLED
        )
        if noise is not None:
            noise = convergence.vanished_noise(
                noise,
                promise,
                self._loop.value,
                theta,
                loss,
                problem.evaluation_eps,
            )
        by_decrease = claim.status == states.DECREASE
        tolerance = self.least_gain if by_decrease else self.tolerance
        verdict = convergence.judge(promise, loss, tolerance, noise, failure)
        # If the user gave a looser tolerance, meeting it is enough.
        if self.least_gain <= convergence.LEAST_GAIN:
            verdict = convergence.confirmed(
                verdict,
                self._loop.value,
                theta,
                problem.pull(theta, grad),
                loss,
                noise,
                problem.evaluation_eps,
                problem.project,
            )
        outcome = Outcome(
            verdict.status,
            theta,
            loss,
            verdict.test,
            verdict.value,
            verdict.threshold,
            findings=verdict.findings,
        )
        if verdict.status == statuses.CONVERGED:
            self._name_tolerance(outcome, claim, promise)
        return outcome

    def _name_tolerance(
        self, outcome: Outcome, claim: Claim, promise: float
    ) -> None:
        """Names the user's own tolerance, if the run met it."""
        if promise <= self.tolerance * abs(outcome.loss):
            share = promise / convergence.size_of_loss(outcome.loss)
            outcome.test, outcome.value = "gtol", share**0.5
            outcome.threshold = self._gtol
        elif claim.status == states.DECREASE:
            outcome.test, outcome.value = "ftol", claim.value
            outcome.threshold = self._ftol
