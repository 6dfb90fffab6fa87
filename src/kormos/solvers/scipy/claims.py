"""Claims of convergence of SciPy's methods, which are verified.

If a method says that it has converged, or that it cannot get further, two runs
start from there: a short one of Newton or quasi-Newton steps (`fresh_run`),
which also predicts the remaining decrease; and a run of the method itself, with
its memory cleared, the loss rescaled, and its tolerances off. If either gains
more than a claim allows, the run continues. Under constraints, the conditions
of optimality take the place of the short run.

A tolerance that the user gives is respected: a run that meets it has converged,
unless the predicted decrease is large compared with it.
"""

from typing import Any
from typing import NamedTuple

import numpy as np
import scipy.optimize

from kormos.solvers import convergence
from kormos.solvers import statuses
from kormos.solvers.fresh_run import Gain
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Iterate
from kormos.solvers.protocols import Observer
from kormos.solvers.scipy.call import ScipyCall
from kormos.solvers.scipy.evaluator import Evaluation
from kormos.solvers.scipy.evaluator import Evaluator
from kormos.solvers.scipy.evaluator import Halt
from kormos.solvers.scipy.methods import ScipyMethod
from kormos.solvers.scipy.result import claimed
from kormos.solvers.scipy.result import failure_at
from kormos.solvers.scipy.result import unscale
from kormos.solvers.scipy.trials import Trials

# The ends that are verified.
_CLAIMS = (
    statuses.CONVERGED,
    statuses.NOISE_FLOOR,
    statuses.LINE_SEARCH_FAILED,
    statuses.STALLED,
)

# A short run may lower the loss this often where the method itself does not.
_MOST_VAIN = 6
# After this many of them the method itself is called again.
_AGAIN_AT = 2


class Settings(NamedTuple):
    """Options of a method.

    Attributes:
        first: those of the first call.
        again: those of later ones.
        given: the options that the user gave.
    """

    first: dict[str, Any]
    again: dict[str, Any]
    given: dict[str, Any]


class Claims:
    """Runs a method until its claim of convergence holds.

    Args:
        spec: the `ScipyMethod`.
        settings: the `Settings`.
        problem: the `Problem`.
        evaluator: the `Evaluator`, at the start.
        observer: the `Observer`.
        is_absolute: whether the loss is not scaled.
    """

    def __init__(
        self,
        spec: ScipyMethod,
        settings: Settings,
        problem: Problem,
        evaluator: Evaluator,
        observer: Observer,
        is_absolute: bool,
    ):
        self._spec = spec
        self._settings = settings
        self._problem = problem
        self._evaluator = evaluator
        self._observer = observer
        self._is_absolute = is_absolute
        self._call = ScipyCall(spec, problem, evaluator, settings.given)
        self._trials = Trials(spec, problem, evaluator, settings.given)
        self._raw = None
        self._calls = 0
        self._has_reported = False
        self._kept = evaluator.accepted
        self._is_feasible = problem.is_feasible(self._kept.theta)

    def __call__(self) -> Outcome:
        """Runs, and returns an `Outcome`."""
        try:
            outcome = self._run()
        except Halt as halt:
            # A limit was reached within a trial.
            outcome = Outcome(halt.status, None, 0.0, detail=halt.detail)
        return self._finished(outcome)

    def _run(self) -> Outcome:
        outcome, fresh, vain = self._called(), False, 0
        while outcome.status in _CLAIMS:
            if not self._is_feasible:
                if self._calls > 1:
                    outcome.status = failure_at(self._problem, self._kept.theta)
                    return outcome
                # A tolerance may have ended it before the constraints held.
                outcome = self._called()
                continue
            if self._trials.is_met(self._kept, outcome):
                return outcome
            if not (fresh or self._trials.is_small):
                # For many parameters, a few steps tell less than the method
                # itself.
                outcome, gained = self._tried_again(outcome)
                fresh, vain = not gained, 0 if gained else vain
                continue
            before = self._kept
            gain = self._trials.fresh_run(self._kept)
            if self._trials.gains(before, gain.loss, outcome):
                if vain >= _MOST_VAIN:
                    return self._stalled(before, gain)
                self._go(gain)
                vain += 1
                if self._trials.is_small and vain != _AGAIN_AT:
                    # Newton's steps may have reached the end.
                    continue
                outcome, gained = self._tried_again(outcome)
                fresh, vain = not gained, 0 if gained else vain
                continue
            verdict = self._trials.judged(self._kept, gain, outcome)
            if fresh or verdict.status in statuses.SUCCESSES:
                return verdict
            outcome, gained = self._tried_again(outcome)
            fresh = not gained
        return outcome

    def _called(self, limit: int | None = None) -> Outcome:
        """Calls the method from the kept point; returns what it claims.

        Args:
            limit: the most evaluations without a gain; nothing is reported
                before the first gain. `None` for no limit.
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

        def on_iterate() -> bool:
            nonlocal is_trial, mark
            self._keep()
            if self._trials.seems_to_gain(mark, self._kept.loss):
                is_trial, mark = False, self._kept
                evaluator.limit(limit)
            return not is_trial and self._accepted()

        result, halt = self._call(options, on_iterate, is_again)
        evaluator.limit(None)
        self._has_reported = not is_trial
        if halt is not None:
            return Outcome(halt.status, None, 0.0, detail=halt.detail)
        unscale(result, evaluator.scale)
        if np.isfinite(result.x).all():
            # Not every method calls back with its last point.
            evaluator.accept(result.x)
            self._keep()
        outcome = claimed(
            self._spec,
            self._problem,
            evaluator,
            result,
            options,
            self._kept.theta,
        )
        if not is_trial or self._raw is None:
            self._raw = result
        return outcome

    def _tried_again(self, outcome: Outcome) -> tuple[Outcome, bool]:
        """Calls the method once more; returns also whether it gained anything.

        Returns:
            What it claims if it gained, else the earlier outcome.
        """
        before, was_feasible = self._kept, self._is_feasible
        again = self._called(self._trial_limit())
        if again.status not in (*_CLAIMS, statuses.NON_FINITE):
            return again, True
        gained = self._trials.gains(before, self._kept.loss, outcome)
        if gained or self._is_feasible > was_feasible:
            return again, True
        if not self._has_reported:
            # SciPy's own test was made at the claimed point.
            self._kept = before
        return outcome, False

    def _trial_limit(self) -> int | None:
        if not self._spec.gradient or self._problem.constraints:
            return None
        return convergence.trial_evaluations(
            self._problem.size, self._problem.evaluation_eps
        )

    def _keep(self) -> None:
        """Keeps the accepted point if it is better: feasible, then lower."""
        point = self._evaluator.accepted
        if not np.isfinite(point.loss):
            return
        is_feasible = self._problem.is_feasible(point.theta)
        if self._is_feasible:
            if not is_feasible or point.loss > self._kept.loss:
                return
        self._kept, self._is_feasible = point, is_feasible

    def _go(self, gain: Gain) -> None:
        """Moves to the point that a short run has reached."""
        grad = gain.grad if self._spec.gradient else None
        self._evaluator.stand_at(Evaluation(gain.theta, gain.loss, grad))
        self._keep()
        if self._accepted():
            raise Halt

    def _accepted(self) -> bool:
        return self._observer.accepted(Iterate(*self._evaluator.accepted))

    def _stalled(self, before: Evaluation, gain: Gain) -> Outcome:
        text = (
            "A short run of Newton's or quasi-Newton steps still lowers the "
            f"loss from {before.loss:.6g} to {gain.loss:.6g}, although the "
            "method itself gains nothing."
        )
        self._go(gain)
        return Outcome(statuses.STALLED, None, 0.0, findings=text)

    def _finished(self, outcome: Outcome) -> Outcome:
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
        raw["success"] = outcome.status in statuses.SUCCESSES
        if "constr" not in raw and grad is not None:
            raw["jac"] = grad
        elif "grad" in raw:
            raw["grad"] = grad
        outcome.theta, outcome.loss, outcome.raw = theta, loss, raw
        return outcome
