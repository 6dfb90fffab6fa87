"""What can still be gained at a point where a method of SciPy has ended."""

from typing import Any
from typing import NamedTuple

import numpy as np

from kormos.solvers import convergence
from kormos.solvers import statuses
from kormos.solvers.constrained.optimality import ConstrainedOptimality
from kormos.solvers.fresh_run import MOST_NEWTON
from kormos.solvers.fresh_run import Gain
from kormos.solvers.fresh_run import try_to_gain
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.solvers.scipy.evaluator import Evaluation
from kormos.solvers.scipy.evaluator import Evaluator
from kormos.solvers.scipy.methods import ScipyMethod
from kormos.types import Vector

# If a user's tolerance is met, a model may still predict this many times as
# much. Our choice: SciPy's tests look at one step, and more is left than one
# step gains.
_TIMES_TOLERANCE = 10.0
# A loss of at most this many roundings counts as rounding only. Our choice: at
# most three of its digits are right.
_ALL_ROUNDING = 1e3
# A decrease of more than this part of the loss counts whatever the rounding is.
_SURE = 0.5


class _Noise(NamedTuple):
    """The rounding of the loss, and the size of the loss where it was seen."""

    size: float
    loss: float


class Trials:
    """Verifies claims, and judges points.

    Args:
        spec: what the method takes.
        problem: the problem.
        evaluator: the problem as SciPy sees it, for the limits of the run.
        given: the options that the user gave.
    """

    def __init__(
        self,
        spec: ScipyMethod,
        problem: Problem,
        evaluator: Evaluator,
        given: dict[str, Any],
    ):
        self._spec = spec
        self._problem = problem
        self._evaluator = evaluator
        self._given = given
        self._noise = _Noise(0.0, np.inf)

    @property
    def is_small(self) -> bool:
        """Whether the short run comes first, because it tells enough.

        It does if it takes Newton steps, under constraints, and for methods
        without gradients.
        """
        is_constrained = bool(self._problem.constraints)
        free = self._evaluator.start().size
        is_blind = not self._spec.gradient
        return is_constrained or is_blind or free <= MOST_NEWTON

    def fresh_run(self, point: Evaluation) -> Gain:
        """What a short run from a point gains."""
        problem, (theta, loss, grad) = self._problem, point
        if grad is None:
            loss, grad = self._evaluate(theta)
        if not np.isfinite(grad).all():
            return Gain(theta, loss, grad, np.nan, 0, 0)
        if problem.constraints:
            return ConstrainedOptimality(problem, self._evaluate)(
                theta, loss, grad
            )
        return try_to_gain(
            self._evaluate,
            theta,
            loss,
            grad,
            problem.evaluation_eps,
            problem.lower,
            problem.upper,
        )

    def _own_tolerance(self, outcome: Outcome | None) -> float:
        """The tolerance that was met, if the user gave it; else zero."""
        if outcome is None or outcome.test not in self._given:
            return 0.0
        return float(outcome.threshold or 0.0)

    def is_met(self, point: Evaluation, outcome: Outcome) -> bool:
        """Whether a tolerance that the user gave is met at a point."""
        tolerance = self._own_tolerance(outcome)
        if outcome.test == "f_target":
            return True
        if tolerance == 0 or self._problem.constraints:
            return False
        if outcome.test == "gtol" and outcome.value is not None:
            return True
        gain = self.fresh_run(point)
        left = point.loss - gain.loss + gain.promise
        return left <= _TIMES_TOLERANCE * tolerance * max(abs(gain.loss), 1.0)

    def _least_gain(self, loss: float, outcome: Outcome | None) -> float:
        """The part of the loss that a claim allows to be gained."""
        tolerance = self._own_tolerance(outcome)
        allowed = _TIMES_TOLERANCE * tolerance * max(abs(loss), 1.0)
        part = allowed / convergence.size_of_loss(loss)
        return max(part, convergence.LEAST_GAIN)

    def gains(
        self, before: Evaluation, loss: float, outcome: Outcome | None = None
    ) -> bool:
        """Whether a loss is lower than before by more than a claim allows."""
        if not self.seems_to_gain(before, loss, outcome):
            return False
        if before.loss - loss <= _SURE * abs(before.loss):
            # A rounding that was measured at a much higher loss does not
            # count here.
            if not abs(before.loss) > self._noise.loss / 2:
                self._measure(before.theta, before.loss)
        return self.seems_to_gain(before, loss, outcome)

    def seems_to_gain(
        self, before: Evaluation, loss: float, outcome: Outcome | None = None
    ) -> bool:
        """Like `gains`, with the rounding that was measured before."""
        return convergence.is_gain(
            before.loss,
            loss,
            self._problem.evaluation_eps,
            self._least_gain(loss, outcome),
            self._noise.size if loss > self._noise.loss / 2 else 0.0,
        )

    def _measure(self, theta: Vector, loss: float) -> float:
        """Measures the rounding of the loss at a point."""
        size = convergence.measured_noise(
            self._value, theta, loss, self._problem.evaluation_eps
        )
        self._noise = _Noise(size, abs(loss))
        return size

    def judged(
        self, point: Evaluation, gain: Gain, outcome: Outcome
    ) -> Outcome:
        """The outcome at a point from which no run gained anything.

        Args:
            point: the point.
            gain: what a short run found there.
            outcome: what SciPy claims there.
        """
        problem, loss = self._problem, gain.loss
        promise = convergence.sober(gain.promise, gain.theta, gain.grad)
        tolerance, noise = self._least_gain(loss, outcome), 0.0
        if convergence.is_promising(promise, loss, tolerance):
            noise = convergence.vanished_noise(
                self._measure(gain.theta, loss),
                promise,
                self._value,
                gain.theta,
                loss,
                problem.evaluation_eps,
            )
            if abs(loss) <= _ALL_ROUNDING * noise:
                promise = min(promise, noise)
        failure = outcome.status
        if failure != statuses.LINE_SEARCH_FAILED:
            failure = statuses.STALLED
        verdict = convergence.judge(promise, loss, tolerance, noise, failure)
        if not problem.constraints and not problem.is_bounded:
            verdict = convergence.confirmed(
                verdict,
                self._value,
                gain.theta,
                gain.grad,
                loss,
                noise,
                problem.evaluation_eps,
            )
        ended = Outcome(
            verdict.status,
            None,
            0.0,
            verdict.test,
            verdict.value,
            verdict.threshold,
            detail=outcome.detail,
            findings=verdict.findings,
        )
        is_there = np.array_equal(outcome.theta, point.theta)
        if is_there and outcome.status == verdict.status:
            # The claim holds, so the outcome names SciPy's own test.
            ended.test, ended.value = outcome.test, outcome.value
            ended.threshold = outcome.threshold
        return ended

    def _evaluate(self, theta: Vector) -> tuple[float, Vector]:
        self._evaluator.check_budget()
        return self._problem.value_and_grad(theta)

    def _value(self, theta: Vector) -> float:
        self._evaluator.check_budget()
        return self._problem.value(self._problem.project(theta))
