"""One run of a quasi-Newton method: calls, reports, and claims that are tried.

The compiled loop stops where a test of convergence holds or a line search
fails. Neither is believed before it is tried: the memory is cleared, and the
run goes on for a few evaluations as if it had just begun. Only where that
gains nothing has the run ended.
"""

import math
import time
from typing import Any
from typing import NamedTuple

import numpy as np
from keras import ops

from kormos import backend
from kormos.numerics import convergence
from kormos.numerics import stopping
from kormos.numerics.stopping import Outcome
from kormos.numerics.vectors import to_array
from kormos.optimizers import quasi_newton_state as states
from kormos.optimizers.quasi_newton_calls import CompiledLoop

_NO_LIMIT = 2**31 - 1

# Ends that are tried before they are believed.
_CLAIMS = (
    states.GRADIENT,
    states.NOISE,
    states.DECREASE,
    states.STEP,
    states.LINE_SEARCH,
)


class _Claim(NamedTuple):
    """An end that is being tried.

    Attributes:
        status: the state's status there, or `RUNNING` for the very start.
        value: the value of the test that held.
        promise: the decrease of the loss that the curvature promised there.
        loss: the loss there.
        evaluations: how many had been made.
        kept: a copy of the state there, or `None`.
    """

    status: int
    value: float
    promise: float
    loss: float
    evaluations: int
    kept: Any


class QuasiNewtonRun:
    """One run.

    Args:
        problem: the `Problem`.
        optimizer: the `QuasiNewton`, for its tolerances.
        report: as `Stage` has it.
        keep: function of a state, or `None`, that makes it what a later run
            goes on from.
    """

    def __init__(self, problem, optimizer, report, keep):
        self._problem = problem
        self._optimizer = optimizer
        self._report = report
        self._keep = keep
        self._pace = _Pace(problem.budget.deadline)
        # By so much of itself the loss is rounded.
        self._noise = problem.epsilon
        self._measured = None
        self._most_tried = convergence.trial_evaluations(
            problem.size, problem.epsilon
        )

    def __call__(self, method, state, earlier):
        """Runs.

        Args:
            method: the method of curvature.
            state: the `State` to begin from.
            earlier: the state of an earlier run that it is, or `None`.

        Returns:
            An `Outcome`.
        """
        self._loop = CompiledLoop(method, self._problem, state)
        first = self._goal = int(state.iterations)
        with backend.wide():
            stop = self._start(earlier)
            outcome = None
            # A run that has just begun is its own trial.
            self._claim = self._claim_here(is_start=True)
            while not stop and outcome is None:
                outcome = self._ended() or self._tried()
                if outcome is None:
                    if int(self._state.iterations) == self._goal:
                        self._goal = _next_goal(
                            self._problem, self._goal, first
                        )
                    stop = self._advance()
            if outcome is None:
                outcome = self._outcome(None)
                # The end may be one that no trial changes.
                ended = self._ended()
                if ended is not None and ended.status is None:
                    outcome = ended
        return outcome

    @property
    def _state(self):
        return self._loop.state

    def _start(self, earlier):
        """Evaluates the start and reports it; returns whether to stop."""
        self._call()
        if earlier is not None:
            fields = _as_it_was(self._state, earlier, self._problem.epsilon)
            self._loop.replace(**fields)
            self._keep(self._state)
        state = self._state
        self._problem.fg_evals = int(state.evaluations)
        theta, grad = to_array(state.theta), to_array(state.grad)
        return self._report(theta, float(state.loss), grad)

    def _advance(self):
        """Goes on to the next look; returns whether to stop."""
        done = int(self._state.iterations)
        self._call()
        return self._report_since(done)

    def _call(self):
        spent = int(self._state.evaluations)
        tolerances, evaluations = self._limits(spent)
        # An interrupt leaves a state that may be half changed.
        self._keep(None)
        self._loop.advance(tolerances, evaluations, self._goal)
        state = self._state
        self._keep(state)
        self._pace.note(int(state.evaluations) - spent)
        if self._problem.on_evaluation is not None:
            self._problem.on_evaluation(float(state.latest))

    def _limits(self, spent):
        """The tolerances of a call, and the count that ends it."""
        problem, optimizer = self._problem, self._optimizer
        budget = problem.budget
        evaluations = [_NO_LIMIT, spent + self._pace.affordable()]
        if budget.evaluations is not None:
            evaluations.append(budget.evaluations)
        if problem.on_evaluation is not None or problem.is_streamed:
            evaluations.append(spent + 1)
        if self._is_trying_again():
            most = self._claim.evaluations + self._most_tried
            evaluations.append(max(most, spent + 1))
        target = -np.inf if budget.target is None else budget.target
        tolerances = (
            optimizer.gtol,
            optimizer.ftol,
            optimizer.xtol,
            self._noise,
            target,
        )
        return tolerances, min(evaluations)

    def _report_since(self, done):
        """Reports the iterations of a call; the last one has its point."""
        state, problem = self._state, self._problem
        count = int(state.iterations) - done
        rows = ops.convert_to_numpy(state.rows)[:count].tolist()
        stop = False
        for i, (loss, grad, step, evaluations, resets) in enumerate(rows):
            problem.fg_evals = int(evaluations)
            theta = to_array(state.theta) if i == count - 1 else None
            stop = stop or self._report(
                theta, loss, grad, step=step, resets=resets
            )
        problem.fg_evals = int(state.evaluations)
        return stop

    def _ended(self):
        """The end that is no claim, or `None`."""
        status = int(self._state.status)
        if status == states.NON_FINITE:
            return self._outcome(stopping.NON_FINITE)
        if status == states.TARGET:
            return self._outcome(None)
        spent = self._problem.spent()
        return None if spent is None else self._outcome(spent)

    def _tried(self):
        """Tries the claim of the state, if any; the end that holds."""
        status, claim = int(self._state.status), self._claim
        if claim is not None:
            if self._gains(claim):
                claim = self._claim = None
            elif status in _CLAIMS or self._is_tried(claim):
                return self._settled(claim)
        if status in _CLAIMS:
            self._try_again()
        return None

    def _gains(self, claim):
        """Whether the trial of a claim shows that it does not hold."""
        return convergence.is_gain(
            claim.loss,
            float(self._state.loss),
            self._problem.epsilon,
            max(self._optimizer.ftol, self._optimizer.gtol**2),
            self._measured or 0.0,
        )

    def _is_trying_again(self):
        claim = getattr(self, "_claim", None)
        return claim is not None and claim.status != states.RUNNING

    def _is_tried(self, claim):
        spent = int(self._state.evaluations) - claim.evaluations
        again = claim.status != states.RUNNING
        return again and spent >= self._most_tried

    def _claim_here(self, is_start=False, kept=None):
        state = self._state
        return _Claim(
            states.RUNNING if is_start else int(state.status),
            float(state.value),
            float(state.search.promise),
            float(state.loss),
            int(state.evaluations),
            kept,
        )

    def _try_again(self):
        """Goes on where the state is, to try what it claims.

        Where the rounding turns out to be larger than the dtype explains, it
        is only that the line search takes it into account from now on.
        Otherwise the memory is cleared.
        """
        kept = self._loop.copy()
        self._claim = self._claim_here(kept=kept)
        if self._is_promising(self._claim.promise, self._claim.loss):
            before = self._noise
            self._measure()
            if self._noise > 4 * before and kept is not None:
                self._claim = None
                self._loop.search_again(kept)
                return
        self._loop.begin_anew()
        self._call()

    def _is_promising(self, promise, loss):
        return convergence.is_promising(promise, loss, self._optimizer.gtol**2)

    def _measure(self):
        """Measures the rounding of the loss at the state's point."""
        state = self._state
        theta, loss = to_array(state.theta), float(state.loss)
        self._measured = convergence.measured_noise(
            self._loop.value, theta, loss, self._problem.rounding
        )
        self._problem.fg_evals = int(self._state.evaluations)
        if loss != 0:
            self._noise = min(self._measured / abs(loss), 2.0**-4)
        self._loop.replace(theta=theta, loss=np.float64(loss))

    def _settled(self, claim):
        """The end at a point from which a trial gained nothing."""
        state = self._state
        loss, promise = float(state.loss), float(state.search.promise)
        tolerance = self._optimizer.gtol**2
        tried_again = claim.status != states.RUNNING
        status = claim.status if tried_again else int(state.status)
        if tried_again and status in (states.GRADIENT, states.NOISE):
            # The whole memory knew more than that of the trial.
            promise = min(claim.promise, promise)
        theta, grad = to_array(state.theta), to_array(state.grad)
        if self._measured is None and self._is_promising(promise, loss):
            before = self._noise
            self._measure()
            if self._noise < before / 4 and not tried_again:
                # The search gave up at a rounding that is not there.
                self._loop.replace(theta=theta)
                self._loop.begin_anew()
                self._claim = self._claim_here(kept=None)
                self._call()
                return None
        failure = (
            stopping.LINE_SEARCH_FAILED
            if status == states.LINE_SEARCH
            else stopping.STALLED
        )
        verdict = convergence.judge(
            promise, loss, tolerance, self._measured, failure
        )
        outcome = self._outcome(verdict.status, theta, loss)
        outcome.test, outcome.value = verdict.test, verdict.value
        outcome.threshold, outcome.findings = verdict[3:]
        if promise <= tolerance * abs(loss):
            outcome.test, outcome.threshold = "gtol", tolerance
        if outcome.status not in stopping.SUCCESSES:
            step = float(np.linalg.norm(theta)) or 1.0
            outcome.findings += " " + convergence.compare_slope(
                self._loop.value, theta, grad, loss, self._measured, step
            )
        if claim.kept is not None:
            self._loop.replace(**claim.kept._asdict())
        self._keep(self._state)
        self._problem.fg_evals = int(self._state.evaluations)
        return outcome

    def _outcome(self, status, theta=None, loss=None):
        state = self._state
        return Outcome(
            status,
            to_array(state.theta) if theta is None else theta,
            float(state.loss) if loss is None else loss,
        )


def _as_it_was(state, earlier, noise):
    """What makes the state that of an earlier run, if its loss is the same.

    Another loss, of other data say, goes on with the curvature alone.
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
    names = "loss", "grad", "direction", "search"
    return {name: getattr(earlier, name) for name in names}


class _Pace:
    """How many evaluations fit into the time that is left.

    A compiled call cannot look at the clock; calls become shorter towards the
    deadline, and the last is of one evaluation.
    """

    def __init__(self, deadline):
        self._deadline = deadline
        self._began = 0.0
        self._seconds = math.inf
        self._calls = 0

    def affordable(self):
        if self._deadline is None:
            return _NO_LIMIT
        self._began = time.perf_counter()
        # The first call compiles: its time says nothing.
        if self._calls < 2:
            return 1
        left = self._deadline - self._began
        return max(1, int(min(left / (2 * self._seconds), _NO_LIMIT)))

    def note(self, evaluations):
        if self._deadline is not None:
            seconds = time.perf_counter() - self._began
            self._seconds = min(self._seconds, seconds / evaluations)
            self._calls += 1


def _next_goal(problem, goal, first):
    """The count of iterations after which to look again."""
    most = problem.budget.iterations
    if most is None:
        return goal + problem.stride
    return min(goal + problem.stride, first + most)
