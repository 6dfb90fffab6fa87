"""Claims of SciPy's methods, which are tried before they are believed.

Where a method says that it has converged, or that it can go no further, two
runs begin anew from there: a short one of Newton's or quasi-Newton steps
(`fresh_run`), which also says how much of a decrease is left to be had, and
the method itself, its memory cleared, the loss rescaled, its tolerances off.
What gains more than a claim leaves open goes on. Under constraints the
conditions of optimality take the place of the short run.

A tolerance that the user gives is his own: a run that meets it has converged
by it, unless what is left to be had is large beside it.
"""

from typing import NamedTuple

import numpy as np
import scipy.optimize

from kormos.numerics import convergence
from kormos.numerics import stopping
from kormos.numerics.fresh_run import MOST_NEWTON
from kormos.numerics.fresh_run import try_to_gain
from kormos.numerics.stopping import Outcome
from kormos.optimizers.constrained_optimality import ConstrainedOptimality
from kormos.optimizers.scipy_call import ScipyCall
from kormos.optimizers.scipy_evaluator import Evaluation
from kormos.optimizers.scipy_evaluator import Halt
from kormos.optimizers.scipy_result import claimed
from kormos.optimizers.scipy_result import unscale

# Ends that are tried.
_CLAIMS = (
    stopping.CONVERGED,
    stopping.NOISE_FLOOR,
    stopping.LINE_SEARCH_FAILED,
    stopping.STALLED,
)

# How often a short run may gain where the method itself gains nothing.
_MOST_VAIN = 6
# After so many of them the method itself is called again.
_AGAIN_AT = 2

# By so much more than a user's tolerance a model may promise where that is met.
_BESIDE = 10.0


# A loss of fewer roundings is all rounding.
_ALL_ROUNDING = 1e3
# A decrease by a larger part of the loss is one, whatever the rounding is.
_SURE = 0.5


class _Noise(NamedTuple):
    """The rounding of the loss, and the size of the loss where it was seen."""

    size: float
    loss: float


class Settings(NamedTuple):
    """Options of a method.

    Attributes:
        first: those of the first call.
        again: those of later ones.
        given: what of both the user gave.
    """

    first: dict
    again: dict
    given: dict


class Claims:
    """Runs a method until what it claims holds.

    Args:
        spec: the `ScipyMethod`.
        settings: the `Settings`.
        problem: the `Problem`.
        evaluator: the `Evaluator`, at the start.
        report: as `Stage` has it.
        is_absolute: whether the loss keeps its scale.
    """

    def __init__(self, spec, settings, problem, evaluator, report, is_absolute):
        self._spec = spec
        self._settings = settings
        self._problem = problem
        self._evaluator = evaluator
        self._report = report
        self._is_absolute = is_absolute
        self._call = ScipyCall(spec, problem, evaluator, settings.given)
        self._raw, self._noise = None, _Noise(0.0, np.inf)
        self._calls = 0
        self._kept = evaluator.accepted
        self._is_feasible = problem.is_feasible(self._kept.theta)

    def __call__(self):
        """Runs, and returns an `Outcome`."""
        try:
            outcome = self._run()
        except Halt as halt:
            # A limit was reached within a trial.
            outcome = Outcome(halt.status, None, 0.0, detail=halt.detail)
        return self._finished(outcome)

    def _run(self):
        outcome, fresh, vain = self._called(), False, 0
        while outcome.status in _CLAIMS and self._is_feasible:
            if self._is_met(outcome):
                return outcome
            if not (fresh or self._is_small):
                # A few steps say less of many parameters than the method does.
                outcome, gained = self._tried_again(outcome)
                fresh, vain = not gained, 0 if gained else vain
                continue
            before = self._kept
            gain = self._fresh_run()
            if self._gains(before, gain.loss, outcome):
                if vain >= _MOST_VAIN:
                    return self._stalled(before, gain)
                self._go(gain)
                vain += 1
                if self._is_small and vain != _AGAIN_AT:
                    # Newton's steps may have reached the end.
                    continue
                outcome, gained = self._tried_again(outcome)
                fresh, vain = not gained, 0 if gained else vain
                continue
            verdict = self._judged(gain, outcome)
            if fresh or verdict.status in stopping.SUCCESSES:
                return verdict
            outcome, gained = self._tried_again(outcome)
            fresh = not gained
        if not self._is_feasible and outcome.status in _CLAIMS:
            outcome.status = stopping.INFEASIBLE
        return outcome

    # The method.

    def _called(self, limit=None):
        """A call from the kept point; what it claims.

        Args:
            limit: the most evaluations without a gain; before the first one
                nothing is reported. `None` for no limit.
        """
        evaluator, start = self._evaluator, self._kept
        mark = start
        is_again, is_trial = self._calls > 0, limit is not None
        options = self._settings.again if is_again else self._settings.first
        self._calls += 1
        if is_again:
            evaluator.stand_at(start)
            if not self._is_absolute:
                evaluator.rescale()
        evaluator.limit(limit)

        def on_iterate():
            nonlocal is_trial, mark
            self._keep()
            if self._seems_to_gain(mark, self._kept.loss):
                is_trial, mark = False, self._kept
                evaluator.limit(limit)
            return not is_trial and self._report(*evaluator.accepted)

        result, halt = self._call(options, on_iterate, is_again)
        evaluator.limit(None)
        if halt is not None:
            return Outcome(halt.status, None, 0.0, detail=halt.detail)
        unscale(result, evaluator.scale)
        if np.isfinite(result.x).all():
            # Not every method has shown its last point.
            evaluator.accept(result.x)
            self._keep()
        outcome = claimed(self._spec, self._problem, evaluator, result, options)
        if not is_trial or self._raw is None:
            self._raw = result
        return outcome

    def _tried_again(self, outcome):
        """The method once more, and whether it gained anything.

        Returns:
            What it claims where it gained, or else what was claimed before.
        """
        before, was_feasible = self._kept, self._is_feasible
        again = self._called(self._trial_limit())
        if again.status not in (*_CLAIMS, stopping.NON_FINITE):
            return again, True
        gained = self._gains(before, self._kept.loss, outcome)
        if gained or self._is_feasible > was_feasible:
            return again, True
        return outcome, False

    def _trial_limit(self):
        if not self._spec.gradient or self._problem.constraints:
            return None
        return convergence.trial_evaluations(
            self._problem.size, self._problem.epsilon
        )

    # The points.

    def _keep(self):
        """Keeps the accepted point if it is better: feasible, then lower."""
        point = self._evaluator.accepted
        if not np.isfinite(point.loss):
            return
        is_feasible = self._problem.is_feasible(point.theta)
        if self._is_feasible:
            if not is_feasible or point.loss > self._kept.loss:
                return
        self._kept, self._is_feasible = point, is_feasible

    def _go(self, gain):
        """Goes to the point that a short run has reached."""
        grad = gain.grad if self._spec.gradient else None
        self._evaluator.stand_at(Evaluation(gain.theta, gain.loss, grad))
        self._keep()
        if self._report(*self._evaluator.accepted):
            raise Halt

    def _evaluate(self, theta):
        self._evaluator.check_budget()
        return self._problem.value_and_grad(theta)

    def _value(self, theta):
        self._evaluator.check_budget()
        return self._problem.value(self._problem.project(theta))

    # What is left to be had.

    @property
    def _is_small(self):
        """Whether the short run takes Newton steps, or knows the conditions."""
        is_constrained = bool(self._problem.constraints)
        free = self._evaluator.start().size
        is_blind = not self._spec.gradient
        return is_constrained or is_blind or free <= MOST_NEWTON

    def _fresh_run(self):
        """A `Gain` from the kept point."""
        problem, (theta, loss, grad) = self._problem, self._kept
        if grad is None:
            loss, grad = self._evaluate(theta)
        if problem.constraints:
            return ConstrainedOptimality(problem, self._evaluate)(
                theta, loss, grad
            )
        return try_to_gain(
            self._evaluate,
            theta,
            loss,
            grad,
            problem.epsilon,
            problem.lower,
            problem.upper,
        )

    def _own_tolerance(self, outcome):
        """The user's own tolerance that was met, or zero."""
        given = outcome is not None and outcome.test in self._settings.given
        return outcome.threshold if given else 0.0

    def _is_met(self, outcome):
        """Whether a tolerance of the user's own is met."""
        tolerance = self._own_tolerance(outcome)
        if outcome.test == "f_target":
            return True
        if tolerance == 0 or self._problem.constraints:
            return False
        if outcome.test == "gtol" and outcome.value is not None:
            return True
        gain = self._fresh_run()
        left = self._kept.loss - gain.loss + gain.promise
        return left <= _BESIDE * tolerance * max(abs(gain.loss), 1.0)

    def _least_gain(self, loss, outcome):
        """The part of the loss that a claim leaves open."""
        tolerance = self._own_tolerance(outcome)
        part = _BESIDE * tolerance * max(abs(loss), 1.0) / (abs(loss) or 1.0)
        return max(part, convergence.LEAST_GAIN)

    def _gains(self, before, loss, outcome=None):
        """Whether a loss is lower than before by more than is left open."""
        if not self._seems_to_gain(before, loss, outcome):
            return False
        if before.loss - loss <= _SURE * abs(before.loss):
            # What was measured far above says nothing of the rounding here.
            if not abs(before.loss) > self._noise.loss / 2:
                self._measure(before.theta, before.loss)
        return self._seems_to_gain(before, loss, outcome)

    def _seems_to_gain(self, before, loss, outcome=None):
        return convergence.is_gain(
            before.loss,
            loss,
            self._problem.epsilon,
            self._least_gain(loss, outcome),
            self._noise.size if loss > self._noise.loss / 2 else 0.0,
        )

    def _measure(self, theta, loss):
        """Measures the rounding of the loss at a point."""
        size = convergence.measured_noise(
            self._value, theta, loss, self._problem.rounding
        )
        self._noise = _Noise(size, abs(loss))
        return size

    def _judged(self, gain, outcome):
        """The end at a point from which no run gained anything."""
        problem, loss = self._problem, gain.loss
        promise = convergence.sober(gain.promise, gain.theta, gain.grad)
        tolerance, noise = self._least_gain(loss, outcome), None
        if convergence.is_promising(promise, loss, tolerance):
            noise = self._measure(gain.theta, loss)
            if abs(loss) <= _ALL_ROUNDING * noise:
                promise = min(promise, noise)
        failure = outcome.status
        if failure != stopping.LINE_SEARCH_FAILED:
            failure = stopping.STALLED
        verdict = convergence.judge(promise, loss, tolerance, noise, failure)
        if not problem.constraints and not problem.is_bounded:
            verdict = convergence.confirmed(
                verdict,
                self._value,
                gain.theta,
                gain.grad,
                loss,
                noise,
                problem.epsilon,
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
        is_there = np.array_equal(outcome.theta, self._kept.theta)
        if is_there and outcome.status == verdict.status:
            # SciPy's own test, which holds.
            ended.test, ended.value = outcome.test, outcome.value
            ended.threshold = outcome.threshold
        return ended

    def _stalled(self, before, gain):
        text = (
            f"A short run of Newton's or quasi-Newton steps still lowers the "
            f"loss from {before.loss:.6g} to {gain.loss:.6g}, where the method "
            "itself gains nothing."
        )
        self._go(gain)
        return Outcome(stopping.STALLED, None, 0.0, findings=text)

    def _finished(self, outcome):
        """The outcome at the point that is kept."""
        theta, loss, grad = self._kept
        raw = self._raw
        if raw is None:
            raw = scipy.optimize.OptimizeResult(
                status=99, message="stopped by kormos", jac=grad
            )
        raw["x"], raw["fun"] = theta, loss
        raw.setdefault("nit", self._call.iterations)
        raw["nfev"] = self._problem.fg_evals
        raw["success"] = outcome.status in stopping.SUCCESSES
        if "constr" not in raw and grad is not None:
            raw["jac"] = grad
        outcome.theta, outcome.loss, outcome.raw = theta, loss, raw
        return outcome
