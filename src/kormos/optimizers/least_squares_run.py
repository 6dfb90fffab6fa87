"""The loop of Levenberg and Marquardt's method; see `levenberg_marquardt`."""

from typing import NamedTuple

import numpy as np

from kormos.numerics import conjugate_gradients
from kormos.numerics import spectrum
from kormos.numerics import stopping
from kormos.numerics.stopping import Outcome
from kormos.optimizers.damping import Multiplicative
from kormos.optimizers.damping import TrustRadius
from kormos.optimizers.native import FINE
from kormos.optimizers.solver_state import SolverState

KEY = "levenberg marquardt"

# A dense matrix of more parameters is not formed: with its eigenvectors and
# their workspace it would take more than this many bytes.
_MOST_BYTES = 2**30

# The part of its step by which the curve of the outputs may leave it.
_MOST_BENT = 0.75
# How often an iteration shortens its step for that, without a trial.
_MOST_BENT_STEPS = 2

_LEAST_RATIO = 1e-4
_MOST_POLISHING = 12
_POLISHED = 1e-10
_STREAK = 3
_NOTHING = "loss over that at the start"
_PROMISE = "relative decrease that the model promises"


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
        first: the loss at the very start.
    """

    theta: np.ndarray
    loss: np.ndarray
    scale: np.ndarray
    damping: np.ndarray
    radius: np.ndarray
    streak: np.ndarray
    first: np.ndarray


class _Found(NamedTuple):
    """A point where the loss is lower.

    Attributes:
        theta: the point.
        loss: the loss there.
        length: the 2-norm of the step.
        trials: how many points were tried.
    """

    theta: np.ndarray
    loss: float
    length: float
    trials: int


class LeastSquaresRun:
    """One run.

    Args:
        problem: the `Problem`.
        settings: the `LevenbergMarquardt`.
    """

    def __init__(self, problem, settings):
        self._problem = problem
        self._settings = settings
        self._curvature = problem.gauss_newton()
        self._solver = self._chosen_solver()
        self._is_scaled = settings.preset is None
        self._accelerates = settings.acceleration and self._solver != "cg"
        self._streak = 0

    def __call__(self, theta, report, earlier):
        """Runs from `theta`.

        Args:
            theta: the start.
            report: as `Stage` has it.
            earlier: the `SolverState` to go on from, or `None`.

        Returns:
            An `Outcome`.
        """
        is_finite = self.begin(theta, earlier)
        grad = self._grad if is_finite else None
        stop = report(self._theta, self._loss, grad)
        if not is_finite:
            return self._outcome(stopping.NON_FINITE)
        most = self._problem.budget.evaluations
        if earlier is None and (most is None or most > 2):
            self._check_derivatives()
        outcome = None
        while not stop and outcome is None:
            outcome = self._ended()
            if outcome is None:
                stop, outcome = self._iterate(report)
        outcome = outcome or self._outcome(None)
        if outcome.status == stopping.CONVERGED and not stop:
            self._polish(report, outcome)
        outcome.theta, outcome.loss = self._theta, self._loss
        outcome.detail = self._model.name
        return outcome

    def begin(self, theta, earlier):
        """Evaluates the start; whether it is finite."""
        zero, size = np.float64(0), self._problem.size
        state = State(
            theta, zero, np.zeros(size), zero, zero, np.int32(0), zero
        )
        if earlier is not None:
            state = earlier.restored(KEY, state, theta, self._problem.epsilon)
        self._theta, self._scale = np.array(state.theta), state.scale
        self._control = self._new_control(state)
        self._streak, self._decrease = int(state.streak), 0.0
        self._first = float(state.first)
        self._loss = self._problem.value(self._theta)
        if earlier is None:
            self._first = self._loss
        if not (np.isfinite(self._loss) and self._linearize()):
            return False
        self._control.begin(self._model, self._theta)
        if earlier is None and self._accelerates:
            self._trust_straight_lines()
        return True

    def _trust_straight_lines(self):
        """Lets the first step be the whole one where outputs are linear."""
        step = self._model.damped(0.0)
        if step.length > self._control.radius:
            bend = self._bend(step)
            if (
                bend is not None
                and self._model.scaled(bend) <= 1e-6 * step.length
            ):
                self._control.radius = step.length

    def step(self):
        """Goes one step from the start without looking around there.

        Returns:
            The point, the old one if no step lowers the loss.
        """
        found = self._search()
        return self._theta if isinstance(found, Outcome) else found.theta

    def logs(self):
        """The damping, for the History."""
        return self._control.logs()

    def state(self, theta=None):
        """The `SolverState` at the accepted point, or at another."""
        return SolverState(
            KEY,
            State(
                self._theta if theta is None else theta,
                np.float64(self._loss),
                self._scale,
                np.float64(self._control.damping),
                np.float64(self._control.radius),
                np.int32(self._streak),
                np.float64(self._first),
            )._asdict(),
        )

    def _chosen_solver(self):
        if self._settings.linear_solver != "auto":
            return self._settings.linear_solver
        rows, size = self._curvature.outputs, self._problem.size
        if spectrum.is_small(rows, size):
            return "rows"
        if not self._curvature.has_penalty and rows < size:
            if 8 * rows * size <= _MOST_BYTES:
                return "rows"
        # The matrix, its eigenvectors, and LAPACK's workspace of two more.
        return "dense" if 32 * size**2 <= _MOST_BYTES else "cg"

    def _new_control(self, state):
        if self._settings.preset == "matlab":
            # `trainlm` adds mu to J'J of the errors; the matrix here is that
            # of their mean square.
            return Multiplicative(state.damping, 2 / self._curvature.outputs)
        return TrustRadius(state.radius, state.damping)

    def _linearize(self):
        """Makes the model of the loss at the point; whether it is finite."""
        size, theta = self._problem.size, self._theta
        if self._solver == "cg":
            return self._linearize_by_products()
        if self._solver == "rows":
            own, grad, matrix = self._curvature.rows(theta)
            squares = np.einsum("mp,mp->p", matrix, matrix)
        else:
            own, grad, matrix = self._curvature.normal_equations(theta)
            squares = np.diagonal(matrix)
        self._row_loss, self._grad = own, grad
        if not (np.isfinite(grad).all() and np.isfinite(matrix).all()):
            return False
        make = (
            spectrum.of_rows if self._solver == "rows" else spectrum.of_matrix
        )
        if grad.any() and not squares.any():
            # All outputs lie where the loss is straight: go downhill.
            squares = np.full(size, grad @ grad / (abs(self._loss) or 1.0))
            matrix, make = np.diag(squares), spectrum.of_matrix
        self._model = make(matrix, self._rescaled(np.sqrt(squares)), grad)
        return True

    def _linearize_by_products(self):
        theta, problem = self._theta, self._problem
        self._row_loss, self._grad = problem.value_and_grad(theta)
        # At a point that is counted already.
        problem.fg_evals -= 1

        def product(vector):
            problem.hessp_evals += 1
            return self._curvature.product(theta, vector)

        diagonal = conjugate_gradients.diagonal(product, problem.size)
        if not (np.isfinite(self._grad).all() and np.isfinite(diagonal).all()):
            return False
        scale = self._rescaled(np.sqrt(diagonal))
        self._model = conjugate_gradients.Products(product, scale, self._grad)
        return True

    def _rescaled(self, norms):
        """Moré's scale: the longest that a column of J has been."""
        if self._is_scaled:
            self._scale = np.maximum(self._scale, norms)
        else:
            self._scale = np.ones_like(norms)
        scale = np.where(self._scale > 0, self._scale, 1.0)
        if self._problem.is_bounded:
            theta, grad = self._theta, self._grad
            held = (theta <= self._problem.lower) & (grad > 0)
            held |= (theta >= self._problem.upper) & (grad < 0)
            scale = np.where(held, np.inf, scale)
        return scale

    def _check_derivatives(self):
        """Refuses outputs that mix rows, and a loss that is not of outputs."""
        problem, loss = self._problem, self._loss
        error = abs(self._row_loss - loss)
        if error > 100 * problem.epsilon**0.5 * abs(loss):
            self._refuse(
                f"a loss of {loss:.6g}, but of {self._row_loss:.6g} row by row"
            )
        # Along the scaled gradient, so that no parameter moves far.
        scale = self._model.scale
        slope = np.where(np.isfinite(scale), -self._grad / scale**2, 0.0)
        length = self._model.scaled(slope)
        if length == 0:
            return
        reach = self._model.scaled(self._theta) or 1.0
        step = slope * (problem.epsilon ** (1 / 3) * reach / length)
        points = [problem.project(self._theta + s) for s in (step, -step)]
        ahead, behind = map(problem.value, points)
        expected = self._grad @ (points[0] - points[1])
        # What a difference leaves out is less than its curvature, and rounding.
        unknown = abs(ahead + behind - 2 * loss)
        unknown += 1e3 * problem.epsilon * max(ahead, behind, key=abs)
        error = abs(ahead - behind - expected)
        if error > 0.3 * abs(expected) + abs(unknown):
            self._refuse(
                f"a loss that changes by {ahead - behind:.6g} where its "
                f"derivatives say {expected:.6g}"
            )

    def _refuse(self, received):
        raise ValueError(
            "Gauss-Newton methods need a loss that depends on the variables "
            "through the outputs of each row of data alone: batch "
            "normalization in training mode mixes rows, and a `compute_loss` "
            "that reads variables goes past the outputs. Use 'lbfgs' or "
            f"another method. Received: {received}"
        )

    def _ended(self):
        """The end that the tests at the point call for, or `None`."""
        settings, loss = self._settings, abs(self._loss)
        spent = self._problem.spent()
        if spent is not None:
            return self._outcome(spent)
        promised = self._model.promise
        if promised is not None and promised <= settings.gtol * loss:
            return self._outcome(
                stopping.CONVERGED,
                "gtol",
                promised / (loss or 1),
                settings.gtol,
            )
        floor = self._problem.epsilon**2
        if loss <= floor * abs(self._first):
            share = loss / (abs(self._first) or 1)
            return self._outcome(stopping.CONVERGED, _NOTHING, share, floor)
        if self._streak >= _STREAK:
            is_fine = settings.ftol >= self._problem.epsilon
            status = stopping.CONVERGED if is_fine else stopping.NOISE_FLOOR
            return self._outcome(status, "ftol", self._decrease, settings.ftol)
        return None

    def _iterate(self, report):
        """One accepted step; whether to stop, and the end if there is one."""
        found, settings = self._search(), self._settings
        if isinstance(found, Outcome):
            return False, found
        length = np.linalg.norm(self._theta)
        self._decrease = (self._loss - found.loss) / abs(self._loss)
        small = self._decrease <= settings.ftol
        self._streak = self._streak + 1 if small else 0
        stop = self._move(found, report)
        if stop is None:
            return False, self._outcome(stopping.NON_FINITE)
        if not stop and found.length <= settings.xtol * length:
            share = found.length / length
            return False, self._outcome(
                stopping.CONVERGED, "xtol", share, settings.xtol
            )
        return stop, None

    def _search(self):
        """A step that lowers the loss: a `_Found`, or an `Outcome`."""
        problem, control, bent, trials = self._problem, self._control, 0, 0
        while True:
            step = control.step(self._model)
            vector = step.vector
            if self._accelerates:
                vector, is_bent = self._accelerated(step)
                if is_bent and bent < _MOST_BENT_STEPS:
                    bent += 1
                    control.reject(step, False)
                    continue
            trial = problem.project(self._theta + vector)
            loss = problem.value(trial)
            trials += 1
            gain = self._loss - loss
            ratio = gain / step.promised if step.promised > 0 else 0.0
            if gain > 0 and (ratio > _LEAST_RATIO or problem.is_bounded):
                control.accept(step, ratio)
                length = np.linalg.norm(trial - self._theta)
                return _Found(trial, loss, float(length), trials)
            noise = problem.epsilon * abs(self._loss)
            noise += problem.epsilon**2 * abs(self._first)
            if step.promised <= noise:
                return self._at_the_floor(step.promised)
            control.reject(step, not loss < 100 * self._loss)
            if control.is_exhausted:
                return self._outcome(stopping.LINE_SEARCH_FAILED)
            spent = problem.spent()
            if spent is not None:
                return self._outcome(spent)

    def _accelerated(self, step):
        """The step with half its acceleration; whether that is too large."""
        bend = self._bend(step)
        if bend is None:
            return step.vector, True
        if self._model.scaled(bend) > _MOST_BENT * step.length:
            return step.vector, True
        return step.vector + bend / 2, False

    def _bend(self, step):
        """The acceleration along a step, or `None` if it is not finite."""
        self._problem.hessp_evals += 1
        slope = self._curvature.bend(self._theta, step.vector)
        if not np.isfinite(slope).all():
            return None
        return self._model.bend(slope, step.damping)

    def _move(self, found, report):
        """Goes to a point and reports it; `None` if J is not finite there."""
        before = self._theta, self._loss, self._model, self._grad
        self._theta, self._loss = found.theta, found.loss
        if not self._linearize():
            self._theta, self._loss, self._model, self._grad = before
            return None
        logs = {"step": found.length, "trials": found.trials}
        logs.update(self.logs())
        return report(self._theta, self._loss, self._grad, **logs)

    def _at_the_floor(self, promised):
        """The end of a run whose loss no longer shows what a step does."""
        epsilon = self._problem.epsilon
        status = stopping.NOISE_FLOOR if epsilon > FINE else stopping.CONVERGED
        value = promised / (abs(self._loss) or 1)
        return self._outcome(status, _PROMISE, value, epsilon)

    def _polish(self, report, outcome):
        """Gauss-Newton steps while they contract, below the loss's rounding.

        Near a minimum the loss is flat to rounding in a region in which the
        parameters lose half of their digits; the steps know more.
        """
        if self._problem.epsilon > FINE or self._solver == "cg":
            return
        longest = np.inf
        for _ in range(_MOST_POLISHING):
            step = self._model.damped(0.0)
            if not self._model.has_full_rank or step.length > 0.9 * longest:
                return
            if self._problem.spent() is not None:
                return
            longest = step.length
            trial = self._problem.project(self._theta + step.vector)
            loss = self._problem.value(trial)
            if not loss <= self._loss + _POLISHED * abs(self._loss):
                return
            if np.all(np.abs(trial - self._theta) <= FINE * np.abs(trial)):
                return
            taken = np.linalg.norm(trial - self._theta)
            stop = self._move(_Found(trial, loss, float(taken), 1), report)
            outcome.is_polished = stop is not None
            if stop or stop is None:
                return

    def _outcome(self, status, test=None, value=None, threshold=None):
        return Outcome(status, self._theta, self._loss, test, value, threshold)
