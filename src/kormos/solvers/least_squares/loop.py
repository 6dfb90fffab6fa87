"""The loop of Levenberg and Marquardt's method; see `levenberg_marquardt`."""

from typing import NamedTuple

import numpy as np

from kormos.solvers import convergence
from kormos.solvers import statuses
from kormos.solvers.convergence import FINEST
from kormos.solvers.least_squares.end import LeastSquaresEnd
from kormos.solvers.least_squares.local_models import Linearized
from kormos.solvers.least_squares.local_models import LocalModels
from kormos.solvers.least_squares.spectrum import Step
from kormos.solvers.least_squares.start_check import check_derivatives
from kormos.solvers.least_squares.trust_radius import Multiplicative
from kormos.solvers.least_squares.trust_radius import TrustRadius
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Damping
from kormos.solvers.protocols import Iterate
from kormos.solvers.protocols import LeastSquaresSettings
from kormos.solvers.protocols import Observer
from kormos.solvers.protocols import Point
from kormos.solvers.solver_state import SolverState
from kormos.types import Scalar
from kormos.types import Vector

KEY = "levenberg marquardt"

# The acceleration may be this part of a step, in the scaled norm. A larger one
# means that the outputs bend too much along the step.
_MOST_BENT = 0.75
# How often an iteration shortens its step because of that, without a trial.
_MOST_BENT_STEPS = 2

# A step is accepted if more than this part of the predicted decrease comes
# true, as in MINPACK's `lmder`.
_LEAST_RATIO = 1e-4
# A first step that does not halve the loss is too long if the longest column of
# J has changed by more than this factor. Our choice: with a milder factor runs
# end where sigmoid units are saturated, and a stricter one costs trials.
_ALIKE = 0.1
# The most steps of `_polish`, and the part of the loss by which it may rise in
# each of them. Our choice: with a smaller part, rounding of a loss of many rows
# would end it.
_MOST_POLISHING = 12
_POLISHED = 1e-10
# After this many iterations in a row with a decrease below `ftol` the run has
# converged. Our choice: a single short step may be one after rejected ones.
_STREAK = 3

# Ends that are tried before they are believed.
_CLAIMS = (
    statuses.CONVERGED,
    statuses.NOISE_FLOOR,
    statuses.LINE_SEARCH_FAILED,
)


class State(NamedTuple):
    """What a later run goes on from.

    Attributes:
        theta: the accepted point, `(size,)`.
        loss: the loss there.
        scale: the scale D of the parameters, `(size,)`.
        damping: the damping of the latest step.
        radius: the trust radius.
        streak: how many iterations in a row lowered the loss by next to
            nothing.
    """

    theta: Vector
    loss: Scalar
    scale: Vector
    damping: Scalar
    radius: Scalar
    streak: Scalar


class _Found(NamedTuple):
    """A point where the loss is lower.

    Attributes:
        theta: the point.
        loss: the loss there.
        here: what is known there.
        length: the 2-norm of the step.
        trials: how many points were tried.
    """

    theta: Vector
    loss: float
    here: Linearized
    length: float
    trials: int


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
            earlier: the `SolverState` to go on from, or `None`.
            observer: the `Observer`.

        Returns:
            An `Outcome`.
        """
        is_finite = self.begin(theta, earlier)
        grad = self._here.grad if is_finite else None
        if is_finite:
            self._problem.verify(self._problem.peek, self._theta)
        stop = observer.started(Point(self._theta, self._loss, grad))
        if not is_finite:
            return self._outcome(statuses.NON_FINITE)
        problem = self._problem
        most = problem.budget.evaluations
        if earlier is None and (most is None or most > 2):
            check_derivatives(
                problem,
                self._models,
                self._here,
                self._theta,
                self._loss,
            )
        outcome = None
        while not stop and outcome is None:
            outcome = self._ended()
            if outcome is None:
                stop, outcome = self._iterate(observer)
            if outcome is not None and outcome.status in _CLAIMS:
                outcome = self._tried(outcome)
        outcome = outcome or self._outcome(None)
        if outcome.status in statuses.SUCCESSES and not stop:
            self._polish(observer, outcome)
        outcome.theta, outcome.loss = self._theta, self._loss
        outcome.detail = self._here.model.name
        outcome.state = self.state()
        outcome.evaluate = self._models.evaluate
        if self._models.solver != "cg":
            outcome.hessian = self._models.matrix
        return outcome

    def begin(self, theta: Vector, earlier: SolverState | None) -> bool:
        """Evaluates the start; whether it is finite."""
        zero, size = np.float64(0), self._problem.size
        state = State(theta, zero, np.zeros(size), zero, zero, np.int32(0))
        if earlier is not None:
            restored = earlier.restored(
                KEY, state, theta, self._problem.rounding
            )
            earlier = None if restored is None else earlier
            state = state if restored is None else restored
        self._theta = np.array(state.theta)
        settings = self._settings
        self._models = LocalModels(
            self._problem,
            settings.linear_solver,
            settings.preset is None,
            state.scale,
            settings.acceleration,
        )
        self._accelerates = (
            settings.acceleration and self._models.solver != "cg"
        )
        self._control = self._new_control(state.damping, state.radius)
        self._streak, self._decrease = int(state.streak), 0.0
        self._loss = self._problem.value(self._theta)
        # The loss from which a run that knows nothing began, and how often it
        # gained nothing from there.
        self._anew, self._vain = self._loss, 0
        self._non_finite = 0
        if not (np.isfinite(self._loss) and self._linearize()):
            return False
        self._control.begin(self._here.model, self._theta, self._loss)
        if earlier is None and self._accelerates:
            self._trust_straight_lines()
        return True

    def _trust_straight_lines(self) -> None:
        """Lets the first step be the whole one where outputs are linear."""
        step = self._here.model.damped(0.0)
        if step.length > self._control.radius:
            bend = self._bend(step)
            if (
                bend is not None
                and self._here.model.scaled(bend) <= 1e-6 * step.length
            ):
                self._control.radius = step.length

    def step(self) -> Vector:
        """Goes one step from the start without looking around there.

        Returns:
            The point, the old one if no step lowers the loss.
        """
        found = self._search()
        return self._theta if isinstance(found, Outcome) else found.theta

    def logs(self) -> dict[str, float]:
        """The damping, for the History."""
        return self._control.logs()

    def state(self, theta: Vector | None = None) -> SolverState:
        """The `SolverState` at the accepted point, or at another."""
        return SolverState(
            KEY,
            State(
                self._theta if theta is None else theta,
                np.float64(self._loss),
                self._models.scale,
                np.float64(self._control.damping),
                np.float64(self._control.radius),
                np.int32(self._streak),
            )._asdict(),
        )

    def _new_control(self, damping: float, radius: float) -> Damping:
        if self._settings.preset == "matlab":
            # `trainlm` adds mu to J'J of the errors; the matrix here is that
            # of their mean square.
            return Multiplicative(damping, 2 / self._models.outputs)
        return TrustRadius(radius, damping)

    def _linearize(self) -> bool:
        """Makes the model of the loss at the point; whether it is finite."""
        here = self._models.at(self._theta, self._loss)
        if here is not None:
            self._here = here
        return here is not None

    def _ended(self) -> Outcome | None:
        """The end that the tests at the point call for, or `None`."""
        settings, loss = self._settings, abs(self._loss)
        spent = self._problem.spent()
        if spent is not None:
            return self._outcome(spent)
        promised = self._here.model.promise
        if promised is not None and promised <= settings.gtol * loss:
            return self._outcome(
                statuses.CONVERGED,
                "gtol",
                promised / (loss or 1),
                settings.gtol,
            )
        if self._streak >= _STREAK:
            return self._outcome(
                statuses.CONVERGED, "ftol", self._decrease, settings.ftol
            )
        return None

    def _tried(self, outcome: Outcome) -> Outcome | None:
        """Tries an end as if the run began here; the end if that holds.

        First the scale and the radius are taken from this point only. If no
        step gains anything then, parameters that have next to no effect here,
        and would run away, are held back.
        """
        if self._gains():
            self._anew, self._vain = self._loss, 0
        else:
            self._vain += 1
        models, is_sure = self._models, self._is_sure(outcome)
        most = 2 if models.is_uneven else 1
        if is_sure or self._vain > most or self._problem.spent() is not None:
            return self._judged(outcome)
        models.is_restrained = self._vain == 2
        models.forget()
        self._streak = 0
        if not self._linearize():
            return self._judged(outcome)
        self._control = self._new_control(damping=0.0, radius=0.0)
        self._control.begin(self._here.model, self._theta, self._loss)
        return None

    def _is_sure(self, outcome: Outcome) -> bool:
        """Whether an end needs no trial: its test only looks at this point."""
        is_tested = outcome.test == "gtol" and not self._models.is_stale
        return is_tested or outcome.test == "xtol"

    def _gains(self) -> bool:
        return convergence.is_gain(
            self._anew,
            self._loss,
            self._problem.epsilon,
            max(self._settings.ftol, self._settings.gtol),
        )

    def _judged(self, outcome: Outcome) -> Outcome:
        """The end at a point from which a run gained nothing."""
        if self._is_sure(outcome):
            return outcome
        end = LeastSquaresEnd(self._problem, self._settings.gtol)
        judged = end.judge(
            self._here, self._models.norms, self._theta, self._loss
        )
        if judged.status == statuses.CONVERGED and outcome.test == "ftol":
            judged.test, judged.value = outcome.test, outcome.value
            judged.threshold = outcome.threshold
        if self._non_finite:
            judged.findings += (
                " At points with a lower loss its derivatives were not finite "
                f"({self._non_finite} of them)."
            )
        return judged

    def _iterate(self, observer: Observer) -> tuple[bool, Outcome | None]:
        """One accepted step; whether to stop, and the end if there is one."""
        found, settings = self._search(), self._settings
        if isinstance(found, Outcome):
            return False, found
        length = np.linalg.norm(self._theta)
        self._decrease = (self._loss - found.loss) / abs(self._loss)
        small = self._decrease <= settings.ftol
        self._streak = self._streak + 1 if small else 0
        stop = self._move(found, observer)
        if not stop and found.length <= settings.xtol * length:
            share = float(found.length / length)
            return False, self._outcome(
                statuses.CONVERGED, "xtol", share, settings.xtol
            )
        return stop, None

    def _search(self) -> _Found | Outcome:
        """A step that lowers the loss: a `_Found`, or an `Outcome`."""
        problem, control, bent, trials = self._problem, self._control, 0, 0
        while True:
            step = control.step(self._here.model)
            vector = step.vector
            if self._accelerates:
                vector, is_bent = self._accelerated(step)
                if is_bent and bent < _MOST_BENT_STEPS:
                    bent += 1
                    control.shorten(step)
                    continue
            trial = problem.project(self._theta + vector)
            loss = problem.value(trial)
            trials += 1
            gain = self._loss - loss
            ratio = gain / step.promised if step.promised > 0 else 0.0
            if gain > 0 and (ratio > _LEAST_RATIO or problem.is_bounded):
                before = self._models.norms
                here = self._models.at(trial, loss)
                is_finite = here is not None
                if here and not self._is_far(before, loss):
                    control.accept(step, ratio)
                    length = float(np.linalg.norm(trial - self._theta))
                    return _Found(trial, loss, here, length, trials)
                # No step follows from there.
                self._models.norms = before
                self._non_finite += not is_finite
                loss = np.inf
            if step.promised <= self._rounding():
                return self._outcome(statuses.NOISE_FLOOR)
            # A trial of a claim looks at steps of all sizes in few trials.
            is_wild = self._vain > 0 or not loss < 100 * self._loss
            control.reject(step, is_wild)
            if control.is_exhausted:
                return self._outcome(statuses.LINE_SEARCH_FAILED)
            spent = problem.spent()
            if spent is not None:
                return self._outcome(spent)

    def _is_far(self, before: Vector, loss: float) -> bool:
        """Whether a first step of a guessed radius has left all that is known.

        A start where units are nearly saturated looks like one whose parameters
        are far too small. The first step is then so long that all units
        saturate, and the run would end there, on a plateau.

        Args:
            before: the norms of the columns of J at the start.
            loss: the loss after the step.
        """
        if not self._control.is_guess or loss <= self._loss / 2:
            return False
        share = self._models.norms.max() / before.max()
        return not _ALIKE <= share <= 1 / _ALIKE

    def _rounding(self) -> float:
        """The rounding of the loss, as far as its dtype explains it."""
        epsilon = self._problem.epsilon
        moved = epsilon * self._here.model.scaled(self._theta)
        return epsilon * abs(self._loss) + moved**2 / 2

    def _accelerated(self, step: Step) -> tuple[Vector, bool]:
        """The step with half its acceleration; whether that is too large."""
        bend = self._bend(step)
        if bend is None:
            return step.vector, True
        if self._here.model.scaled(bend) > _MOST_BENT * step.length:
            return step.vector, True
        return step.vector + bend / 2, False

    def _bend(self, step: Step) -> Vector | None:
        """The acceleration along a step, or `None` if it is not finite."""
        slope = self._models.bend(self._theta, step.vector)
        if not np.isfinite(slope).all():
            return None
        return self._here.model.bend(slope, step.damping)

    def _move(self, found: _Found, observer: Observer) -> bool:
        """Goes to a point and reports it; whether to stop."""
        self._theta, self._loss = found.theta, found.loss
        self._here = found.here
        logs = {"step": found.length, "trials": found.trials}
        logs.update(self.logs())
        grad, state = self._here.grad, self.state()
        return observer.accepted(
            Iterate(self._theta, self._loss, grad, state, logs)
        )

    def _polish(self, observer: Observer, outcome: Outcome) -> None:
        """Gauss-Newton steps while they contract, below the loss's rounding.

        Near a minimum the loss is flat to rounding in a region in which the
        parameters lose half of their digits; the steps know more.
        """
        if self._problem.epsilon > FINEST or self._models.solver == "cg":
            return
        # A step in fast directions is followed by one in slow ones: it is the
        # longer of the two before that must be longer.
        before = last = np.inf
        for _ in range(_MOST_POLISHING):
            step = self._here.model.damped(0.0)
            contracts = step.length <= 0.9 * max(before, last)
            if not (contracts and self._here.model.has_full_rank):
                return
            if self._problem.spent() is not None:
                return
            before, last = last, step.length
            trial = self._problem.project(self._theta + step.vector)
            loss = self._problem.value(trial)
            if not loss <= self._loss + _POLISHED * abs(self._loss):
                return
            if np.all(np.abs(trial - self._theta) <= FINEST * np.abs(trial)):
                return
            here = self._models.at(trial, loss)
            if here is None:
                return
            taken = float(np.linalg.norm(trial - self._theta))
            outcome.is_polished = True
            if self._move(_Found(trial, loss, here, taken, 1), observer):
                return

    def _outcome(
        self,
        status: str | None,
        test: str | None = None,
        value: float | None = None,
        threshold: float | None = None,
    ) -> Outcome:
        return Outcome(status, self._theta, self._loss, test, value, threshold)
