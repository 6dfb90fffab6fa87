"""What SciPy sees of a problem: functions of the free parameters.

SciPy evaluates where it likes and asks for loss and gradient apart. Here every
point is moved into the bounds and evaluated once, and what is NaN or infinite
reads as a step too long.
"""

from typing import NamedTuple

import numpy as np
import scipy.optimize

from kormos.solvers import statuses


class Evaluation(NamedTuple):
    """A point, its loss and its gradient (or `None`)."""

    theta: np.ndarray
    loss: float
    grad: np.ndarray | None


class Halt(Exception):
    """Leaves SciPy's loop; not `StopIteration`, which TNC lets escape."""

    def __init__(self, status=None, detail=""):
        super().__init__(status, detail)
        self.status = status
        self.detail = detail


# By no more than this is a small loss multiplied for SciPy.
MOST_SCALE = 2.0**33


class Evaluator:
    """Answers SciPy, remembering points and hiding non-finite ones.

    SciPy holds the parameters that the bounds leave free alone: several of
    its methods mishandle fixed ones. Here `x` are those, and `theta` all.
    """

    _REMEMBERED = 4
    _MOST_NOISY_TRIALS = 2

    def __init__(self, problem, theta, spec):
        self._problem = problem
        self._spec = spec
        self._memory = []
        self._best = self.accepted = None
        # Called with `x` before the gradient alone is answered.
        self.on_gradient = None
        theta = problem.project(np.array(theta, dtype="float64"))
        self._free = slice(None)
        if problem.is_bounded and (problem.lower == problem.upper).any():
            self._free = problem.lower < problem.upper
        # TNC probes nearby points, for its differences.
        self._watches_noise = (
            spec.gradient and spec.name != "tnc" and not problem.constraints
        )
        # A violation that no merit function takes for an improvement; a linear
        # or quadratic model of the constraint would be spoilt by as much.
        self._violation = 1e10 if spec.gradient else 2.0
        self._largest = 1.0
        # By this the loss is multiplied for SciPy.
        self.scale = 1.0
        # What a trial may take, or `None` outside of one.
        self._last = self._questions = None
        self.move(theta)

    def rescale(self):
        """Lets SciPy see a loss that starts at the order of one.

        Most of its tolerances are absolute: it takes a start of small numbers
        for an optimum. A power of two changes nothing else. What is smaller
        yet may be the rounding of zero.
        """
        _, loss, grad = self.accepted
        size = abs(loss)
        if grad is not None:
            size = max(size, np.abs(grad).max())
        if 0 < size < 1:
            self.scale = min(2.0 ** -np.floor(np.log2(size)), MOST_SCALE)

    def limit(self, evaluations):
        """Ends the run as stalled after so many evaluations; `None` for never.

        A method that asks about the same points again and again ends too.
        """
        self._last = self._questions = None
        if evaluations is not None:
            self._last = self._problem.fg_evals + evaluations
            self._questions = 4 * evaluations

    def start(self):
        """The accepted point, as SciPy holds it."""
        return self.accepted.theta[self._free].copy()

    def point(self, x):
        """The point of the box for SciPy's `x`."""
        if isinstance(self._free, slice):
            return self._problem.project(x)
        theta = self.accepted.theta.copy()
        theta[self._free] = x
        return self._problem.project(theta)

    def at(self, theta):
        """The `Evaluation` at a point, made once."""
        for known in reversed(self._memory):
            if _is_same(known.theta, theta):
                return known
        if self.accepted is not None:
            self.check_budget()
        # SciPy goes on writing into the array that it shows.
        theta = theta.copy()
        if self._spec.gradient:
            made = Evaluation(theta, *self._problem.value_and_grad(theta))
        else:
            made = Evaluation(theta, self._problem.value(theta), None)
        self._remember(made)
        self._note_noise(made)
        return made

    def check_budget(self):
        """Ends the run where a limit is reached."""
        status = self._problem.spent()
        if status is not None:
            raise Halt(status)

    def _remember(self, made):
        if self._best is None or made.loss < self._best.loss:
            self._best = made
        # Simplex and model-based methods come back to the best point late.
        old = self._memory[: -self._REMEMBERED]
        kept = [e for e in old if e is self._best or e is self.accepted]
        recent = self._memory[-self._REMEMBERED :]
        self._memory = [*kept, *recent, made]

    def _note_noise(self, made):
        """Ends the run when a step can no longer be told from none.

        A line search in float32 may spend ten evaluations on that.
        """
        start = self.accepted
        if start is None or not self._watches_noise:
            return
        noise = 2 * self._problem.epsilon * abs(start.loss)
        # A point that is not finite is told apart.
        told_apart = not abs(made.loss - start.loss) <= noise
        if not told_apart:
            predicted = start.grad @ (made.theta - start.theta)
            told_apart = abs(predicted) > noise
        self._noisy_trials = 0 if told_apart else self._noisy_trials + 1
        if self._noisy_trials == self._MOST_NOISY_TRIALS:
            raise Halt(statuses.NOISE_FLOOR)

    def accept(self, x):
        """Makes SciPy's iterate the accepted point, if it is another."""
        return self.move(self.point(np.asarray(x)))

    def move(self, theta):
        """Makes a point the accepted one; returns whether it is another."""
        if self.accepted is not None and _is_same(theta, self.accepted.theta):
            return False  # The method rejected its step.
        self._previous = self.accepted
        self.accepted = self.at(theta)
        self._noisy_trials = 0
        return True

    def value(self, x):
        return self._finite(x)[0] * self.scale

    def grad(self, x):
        if self.on_gradient is not None:
            self.on_gradient(x)
        return self._finite(x)[1][self._free] * self.scale

    def value_and_grad(self, x):
        loss, grad = self._finite(x)
        return loss * self.scale, grad[self._free] * self.scale

    def hvp(self, x, vector, *args):
        self.check_budget()
        direction = np.zeros(self._problem.size)
        direction[self._free] = vector
        product = self._problem.hvp(self.point(x), direction)
        product = self._checked(product, "a Hessian product")
        return product[self._free] * self.scale

    def hessian(self, x, *args):
        self.check_budget()
        theta = self.point(x)
        hessian = self._problem.hessian(theta)
        is_trial = not _is_same(theta, self.accepted.theta)
        if is_trial and not np.isfinite(hessian).all():
            # trust-exact asks at a trial, and only then for the loss there.
            self._memory.append(Evaluation(theta.copy(), np.nan, None))
            hessian = np.zeros_like(hessian)
        hessian = self._checked(hessian, "the Hessian")
        return hessian[self._free][:, self._free] * self.scale

    def bounds(self):
        """The bounds as SciPy takes them."""
        problem = self._problem
        if not problem.is_bounded:
            return None
        lower, upper = problem.lower[self._free], problem.upper[self._free]
        return scipy.optimize.Bounds(lower, upper, keep_feasible=True)

    def constraints(self):
        """The constraints as SciPy takes them."""
        adapted = []
        for constraint in self._problem.constraints:
            signs = [1.0]
            if constraint.type == "eq" and self._spec.splits_equalities:
                signs = [1.0, -1.0]
            adapted.extend(
                self._adapted(constraint, sign, len(signs)) for sign in signs
            )
        return adapted

    def _adapted(self, constraint, sign, parts):
        def fun(x):
            values = sign * constraint.fun(self.point(x))
            finite = np.isfinite(values)
            size = np.abs(values[finite]).max(initial=0.0)
            self._largest = max(self._largest, size)
            return np.where(finite, values, -self._violation * self._largest)

        def jac(x):
            jacobian = sign * constraint.jac(self.point(x))
            jacobian = self._checked(jacobian, "the Jacobian of a constraint")
            return jacobian[:, self._free]

        kind = constraint.type if parts == 1 else "ineq"
        return {"type": kind, "fun": fun, "jac": jac}

    def stand_at(self, evaluation):
        """Makes a point that was evaluated elsewhere the accepted one."""
        self._remember(evaluation)
        self._previous = self.accepted
        self.accepted = evaluation
        self._noisy_trials = 0

    def _checked(self, array, name):
        if not np.isfinite(array).all():
            raise Halt(statuses.NON_FINITE, f"{name} is NaN or infinite")
        return array

    def stationarity(self, order):
        """The size of the gradient, or of a step along it in the box."""
        theta, _, step = self.accepted
        if self._problem.is_bounded:
            step = self._problem.project(theta - step) - theta
        return float(np.linalg.norm(step, order))

    def relative_decrease(self):
        """The latest decrease of the loss, or `None` before the first."""
        if self._previous is None:
            return None
        before = self._previous.loss * self.scale
        after = self.accepted.loss * self.scale
        scale = max(abs(before), abs(after), 1.0)
        return float((before - after) / scale)

    def _check_trial(self):
        if self._last is None:
            return
        self._questions -= 1
        if self._problem.fg_evals >= self._last or self._questions < 0:
            raise Halt(statuses.STALLED)

    def _finite(self, x):
        self._check_trial()
        theta, loss, grad = self.at(self.point(x))
        if np.isfinite(loss) and (grad is None or np.isfinite(grad).all()):
            return loss, grad
        # A line search or trust region that is told of a steep rise from the
        # accepted point shortens its step; told of NaN it gives up.
        start = self.accepted
        step = theta - start.theta
        length = max(float(step @ step), np.finfo("float64").tiny)
        rise = abs(start.loss) + 1.0
        if start.grad is not None:
            rise = max(abs(float(start.grad @ step)), 1e-300)
        return start.loss + rise, 2 * rise / length * step


def _is_same(a, b):
    # Most points differ in every entry.
    return a[-1] == b[-1] and np.array_equal(a, b)
