"""The conditions of optimality under constraints, as a predicted decrease.

A quadratic model of the Lagrangian, with linear constraints and bounds,
predicts a decrease of the loss; `multipliers.py` bounds it from above.

J. Nocedal and S. J. Wright, "Numerical Optimization", 2nd edition, section
18.1.
"""

import numpy as np

from kormos.solvers.constrained.multipliers import Conditions
from kormos.solvers.constrained.multipliers import multipliers_of
from kormos.solvers.constrained.multipliers import promised
from kormos.solvers.difference_model import DifferenceModel
from kormos.solvers.difference_model import Grad
from kormos.solvers.fresh_run import MOST_NEWTON
from kormos.solvers.fresh_run import Evaluate
from kormos.solvers.fresh_run import Gain
from kormos.solvers.parameter_units import sizes_of
from kormos.solvers.problem import Problem
from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Vector

# At most this many steps are tried, and these parts of each. Our choice: one
# good step shows that a claim does not hold, and each one takes evaluations at
# the end of every run.
_MOST_STEPS = 3
_PARTS = (1.0, 0.25)
# A point is moved back to the constraints at most this often. Our choice:
# Newton steps get there in two or three, or not at all.
_MOST_CORRECTIONS = 3


class ConstrainedOptimality:
    """Tries to lower a loss under constraints, and predicts what is left.

    Args:
        problem: the problem.
        evaluate: loss and gradient as a function of a point.

    Attributes:
        free: a mask of the parameters that bounds do not fix.
    """

    def __init__(self, problem: Problem, evaluate: Evaluate):
        self._problem = problem
        self._evaluate = evaluate
        self._evaluations = 0
        none = np.full(problem.size, np.inf)
        self._lower, self._upper = -none, none
        if problem.is_bounded:
            self._lower, self._upper = problem.box
        self.free = self._lower < self._upper

    def __call__(self, theta: Vector, loss: float, grad: Vector) -> Gain:
        """What a few steps gain from a feasible point."""
        if not self.free.any():
            return Gain(theta, loss, grad, 0.0, 0, 0)
        conditions = self._conditions(theta)
        hessian = self._curvature(theta, loss, grad, conditions)
        promise = np.inf
        for _ in range(_MOST_STEPS):
            root = np.linalg.cholesky(hessian)
            promise, weights = promised(root, grad[self.free], conditions)
            step = self._step(hessian, grad, conditions, weights != 0)
            found = None
            if step is not None and promise > 0:
                found = self._lower_point(theta, loss, step, weights)
            if found is None:
                break
            theta, loss, grad = found
            conditions = self._conditions(theta)
        return Gain(theta, loss, grad, promise, self._evaluations, 0)

    def active(self, theta: Vector, grad: Vector) -> tuple[Matrix, Vector]:
        """What is active at a point.

        Args:
            theta: the point.
            grad: the gradient of the loss there.

        Returns:
            The gradients of the active constraints and bounds, `(k, size)`; and
            the multipliers of all constraints, `(m,)`, without bounds.
        """
        conditions = self._conditions(theta)
        root = np.diag(1 / sizes_of(theta, None)[self.free])
        _, weights = promised(root, grad[self.free], conditions)
        found = conditions.rows[(weights != 0) | conditions.equal]
        rows = np.zeros((len(found), theta.size))
        rows[:, self.free] = found
        return rows, weights[: self._count(theta)]

    def _count(self, theta: Vector) -> int:
        """The number of the values of all constraints."""
        return sum(np.size(c.fun(theta)) for c in self._problem.constraints)

    def _conditions(self, theta: Vector) -> Conditions:
        """The constraints and bounds at a point, without infinite ones."""
        free = self.free
        values, rows, equal = [], [], []
        for constraint in self._problem.constraints:
            found = np.atleast_1d(constraint.fun(theta))
            values.append(found)
            rows.append(constraint.jac(theta)[:, free])
            equal.append(np.full(found.size, constraint.type == "eq"))
        slack = [np.maximum(v - self._problem.feasibility, 0.0) for v in values]
        identity = np.eye(int(free.sum()))
        for distance, sign in (
            (theta - self._lower, 1.0),
            (self._upper - theta, -1.0),
        ):
            near = np.isfinite(distance[free])
            values.append(distance[free][near])
            slack.append(distance[free][near])
            rows.append(sign * identity[near])
            equal.append(np.zeros(int(near.sum()), dtype=bool))
        every = Conditions(*map(np.concatenate, (values, slack, rows, equal)))
        known = np.isfinite(every.values) & np.isfinite(every.rows).all(axis=1)
        every = every._replace(slack=np.where(every.equal, 0.0, every.slack))
        return Conditions(*(part[known] for part in every))

    def _curvature(
        self,
        theta: Vector,
        loss: float,
        grad: Vector,
        conditions: Conditions,
    ) -> Matrix:
        """A positive definite Hessian of the Lagrangian."""
        free, evaluation_eps = self.free, self._problem.evaluation_eps
        sizes = sizes_of(theta, None)
        root = np.diag(1 / sizes[free])
        weights = multipliers_of(root, grad[free], conditions)
        count = self._count(theta)

        def gradient(point: Vector) -> Vector | None:
            self._evaluations += 1
            loss, slope = self._evaluate(point)
            turned = self._conditions(point)
            if turned.values.size != conditions.values.size:
                return None
            # Bounds are linear, so they add nothing to the curvature.
            bent = turned.rows[:count].T @ weights[:count]
            slope = slope.copy()
            slope[free] -= bent
            finite = np.isfinite(loss) and np.isfinite(slope).all()
            return slope if finite else None

        start = grad.copy()
        start[free] -= conditions.rows[:count].T @ weights[:count]
        if free.sum() <= MOST_NEWTON:
            model = DifferenceModel(
                gradient,
                theta,
                loss,
                start,
                evaluation_eps,
                sizes,
                free,
                self._lower,
                self._upper,
            )
            return model.hessian
        return self._along(gradient, theta, start) * np.eye(int(free.sum()))

    def _along(self, gradient: Grad, theta: Vector, grad: Vector) -> float:
        """The curvature of the Lagrangian along its gradient, a number.

        Args:
            gradient: the gradient of the Lagrangian as a function of a point.
            theta: the point.
            grad: the gradient of the Lagrangian there.
        """
        size = float(np.linalg.norm(grad[self.free]))
        length = float(np.linalg.norm(theta)) or 1.0
        fallback = size / length or 1.0
        if size == 0:
            return fallback
        step = np.where(self.free, grad, 0.0) / size
        step *= self._problem.evaluation_eps ** (1 / 3) * length
        step = self._problem.project(theta - step) - theta
        ahead = gradient(theta + step)
        if ahead is None or not step.any():
            return fallback
        found = (ahead - grad) @ step / (step @ step)
        return float(found) if found > 0 else fallback

    def _step(
        self,
        hessian: Matrix,
        grad: Vector,
        conditions: Conditions,
        active: Array,
    ) -> Vector | None:
        """The step of the quadratic model on the active constraints.

        Args:
            hessian: the Hessian of the Lagrangian for the free parameters.
            grad: the gradient of the loss, `(size,)`.
            conditions: the constraints and bounds.
            active: a mask of the active inequalities.
        """
        active = active | conditions.equal
        rows, values = conditions.rows[active], conditions.values[active]
        size, count = hessian.shape[0], rows.shape[0]
        zero = np.zeros((count, count))
        matrix = np.block([[hessian, rows.T], [rows, zero]])
        right = -np.concatenate([grad[self.free], values])
        found = np.linalg.lstsq(matrix, right, rcond=None)[0][:size]
        step = np.zeros(grad.shape)
        step[self.free] = found
        return step if np.isfinite(step).all() else None

    def _lower_point(
        self, theta: Vector, loss: float, step: Vector, weights: Vector
    ) -> tuple[Vector, float, Vector] | None:
        """A feasible point along a step with a lower loss, or `None`.

        A lower loss does not count if a larger violation explains it, even one
        that is small enough to be feasible.

        Args:
            theta: the point.
            loss: the loss there.
            step: the step.
            weights: the multipliers of all conditions.
        """
        before = self._lagrangian(theta, loss, weights)
        for part in _PARTS:
            trial = self.restored(self._problem.project(theta + part * step))
            if trial is None or np.array_equal(trial, theta):
                continue
            self._evaluations += 1
            found, grad = self._evaluate(trial)
            is_lower = found < loss and np.isfinite(grad).all()
            if is_lower and self._lagrangian(trial, found, weights) < before:
                return trial, found, grad
        return None

    def _lagrangian(self, theta: Vector, loss: float, weights: Vector) -> float:
        """The Lagrangian at a point, with these multipliers."""
        values = self._conditions(theta).values
        if values.shape != weights.shape:
            return loss  # A condition is not finite there.
        return float(loss - weights @ values)

    def restored(self, theta: Vector) -> Vector | None:
        """A feasible point near another, by linear steps; or `None`."""
        for _ in range(_MOST_CORRECTIONS):
            if self._problem.is_feasible(theta):
                return theta
            conditions = self._conditions(theta)
            broken = conditions.equal | (conditions.values < 0)
            rows, values = conditions.rows[broken], conditions.values[broken]
            step = np.zeros_like(theta)
            step[self.free] = np.linalg.lstsq(rows, -values, rcond=None)[0]
            theta = self._problem.project(theta + step)
        return theta if self._problem.is_feasible(theta) else None
