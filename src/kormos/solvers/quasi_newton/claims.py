"""Claims of convergence of a quasi-Newton run, which are verified.

The compiled loop stops where a test of convergence holds or a line search
fails. From there the run continues for a few evaluations without its memory,
and with the parameters in new units. The run only ends if that gains nothing.
"""

from collections.abc import Callable

import numpy as np

from kormos.arithmetic.vectors import to_array
from kormos.backend.common import as_tensor
from kormos.solvers import convergence
from kormos.solvers import fresh_run
from kormos.solvers import statuses
from kormos.solvers.outcome import Outcome
from kormos.solvers.parameter_units import sizes_of
from kormos.solvers.parameter_units import units_of
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Tolerances
from kormos.solvers.quasi_newton import state as states
from kormos.solvers.quasi_newton.driver import CompiledLoop
from kormos.solvers.quasi_newton.end import Claim
from kormos.solvers.quasi_newton.end import QuasiNewtonEnd
from kormos.solvers.quasi_newton.rounding import Rounding
from kormos.solvers.quasi_newton.state import State
from kormos.types import Vector

# The ends that are verified.
_CLAIMS = (
    states.GRADIENT,
    states.NOISE,
    states.DECREASE,
    states.LINE_SEARCH,
)

# If more than this part of the loss is predicted as a decrease, the loss falls
# towards zero, and every point leaves something to gain. Newton steps are not
# tried then.
_MOST_LEFT = 1e-3
# If the loss has a large rounding, there is one longer trial, with this number
# of additional evaluations for each parameter. Our choice: with fewer the trial
# may again gain less than the rounding, and more take longer at the end of each
# such run.
_LONGER = 2
# A run ends after this many claims in a row that did not hold, if together they
# lowered the loss by no more than the second part of it. Our choice: otherwise
# a run that gains almost nothing could continue forever.
_MOST_IN_VAIN, _LEAST_IN_ALL = 50, 1e-3
# A parameter whose curvature is not known may still lower the loss if a change
# by its own size would change the loss by this part, to first order. Our
# choice: the trial that follows takes ten evaluations.
_LEAST_SLOPE = 1e-8


class Claims:
    """Decides, after each call of the loop, whether a run has ended.

    Args:
        loop: the compiled loop, its start evaluated.
        problem: the problem.
        tolerances: those of the optimizer.
        rounding: what is known of the rounding of the loss.
        call: function that evaluates the start of a trial.
    """

    def __init__(
        self,
        loop: CompiledLoop,
        problem: Problem,
        tolerances: Tolerances,
        rounding: Rounding,
        call: Callable[[], None],
    ):
        self._loop = loop
        self._problem = problem
        self._rounding = rounding
        self._call = call
        self._xtol = tolerances.xtol
        self._end = QuasiNewtonEnd(loop, problem, tolerances)
        self._most_evaluations = convergence.trial_evaluations(
            problem.size, problem.evaluation_eps
        )
        self._is_long = False
        # A run that has just begun is its own trial, without a limit.
        self._claim = self._claim_here()
        self._is_tried = True
        self._units: list[Vector] = []
        self._promises: list[float] = []
        self._claimed_losses: list[float] = []
        self._began: int | None = None

    @property
    def last_evaluation(self) -> int | None:
        """The count of evaluations at which a trial ends, or `None`."""
        if not self._is_tried or self._began is None:
            return None
        return self._began + self._most_evaluations

    def look(self) -> Outcome | None:
        """Looks at what a call has reached; the outcome if the run ends."""
        if int(self._state.status) == states.STEP:
            return self._stepped()
        if self._is_tried:
            if self._is_gain(self._claim.loss, float(self._state.loss)):
                self._is_tried = False
            elif self._is_claimed() or self._is_over():
                self._promises.append(self._promise())
                if self._is_too_costly(max(self._promises)):
                    return self._at(statuses.EVALUATION_LIMIT)
                return self._next()
        if not self._is_tried and self._is_claimed():
            if self._is_in_vain():
                return self._stalled()
            if self._is_too_costly(float(self._state.search.promise)):
                return self._at(statuses.EVALUATION_LIMIT)
            self._begin()
        return None

    def _is_too_costly(self, promise: float) -> bool:
        """Whether to measure the rounding would exceed the user's limit."""
        affords = self._problem.affords(convergence.MOST_MEASURING)
        return self._is_promising(promise) and not affords

    def _at(self, status: str, findings: str = "") -> Outcome:
        """The outcome at the state, with a status."""
        state = self._state
        theta, loss = to_array(state.theta), float(state.loss)
        return Outcome(status, theta, loss, findings=findings)

    def _is_in_vain(self) -> bool:
        """Whether many claims that did not hold have gained almost nothing."""
        loss = float(self._state.loss)
        self._claimed_losses.append(loss)
        if len(self._claimed_losses) <= _MOST_IN_VAIN:
            return False
        gained = self._claimed_losses[-1 - _MOST_IN_VAIN] - loss
        return gained <= _LEAST_IN_ALL * abs(loss)

    def _stalled(self) -> Outcome:
        text = (
            "New runs from the end still lower the loss, but the last "
            f"{_MOST_IN_VAIN} of them together lowered it by less than "
            f"{_LEAST_IN_ALL:g} of itself."
        )
        return self._at(statuses.STALLED, text)

    def _stepped(self) -> Outcome:
        """The end by `xtol`, which is off by default, and so is not tried."""
        state = self._state
        return Outcome(
            statuses.CONVERGED,
            to_array(state.theta),
            float(state.loss),
            "xtol",
            float(state.value),
            self._xtol,
        )

    @property
    def _state(self) -> State:
        return self._loop.state

    def _is_claimed(self) -> bool:
        return int(self._state.status) in _CLAIMS

    def _is_over(self) -> bool:
        """Whether the trial has taken all of its evaluations."""
        last = self.last_evaluation
        return last is not None and int(self._state.evaluations) >= last

    def _is_gain(self, before: float, after: float) -> bool:
        """Whether a decrease of the loss is more than a claim allows."""
        return convergence.is_gain(
            before,
            after,
            self._problem.evaluation_eps,
            self._end.least_gain,
            self._rounding.measured or 0.0,
        )

    def _promise(self) -> float:
        """The decrease of the loss that is predicted at the state."""
        state = self._state
        theta, grad = to_array(state.theta), to_array(state.grad)
        pull = self._problem.pull(theta, grad)
        promise = float(state.search.promise)
        if not promise > 0 and pull.any():
            # A step of length zero says nothing.
            promise = np.inf
        return convergence.sober(promise, theta, pull)

    def _claim_here(self, kept: State | None = None) -> Claim:
        state = self._state
        theta = to_array(state.theta)
        return Claim(
            int(state.status),
            float(state.value),
            theta,
            float(state.loss),
            kept,
        )

    def _begin(self) -> None:
        """Begins to verify what the state claims."""
        kept = self._loop.copy()
        claim = self._claim_here(kept)
        if self._is_promising(float(self._state.search.promise)):
            self._rounding.measure(claim)
            if self._rounding.has_grown and kept is not None:
                # The line search uses it from now on, and no trial is needed.
                self._loop.search_again(kept)
                return
        self._claim, self._is_tried, self._promises = claim, True, []
        self._units = [*self._other_units(), np.ones(self._problem.size)]
        self._try(self._units.pop(0))

    def _next(self) -> Outcome | None:
        """The next trial of the claim, or the end that holds."""
        is_start = self._began is None
        if is_start:
            state = self._state
            self._claim = self._claim._replace(
                status=int(state.status), value=float(state.value)
            )
        is_known = self._rounding.measured is not None
        if not is_known and self._is_promising(max(self._promises)):
            self._rounding.measure(self._claim)
            if is_start and self._rounding.has_shrunk:
                # The search gave up because it took the rounding for larger
                # than it is.
                self._units = [np.ones(self._problem.size)]
        may_go_on = self._problem.spent() is None
        if self._units and may_go_on:
            self._try(self._units.pop(0))
            return None
        is_rough = self._rounding.is_rough(self._claim.loss)
        if is_rough and may_go_on and not self._is_long:
            self._is_long = True
            self._most_evaluations += _LONGER * self._problem.size
            self._try(np.ones(self._problem.size))
            return None
        if self._goes_lower():
            return None
        return self._settled()

    def _goes_lower(self) -> bool:
        """Tries Newton steps, if the Hessian takes few evaluations.

        If they lead to a lower point, the run starts again there.
        """
        state = self._state
        theta, grad = to_array(state.theta), to_array(state.grad)
        loss = float(state.loss)
        is_small = self._problem.size <= fresh_run.MOST_NEWTON
        most = _MOST_LEFT * convergence.size_of_loss(loss)
        pull = self._problem.pull(theta, grad)
        if not (is_small and pull.any()) or max(self._promises) > most:
            return False
        gain = fresh_run.try_to_gain(
            self._loop.evaluate,
            theta,
            loss,
            grad,
            self._problem.evaluation_eps,
            self._problem.lower,
            self._problem.upper,
        )
        self._problem.fg_evals = int(self._state.evaluations)
        pull = self._problem.pull(gain.theta, gain.grad)
        promise = convergence.sober(gain.promise, gain.theta, pull)
        # A Hessian predicts more reliably than the few steps of a trial,
        # unless the loss is not finite where it was measured.
        earlier = self._promises if gain.non_finite else []
        self._promises = [promise, *earlier]
        # A trial may have gone up, within rounding.
        is_lower = self._is_gain(min(loss, self._claim.loss), gain.loss)
        if is_lower:
            self._is_tried = False
            units = to_array(self._state.units)
            self._loop.begin_anew(gain.theta, units)
            self._call()
        else:
            self._loop.replace(
                theta=theta, loss=np.float64(loss), grad=as_tensor(grad)
            )
        return is_lower

    def _try(self, units: Vector) -> None:
        """Begins a trial: a run from the claimed point, in given units."""
        self._began = int(self._state.evaluations)
        self._loop.begin_anew(self._claim.theta, units)
        self._call()

    def _other_units(self) -> list[Vector]:
        """New units of the parameters, if they are worth a trial."""
        state, found = self._state, []
        spread, theta = to_array(state.spread), to_array(state.theta)
        units = units_of(spread)
        if not np.array_equal(units, to_array(state.units)):
            found.append(units)
        # Beside much steeper ones, a parameter may not have moved at all.
        pull = self._problem.pull(theta, to_array(state.grad))
        slopes = np.abs(pull * theta)[spread == 0]
        if slopes.max(initial=0.0) > _LEAST_SLOPE * abs(float(state.loss)):
            found.append(units_of(sizes_of(theta, None) ** -2.0))
        return found

    def _is_promising(self, promise: float) -> bool:
        """Whether a predicted decrease is more than the tolerance."""
        loss = float(self._state.loss)
        return convergence.is_promising(promise, loss, self._end.tolerance)

    def _settled(self) -> Outcome:
        """The outcome at a point from which no trial gained anything."""
        claim = self._claim
        outcome = self._end.judge(
            claim, max(self._promises), self._rounding.measured
        )
        self._restore(claim.kept, outcome.theta)
        return outcome

    def _restore(self, kept: State | None, theta: Vector) -> None:
        """Gives the state the memory that it had before the trials."""
        self._problem.fg_evals = int(self._state.evaluations)
        if kept is None:
            return
        self._loop.replace(
            **kept._replace(
                theta=theta,
                # This makes a later run compute its direction again.
                grad=np.zeros_like(theta),
                iterations=self._state.iterations,
                evaluations=self._state.evaluations,
            )._asdict()
        )
