"""Levenberg and Marquardt's method with a penalty that the data choose.

See `evidence` for the references and the units.

Differs from them in:

1. steps are those of `step_search`, for the loss and the penalty together; the
   preset has `trainbr`'s damping. The penalty begins almost at zero, as in
   Foresee and Hagan, and at most doubles with a step. That of `trainbr` begins
   as if the data determined all parameters. If the weights begin small, it
   drives all of them to zero, which is a stationary point too;
2. the run has converged where neither a step nor a new estimate of the
   hyperparameters changes anything: a minimum of the penalized loss whose
   weights are stationary for the evidence;
3. parameters may be in groups, each with its own alpha.
"""

import numpy as np

from kormos.solvers import statuses
from kormos.solvers.convergence import size_of_loss
from kormos.solvers.least_squares.end import LeastSquaresEnd
from kormos.solvers.least_squares.evidence import EvidenceModel
from kormos.solvers.least_squares.evidence import Hyperparameters
from kormos.solvers.least_squares.evidence_records import KEY
from kormos.solvers.least_squares.evidence_records import State
from kormos.solvers.least_squares.evidence_records import groups_of
from kormos.solvers.least_squares.evidence_records import logs
from kormos.solvers.least_squares.local_models import Linearized
from kormos.solvers.least_squares.local_models import LocalModels
from kormos.solvers.least_squares.penalty import PenalizedProblem
from kormos.solvers.least_squares.polishing import polishing_steps
from kormos.solvers.least_squares.secant_term import SecantTerm
from kormos.solvers.least_squares.squares_check import checked_squares
from kormos.solvers.least_squares.start_check import check_derivatives
from kormos.solvers.least_squares.step_search import Found
from kormos.solvers.least_squares.step_search import StepSearch
from kormos.solvers.least_squares.trust_radius import Multiplicative
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Iterate
from kormos.solvers.protocols import LeastSquaresSettings
from kormos.solvers.protocols import Observer
from kormos.solvers.protocols import Point
from kormos.solvers.solver_state import SolverState
from kormos.types import Array
from kormos.types import Vector

# Hyperparameters are settled if all later estimates together will change them
# by no more than the first part, or if the latest estimate has changed them by
# no more than the second part, which rounding hides. The change before must be
# small as well. Our choice: they then have nine digits.
_SETTLED, _HIDDEN, _SMALL = 1e-9, 1e-13, 1e-8
# Where rounding hides what steps gain, this many estimates in a row are made
# before the run ends. Our choice: they converge linearly, and take no
# evaluation in float32 and a few in float64.
_MOST_ROUNDS = 100
# `trainbr`'s first mu.
_FIRST_MU = 5e-3


class EvidenceRun:
    """One run.

    Args:
        problem: the `Problem`.
        settings: the `LevenbergMarquardt`.
    """

    def __init__(self, problem: Problem, settings: LeastSquaresSettings):
        self._problem = problem
        self._settings = settings
        self._penalized = PenalizedProblem(problem)
        groups, self._names = groups_of(problem, settings.regularization)
        self._groups = groups
        # By how much the latest two estimates have changed the hyperparameters.
        self._changes = np.inf, np.inf

    def __call__(
        self, theta: Vector, earlier: SolverState | None, observer: Observer
    ) -> Outcome:
        """Runs from `theta`: see `LeastSquaresRun`."""
        state = self._restored(theta, earlier)
        theta = np.array(state.theta)
        loss = self._problem.value(theta)
        self._problem.verify(Problem.peek, theta, loss)
        self._penalized.fg_evals = self._problem.fg_evals
        if not (np.isfinite(loss) and self._begin(theta, loss, state)):
            observer.started(Point(theta, loss, None))
            return Outcome(statuses.NON_FINITE, theta, loss)
        here = self._here
        stop = observer.started(Point(theta, loss, here.grad))
        most = self._problem.budget.evaluations
        try:
            if earlier is None and (most is None or most > 2):
                check_derivatives(
                    self._penalized, self._models, here, theta, here.loss
                )
            outcome = None if stop else self._iterate(observer)
        finally:
            self._penalized.hand_over_counts()
        outcome = outcome or self._outcome(None)
        outcome.theta, outcome.loss = self._here.theta, self._own_loss()
        outcome.detail = self._here.model.name
        outcome.state = self._state()
        outcome.is_penalized = True
        return outcome

    def _restored(self, theta: Vector, earlier: SolverState | None) -> State:
        problem, zero = self._problem, np.float64(0)
        count = len(self._names)
        zeros = np.zeros(problem.size), np.zeros(count)
        state = State(theta, zero, zeros[0], zero, zero, zeros[1], zero)
        if earlier is None:
            return state
        return earlier.restored(KEY, state, theta, problem.storage_eps) or state

    def _begin(self, theta: Vector, loss: float, state: State) -> bool:
        """Begins at a point; returns whether its derivatives are finite."""
        penalized, settings = self._penalized, self._settings
        squares = checked_squares(penalized, theta)
        if squares is None:
            return False
        self._model = EvidenceModel(squares, self._groups)
        self._models = LocalModels(
            penalized,
            settings.linear_solver,
            settings.preset is None,
            state.scale,
            settings.acceleration,
        )
        self._search = StepSearch(
            penalized,
            self._models,
            settings,
            state.damping,
            state.radius,
            SecantTerm.unknown(0),
        )
        self._hyper = Hyperparameters(state.alpha, float(state.beta))
        if not self._hyper.beta > 0:
            largest = self._largest(theta)
            if not np.isfinite(largest):
                return False
            self._hyper = self._model.begin(theta, loss, largest)
        if settings.preset == "matlab":
            first = float(state.damping) or _FIRST_MU
            self._search.control = Multiplicative(first, 1.0)
        if not self._penalize(theta, loss):
            return False
        self._search.begin(self._here)
        return True

    def _iterate(self, observer: Observer) -> Outcome | None:
        """Iterates to an end; `None` if the observer asked for it."""
        rounds = 0
        while True:
            ended = self._ended()
            if ended is not None:
                return ended
            before = self._here
            found = self._search(before)
            if not isinstance(found, str):
                rounds = 0
            else:
                if found not in (
                    statuses.NOISE_FLOOR,
                    statuses.LINE_SEARCH_FAILED,
                ):
                    return self._outcome(found)
                rounds += 1
                if self._is_settled or rounds > _MOST_ROUNDS:
                    return self._judged()
                found = self._polished(before)
            if self._move(found, observer):
                return None
            share = found.length / (float(np.linalg.norm(before.theta)) or 1.0)
            xtol = self._settings.xtol
            if not rounds and self._is_settled and share <= xtol:
                return self._outcome(statuses.CONVERGED, "xtol", share, xtol)
            # `trainbr` keeps its mu.
            if rounds and self._settings.preset is None:
                self._search.begin_anew(self._here)

    @property
    def _is_settled(self) -> bool:
        """Whether later estimates will no longer change the hyperparameters."""
        before, change = self._changes
        if change <= _HIDDEN:
            return True
        # They converge linearly, so the later changes form a geometric series.
        # A single change may be small by chance.
        if not change < before <= _SMALL:
            return False
        return change / (1 - change / before) <= _SETTLED

    def _ended(self) -> Outcome | None:
        """The end that the tests at the point call for, or `None`."""
        spent = self._penalized.spent()
        if spent is not None:
            return self._outcome(spent)
        loss, gtol = abs(self._here.loss), self._settings.gtol
        promised = self._here.model.promise(gtol * loss)
        assert promised is not None  # This model has a matrix.
        if self._is_settled and promised <= gtol * loss:
            share = promised / size_of_loss(loss)
            return self._outcome(statuses.CONVERGED, "gtol", share, gtol)
        return None

    def _polished(self, here: Linearized) -> Found:
        """The point itself, or one with more digits of the minimum."""
        found = Found(here, 0.0, 0)
        for polished in polishing_steps(self._penalized, self._models, here):
            length = np.linalg.norm(polished.here.theta - here.theta)
            trials = found.trials + polished.trials
            found = Found(polished.here, float(length), trials)
        return found

    def _move(self, found: Found, observer: Observer) -> bool:
        """Goes to a point, estimates anew there, and reports it.

        Returns:
            Whether to stop.
        """
        self._here, control = found.here, self._search.control
        theta, loss = found.here.theta, self._own_loss()
        matrix = self._known(theta)[2]
        evidence = self._model.measure(
            theta, loss, matrix, self._models.solver == "rows", self._hyper
        )
        row = {
            "step": found.length,
            "trials": found.trials,
            **control.logs(),
            **logs(self._names, self._hyper, evidence),
            "regularized_loss": float(self._here.loss),
        }
        before = self._hyper
        new = self._model.estimate(theta, loss, evidence, self._largest(theta))
        self._hyper = new.limited(before)
        self._penalize(theta, loss)
        self._penalized.hand_over_counts()
        iterate = Iterate(
            theta, loss, self._here.grad, self._state(), row, True
        )
        self._changes = self._changes[1], self._hyper.change(before)
        return observer.accepted(iterate)

    def _penalize(self, theta: Vector, loss: float) -> bool:
        """Sets the penalty at a point; returns whether all is finite there."""
        penalized, control = self._penalized, self._search.control
        penalized.weights = self._model.penalties(self._hyper)
        if isinstance(control, Multiplicative):
            # `trainbr` adds mu to beta J'J + alpha I; the matrix is that times
            # the unit.
            control.unit = 2 * self._model.unit / self._hyper.beta
        here = self._models.at(theta, loss + penalized.penalty(theta))
        if here is not None:
            self._here = here
        return here is not None

    def _known(self, theta: Vector) -> tuple[float, Vector, Array]:
        """Loss, gradient and matrix of the loss alone, at the latest point."""
        known = self._penalized.matrix
        if self._models.solver == "rows":
            return known.rows(theta, self._settings.acceleration)
        return known.normal_equations(theta, self._settings.acceleration)

    def _own_loss(self) -> float:
        """The loss alone at the accepted point."""
        return self._known(self._here.theta)[0]

    def _largest(self, theta: Vector) -> float:
        """The largest curvature of the loss in a single parameter."""
        matrix = self._known(theta)[2]
        if self._models.solver == "rows":
            curvatures = np.einsum("mp,mp->p", matrix, matrix)
        else:
            curvatures = np.diagonal(matrix)
        return float(curvatures.max()) or 1.0

    def _state(self) -> SolverState:
        control = self._search.control
        state = State(
            self._here.theta,
            np.float64(self._own_loss()),
            self._models.scale,
            np.float64(control.damping),
            np.float64(control.radius),
            self._hyper.alpha,
            np.float64(self._hyper.beta),
        )
        return SolverState(KEY, state._asdict())

    def _judged(self) -> Outcome:
        """The verdict on a point from which nothing gains anything."""
        end = LeastSquaresEnd(self._penalized, self._settings.gtol)
        here = self._here
        return end.judge(here, self._models.norms, here.theta, here.loss)

    def _outcome(
        self,
        status: str | None,
        test: str | None = None,
        value: float | None = None,
        threshold: float | None = None,
    ) -> Outcome:
        theta, loss = self._here.theta, self._here.loss
        return Outcome(status, theta, loss, test, value, threshold)
