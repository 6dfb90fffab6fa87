"""The loop of Levenberg and Marquardt's method; see `levenberg_marquardt`."""

from typing import NamedTuple

import numpy as np

from kormos.arithmetic.vectors import norm
from kormos.solvers import statuses
from kormos.solvers import surroundings
from kormos.solvers.convergence import size_of_loss
from kormos.solvers.least_squares.claims import Claims
from kormos.solvers.least_squares.local_models import LocalModels
from kormos.solvers.least_squares.polishing import polishing_steps
from kormos.solvers.least_squares.secant_term import SecantTerm
from kormos.solvers.least_squares.start_check import check_derivatives
from kormos.solvers.least_squares.step_search import Found
from kormos.solvers.least_squares.step_search import StepSearch
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Iterate
from kormos.solvers.protocols import LeastSquaresSettings
from kormos.solvers.protocols import Observer
from kormos.solvers.protocols import Point
from kormos.solvers.saddle import way_down
from kormos.solvers.solver_state import SolverState
from kormos.types import Scalar
from kormos.types import Vector

KEY = "levenberg marquardt"

# After this many iterations in a row with a decrease below `ftol` the run has
# converged. Our choice: a single short step may be one after rejected ones.
_STREAK = 3


class State(NamedTuple):
    """The state from which a later run continues.

    Attributes:
        theta: the accepted point, `(size,)`.
        loss: the loss there.
        scale: the scale D of the parameters, `(size,)`.
        damping: the damping of the latest step.
        radius: the trust radius.
        streak: the number of iterations in a row that lowered the loss by
            almost nothing.
        term: see `SecantTerm`.
    """

    theta: Vector
    loss: Scalar
    scale: Vector
    damping: Scalar
    radius: Scalar
    streak: Scalar
    term: SecantTerm


class LeastSquaresRun:
    """One run.

    Args:
        problem: the `Problem`.
        settings: the `LevenbergMarquardt`.
    """

    def __init__(self, problem: Problem, settings: LeastSquaresSettings):
        self._problem = problem
        self._settings = settings

    def __call__(
        self, theta: Vector, earlier: SolverState | None, observer: Observer
    ) -> Outcome:
        """Runs from `theta`.

        Args:
            theta: the start.
            earlier: the `SolverState` to continue from, or `None`.
            observer: the `Observer`.

        Returns:
            An `Outcome`.
        """
        is_finite = self.begin(theta, earlier)
        theta, loss, _ = self._start
        if not is_finite:
            observer.started(self._start)
            return Outcome(statuses.NON_FINITE, theta, loss)
        problem, models = self._problem, self._models
        problem.verify(Problem.peek, theta, loss)
        stop = observer.started(self._start)
        most = problem.budget.evaluations
        if earlier is None and (most is None or most > 2):
            check_derivatives(problem, models, self._here, theta, loss)
        outcome = None if stop else self._iterate(observer)
        if outcome is None:
            outcome = self._outcome(None)
        elif outcome.status in statuses.SUCCESSES:
            for found in polishing_steps(problem, models, self._here):
                outcome.is_polished = True
                if self._move(found, observer):
                    break
        outcome.theta, outcome.loss = self._here.theta, self._here.loss
        outcome.detail = self._here.model.name
        outcome.state = self.state()
        outcome.evaluate = models.evaluate
        outcome.hessian = models.matrix
        return outcome

    def begin(self, theta: Vector, earlier: SolverState | None) -> bool:
        """Evaluates the start.

        Args:
            theta: the start.
            earlier: the `SolverState` to continue from, or `None`.

        Returns:
            Whether the loss and its derivatives are finite there.
        """
        problem, settings = self._problem, self._settings
        zero = np.float64(0)
        known = problem.size if settings.preset is None else 0
        state = State(
            theta,
            zero,
            np.zeros(problem.size),
            zero,
            zero,
            np.int32(0),
            SecantTerm.unknown(known),
        )
        if earlier is not None:
            restored = earlier.restored(KEY, state, theta, problem.storage_eps)
            earlier = None if restored is None else earlier
            state = state if restored is None else restored
        theta = np.array(state.theta)
        self._models = LocalModels(
            problem,
            settings.linear_solver,
            settings.preset is None,
            state.scale,
            settings.acceleration,
        )
        self._search = StepSearch(
            problem,
            self._models,
            settings,
            state.damping,
            state.radius,
            state.term,
        )
        self._streak, self._decrease = int(state.streak), 0.0
        loss = problem.value(theta)
        self._claims = Claims(problem, settings, self._models, loss)
        here = self._models.at(theta, loss) if np.isfinite(loss) else None
        if here is None:
            self._start = Point(theta, loss, None)
            return False
        self._start, self._here = Point(theta, loss, here.grad), here
        self._search.begin(here)
        if earlier is None:
            self._search.trust_linear_outputs(here)
        return True

    def step(self) -> Vector:
        """Makes one step from the start, without a test of convergence there.

        Returns:
            The point, the old one if no step lowers the loss.
        """
        found = self._search(self._here)
        return (found.here if isinstance(found, Found) else self._here).theta

    def logs(self) -> dict[str, float]:
        """The damping, for the History."""
        return self._search.control.logs()

    def state(self, theta: Vector | None = None) -> SolverState:
        """The `SolverState` at the accepted point, or at another."""
        here, control = self._here, self._search.control
        return SolverState(
            KEY,
            State(
                here.theta if theta is None else theta,
                np.float64(here.loss),
                self._models.scale,
                np.float64(control.damping),
                np.float64(control.radius),
                np.int32(self._streak),
                self._search.term,
            ),
        )

    def _iterate(self, observer: Observer) -> Outcome | None:
        """Iterates to an end; `None` if the observer asked for it."""
        while True:
            outcome = self._ended()
            if outcome is None:
                stop, outcome = self._advance(observer)
                if stop:
                    return None
            if outcome is None:
                continue
            claims, loss = self._claims, self._here.loss
            if claims.holds(outcome, loss) or not self._begins_anew():
                self._hold_nothing_back()
                outcome = claims.judged(
                    outcome, self._here, self._search.non_finite
                )
                found = self._way_down(outcome)
                if found is None:
                    return outcome
                if self._move(found, observer):
                    return None
                self._begins_anew()

    def _ended(self) -> Outcome | None:
        """The end that the tests at the point call for, or `None`."""
        settings, loss = self._settings, abs(self._here.loss)
        spent = self._problem.spent()
        if spent is not None:
            return self._outcome(spent)
        promised = self._here.model.promise(settings.gtol * loss)
        if promised is not None and promised <= settings.gtol * loss:
            return self._outcome(
                statuses.CONVERGED,
                "gtol",
                promised / size_of_loss(loss),
                settings.gtol,
            )
        if self._streak >= _STREAK:
            return self._outcome(
                statuses.CONVERGED, "ftol", self._decrease, settings.ftol
            )
        return None

    def _way_down(self, outcome: Outcome) -> Found | None:
        """A lower point, if an end is a saddle point where J is singular."""
        here, problem = self._here, self._problem
        is_end = outcome.status == statuses.CONVERGED and here.loss != 0
        if not is_end or here.model.has_full_rank or self._settings.preset:
            return None
        if problem.spent() is not None or problem.is_bounded:
            return None
        start = here.model.flat(
            np.random.default_rng(0).normal(size=here.theta.size)
        )
        if start is None:
            return None
        below = way_down(
            self._models.evaluate,
            surroundings.Point(here.theta, here.loss, here.grad),
            start,
            1 / here.model.scale,
            problem.evaluation_eps,
        )
        if below is None:
            return None
        there = self._models.at(below.theta, below.loss)
        if there is None:
            return None
        return Found(there, norm(below.theta - here.theta), 1)

    def _begins_anew(self) -> bool:
        """Begins anew at the point; returns whether its model is finite."""
        models, here = self._models, self._here
        models.is_restrained = self._claims.restrains
        models.forget()
        self._streak = 0
        again = models.at(here.theta, here.loss)
        if again is None:
            return False
        self._here = again
        self._search.begin_anew(again)
        return True

    def _hold_nothing_back(self) -> None:
        """Lifts the restraint of the latest trial.

        In its model, parameters with almost no effect seem to have none.
        """
        models, here = self._models, self._here
        if not models.is_restrained or self._problem.spent() is not None:
            return
        models.is_restrained = False
        self._here = models.at(here.theta, here.loss) or here

    def _advance(self, observer: Observer) -> tuple[bool, Outcome | None]:
        """Makes a step; returns whether to stop, and the end if any."""
        before, settings = self._here, self._settings
        found = self._search(before, self._claims.is_trial)
        if isinstance(found, str):
            return False, self._outcome(found)
        # A loss may cross zero.
        size = max(abs(before.loss), abs(found.here.loss))
        self._decrease = (before.loss - found.here.loss) / size
        small = self._decrease <= settings.ftol
        self._streak = self._streak + 1 if small else 0
        stop = self._move(found, observer)
        length = norm(before.theta)
        if not stop and 0 < found.length <= settings.xtol * length:
            share = float(found.length / length)
            return False, self._outcome(
                statuses.CONVERGED, "xtol", share, settings.xtol
            )
        return stop, None

    def _move(self, found: Found, observer: Observer) -> bool:
        """Goes to a point and reports it; returns whether to stop."""
        self._here = here = found.here
        logs = {"step": found.length, "trials": found.trials, **self.logs()}
        return observer.accepted(
            Iterate(here.theta, here.loss, here.grad, self.state(), logs)
        )

    def _outcome(
        self,
        status: str | None,
        test: str | None = None,
        value: float | None = None,
        threshold: float | None = None,
    ) -> Outcome:
        theta, loss = self._here.theta, self._here.loss
        return Outcome(status, theta, loss, test, value, threshold)
