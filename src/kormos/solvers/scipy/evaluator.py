"""A problem as SciPy sees it: functions of the free parameters.

SciPy may evaluate outside of the bounds, and asks for the loss and the gradient
one by one. Here every point is moved into the bounds and evaluated once. Where
the loss is NaN or infinite, SciPy is shown a steep rise instead, so that it
shortens its step.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.optimize

from kormos.solvers import statuses
from kormos.solvers.problem import Problem
from kormos.solvers.scipy.adapted_constraints import AdaptedConstraints
from kormos.solvers.scipy.evaluation import Evaluation
from kormos.solvers.scipy.evaluation import Halt
from kormos.solvers.scipy.evaluation import checked
from kormos.solvers.scipy.memory import Memory
from kormos.solvers.scipy.methods import ScipyMethod
from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Vector

# A small loss is multiplied by at most this for SciPy. Our choice: a loss that
# starts smaller may be the rounding of zero.
MOST_SCALE = 2.0**33

# The run ends after this many trials in a row that rounding hides. Our choice:
# a single one may be chance, and each additional one is lost at the end of
# every run.
_MOST_NOISY_TRIALS = 2
# A trial of a claim may ask for this many points for each evaluation that it
# may make; most points are remembered. Our choice: a method that asks more
# often repeats itself.
_QUESTIONS = 4


class Evaluator:
    """Answers SciPy, and hides points where the loss is not finite.

    SciPy only gets the parameters that the bounds leave free, because several
    of its methods mishandle fixed ones. Here `x` are the free parameters, and
    `theta` are all parameters.

    Args:
        problem: the problem.
        theta: the start, `(size,)`.
        spec: what the method takes.

    Attributes:
        accepted: the accepted point.
        on_gradient: called with `x` before a gradient is answered without its
            loss; or `None`.
        scale: the factor by which the loss is multiplied for SciPy.
    """

    def __init__(self, problem: Problem, theta: Vector, spec: ScipyMethod):
        self._problem = problem
        self._spec = spec
        self._memory = Memory()
        # The accepted point before the present one.
        self._previous: Evaluation | None = None
        self._noisy_trials = 0
        self.on_gradient: Callable[[Vector], None] | None = None
        theta = problem.project(np.array(theta, dtype="float64"))
        self._free: slice | Array = slice(None)
        if problem.is_bounded:
            lower, upper = problem.box
            if (lower == upper).any():
                self._free = lower < upper
        # TNC evaluates at very close points for its differences.
        self._watches_noise = (
            spec.gradient and spec.name != "tnc" and not problem.constraints
        )
        self._constraints = AdaptedConstraints(
            problem.constraints, spec, self.point, self._free
        )
        self.scale = 1.0
        # The count of evaluations and the number of further questions that end
        # the trial of a claim; `None` outside of a trial.
        self._last: int | None = None
        self._questions: int | None = None
        self.accepted = self._evaluated(theta)
        self._memory.add(self.accepted, self.accepted)

    def rescale(self) -> None:
        """Shows SciPy a loss or a gradient that is about one at the start.

        Most of its tolerances are absolute, so it would take a start with a
        small loss and gradient for an optimum. A power of two changes no
        digits.
        """
        _, loss, grad = self.accepted
        size = abs(loss)
        if grad is not None:
            size = max(size, np.abs(grad).max())
        if 0 < size < 1:
            self.scale = min(2.0 ** -np.floor(np.log2(size)), MOST_SCALE)

    def limit(self, evaluations: int | None) -> None:
        """Ends the run as stalled after this many evaluations.

        A method that asks for the same points again and again is ended, too.

        Args:
            evaluations: how many more, or `None` for no limit.
        """
        self._last = self._questions = None
        if evaluations is not None:
            self._last = self._problem.fg_evals + evaluations
            self._questions = _QUESTIONS * evaluations

    def start(self) -> Vector:
        """The accepted point, as SciPy holds it."""
        return self.accepted.theta[self._free].copy()

    def point(self, x: Vector) -> Vector:
        """The point of the box for SciPy's `x`."""
        if isinstance(self._free, slice):
            return self._problem.project(x)
        theta = self.accepted.theta.copy()
        theta[self._free] = x
        return self._problem.project(theta)

    def at(self, theta: Vector) -> Evaluation:
        """The evaluation at a point, which is made only once."""
        known = self._memory.find(theta)
        if known is not None:
            return known
        self.check_budget()
        made = self._evaluated(theta)
        self._memory.add(made, self.accepted)
        self._note_noise(made)
        return made

    def _evaluated(self, theta: Vector) -> Evaluation:
        # A copy, because SciPy later writes into the array that it passes.
        theta = theta.copy()
        if self._spec.gradient:
            return Evaluation(theta, *self._problem.value_and_grad(theta))
        return Evaluation(theta, self._problem.value(theta), None)

    def check_budget(self) -> None:
        """Ends the run where a limit is reached."""
        status = self._problem.spent()
        if status is not None:
            raise Halt(status)

    def _note_noise(self, made: Evaluation) -> None:
        """Ends the run when rounding hides the effect of its steps.

        A line search in float32 may spend ten evaluations on such steps.
        """
        start = self.accepted
        if not self._watches_noise or start.grad is None:
            return
        noise = 2 * self._problem.evaluation_eps * abs(start.loss)
        # A loss that is not finite is a visible effect, too.
        is_visible = not abs(made.loss - start.loss) <= noise
        if not is_visible:
            predicted = start.grad @ (made.theta - start.theta)
            is_visible = bool(abs(predicted) > noise)
        self._noisy_trials = 0 if is_visible else self._noisy_trials + 1
        if self._noisy_trials == _MOST_NOISY_TRIALS:
            raise Halt(statuses.NOISE_FLOOR)

    def accept(self, x: Vector) -> bool:
        """Makes SciPy's iterate the accepted point.

        Returns:
            Whether it differs from the point before.
        """
        return self.move(self.point(np.asarray(x)))

    def move(self, theta: Vector) -> bool:
        """Makes a point the accepted one; returns whether it has changed."""
        if self.accepted.is_at(theta):
            return False  # The method rejected its step.
        self._previous = self.accepted
        self.accepted = self.at(theta)
        self._noisy_trials = 0
        return True

    def value(self, x: Vector) -> float:
        """The loss that SciPy sees."""
        return self._finite(x)[0] * self.scale

    def grad(self, x: Vector) -> Vector:
        """The gradient that SciPy sees, when it does not ask for the loss."""
        if self.on_gradient is not None:
            self.on_gradient(x)
        return self._finite(x)[1][self._free] * self.scale

    def value_and_grad(self, x: Vector) -> tuple[float, Vector]:
        """The loss and the gradient that SciPy sees."""
        loss, grad = self._finite(x)
        return loss * self.scale, grad[self._free] * self.scale

    def hvp(self, x: Vector, vector: Vector, *args: Any) -> Vector:
        """The product of the Hessian and a vector that SciPy sees."""
        self.check_budget()
        if not np.isfinite(vector).all():
            # SciPy's Krylov methods divide by zero when their Krylov space is
            # exhausted. The loss is not the reason.
            raise Halt(
                statuses.LINE_SEARCH_FAILED,
                "the method has lost its search direction",
            )
        direction = np.zeros(self._problem.size)
        direction[self._free] = vector
        product = self._problem.hvp(self.point(x), direction)
        product = checked(product, "a Hessian product")
        return product[self._free] * self.scale

    def hessian(self, x: Vector, *args: Any) -> Matrix:
        """The Hessian that SciPy sees."""
        self.check_budget()
        theta = self.point(x)
        hessian = self._problem.hessian(theta)
        is_finite = np.isfinite(hessian).all()
        if not is_finite and not self.accepted.is_at(theta):
            # trust-exact asks for the Hessian of a trial before its loss, which
            # will reject the trial.
            self._memory.add_unusable(theta)
            hessian = np.zeros_like(hessian)
        hessian = checked(hessian, "the Hessian")
        return hessian[self._free][:, self._free] * self.scale

    def bounds(self) -> scipy.optimize.Bounds | None:
        """The bounds as SciPy takes them."""
        problem = self._problem
        if not problem.is_bounded:
            return None
        lower, upper = (side[self._free] for side in problem.box)
        return scipy.optimize.Bounds(lower, upper, keep_feasible=True)

    def constraints(self) -> list[dict[str, Any]]:
        """The constraints as SciPy takes them."""
        return self._constraints.all()

    def stand_at(self, evaluation: Evaluation) -> None:
        """Makes a point that was evaluated elsewhere the accepted one."""
        self._memory.add(evaluation, self.accepted)
        self._previous = self.accepted
        self.accepted = evaluation
        self._noisy_trials = 0

    def stationarity(self, order: float) -> float:
        """The norm of the gradient, or of a step along it in the box.

        Args:
            order: the order of the norm, 2 or infinity.
        """
        theta, _, step = self.accepted
        assert step is not None, "methods without gradients do not ask"
        if self._problem.is_bounded:
            step = self._problem.project(theta - step) - theta
        return float(np.linalg.norm(step, order))

    def relative_decrease(self) -> float | None:
        """The latest decrease of the loss, or `None` before the first."""
        if self._previous is None:
            return None
        before = self._previous.loss * self.scale
        after = self.accepted.loss * self.scale
        scale = max(abs(before), abs(after), 1.0)
        return float((before - after) / scale)

    def _check_trial(self) -> None:
        """Counts a question, and ends the trial of a claim at its limit."""
        if self._last is None or self._questions is None:
            return
        self._questions -= 1
        if self._problem.fg_evals >= self._last or self._questions < 0:
            raise Halt(statuses.STALLED)

    def _finite(self, x: Vector) -> tuple[float, Any]:
        """The loss and the gradient if any; a steep rise if not finite."""
        self._check_trial()
        theta, loss, grad = self.at(self.point(x))
        if np.isfinite(loss) and (grad is None or np.isfinite(grad).all()):
            return loss, grad
        # After a steep rise from the accepted point, a line search or a trust
        # region shortens its step. After NaN it gives up.
        start = self.accepted
        step = theta - start.theta
        length = max(float(step @ step), np.finfo("float64").tiny)
        rise = abs(start.loss) + 1.0
        if start.grad is not None:
            rise = max(abs(float(start.grad @ step)), 1e-300)
        return start.loss + rise, 2 * rise / length * step
