"""The conditions of optimality under constraints, as a predicted decrease.

A quadratic model of the Lagrangian, with linear constraints and bounds,
predicts a decrease of the loss. By duality, any multipliers of the right signs
give an upper bound on it: from the part of the gradient that they do not
explain, and from the slack of the constraints that they belong to. Non-negative
least squares finds multipliers for which the bound is small.

J. Nocedal and S. J. Wright, "Numerical Optimization", 2nd edition, section
18.1 for the step, equation 16.82 onwards for the dual.
"""

from typing import NamedTuple

import numpy as np
import scipy.optimize

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

# A constraint may be active if its slack is at most this number times the norm
# of its gradient. Each number is tried, and the smallest bound counts. Our
# choice: they span the accuracies with which SciPy's methods end.
_NEAR = (0.0, 1e-10, 1e-8, 1e-6, 1e-4, 1e-2)

# At most this many steps are tried, and these parts of each. Our choice: one
# good step shows that a claim does not hold, and each one takes evaluations at
# the end of every run.
_MOST_STEPS = 3
_PARTS = (1.0, 0.25)
# A point is moved back to the constraints at most this often. Our choice:
# Newton steps get there in two or three, or not at all.
_MOST_CORRECTIONS = 3


class _Conditions(NamedTuple):
    """The constraints and bounds at a point, all as `value >= 0` or `= 0`.

    Attributes:
        values: their values.
        slack: the same, but zero where rounding explains the value.
        rows: their gradients.
        equal: which are equalities.
    """

    values: Vector
    slack: Vector
    rows: Matrix
    equal: Array


class ConstrainedOptimality:
    """Tries to lower a loss under constraints, and predicts what is left.

    Args:
        problem: the problem.
        evaluate: loss and gradient as a function of a point.
    """

    def __init__(self, problem: Problem, evaluate: Evaluate):
        self._problem = problem
        self._evaluate = evaluate
        self._evaluations = 0
        none = np.full(problem.size, np.inf)
        self._lower, self._upper = -none, none
        if problem.is_bounded:
            self._lower, self._upper = problem.box
        self._free = self._lower < self._upper

    def __call__(self, theta: Vector, loss: float, grad: Vector) -> Gain:
        """What a few steps gain from a feasible point."""
        conditions = self._conditions(theta)
        hessian = self._curvature(theta, loss, grad, conditions)
        promise = np.inf
        for _ in range(_MOST_STEPS):
            root = np.linalg.cholesky(hessian)
            promise, active = _promise(root, grad[self._free], conditions)
            step = self._step(hessian, grad, conditions, active)
            found = None
            if step is not None and promise > 0:
                found = self._lower_point(theta, loss, step)
            if found is None:
                break
            theta, loss, grad = found
            conditions = self._conditions(theta)
        return Gain(theta, loss, grad, promise, self._evaluations, 0)

    def _conditions(self, theta: Vector) -> _Conditions:
        """The constraints and bounds at a point, without infinite ones."""
        free = self._free
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
        every = _Conditions(*map(np.concatenate, (values, slack, rows, equal)))
        known = np.isfinite(every.values) & np.isfinite(every.rows).all(axis=1)
        every = every._replace(slack=np.where(every.equal, 0.0, every.slack))
        return _Conditions(*(part[known] for part in every))

    def _curvature(
        self,
        theta: Vector,
        loss: float,
        grad: Vector,
        conditions: _Conditions,
    ) -> Matrix:
        """A positive definite Hessian of the Lagrangian."""
        free, evaluation_eps = self._free, self._problem.evaluation_eps
        sizes = sizes_of(theta, None)
        root = np.diag(1 / sizes[free])
        weights = _multipliers(root, grad[free], conditions)
        count = sum(np.size(c.fun(theta)) for c in self._problem.constraints)

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
        size = float(np.linalg.norm(grad[self._free]))
        length = float(np.linalg.norm(theta)) or 1.0
        fallback = size / length or 1.0
        if size == 0:
            return fallback
        step = np.where(self._free, grad, 0.0) / size
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
        conditions: _Conditions,
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
        right = -np.concatenate([grad[self._free], values])
        found = np.linalg.lstsq(matrix, right, rcond=None)[0][:size]
        step = np.zeros(grad.shape)
        step[self._free] = found
        return step if np.isfinite(step).all() else None

    def _lower_point(
        self, theta: Vector, loss: float, step: Vector
    ) -> tuple[Vector, float, Vector] | None:
        """A feasible point along a step with a lower loss, or `None`."""
        for part in _PARTS:
            trial = self._restored(self._problem.project(theta + part * step))
            if trial is None or np.array_equal(trial, theta):
                continue
            self._evaluations += 1
            found, grad = self._evaluate(trial)
            if found < loss and np.isfinite(grad).all():
                return trial, found, grad
        return None

    def _restored(self, theta: Vector) -> Vector | None:
        """The nearest feasible point, by linear steps; `None` if not found."""
        for _ in range(_MOST_CORRECTIONS):
            if self._problem.is_feasible(theta):
                return theta
            conditions = self._conditions(theta)
            broken = conditions.equal | (conditions.values < 0)
            rows, values = conditions.rows[broken], conditions.values[broken]
            step = np.zeros_like(theta)
            step[self._free] = np.linalg.lstsq(rows, -values, rcond=None)[0]
            theta = self._problem.project(theta + step)
        return theta if self._problem.is_feasible(theta) else None


def _promise(
    root: Array, grad: Vector, conditions: _Conditions
) -> tuple[float, Array]:
    """A bound on the predicted decrease, and which constraints are active.

    Args:
        root: the lower triangular root of the Hessian.
        grad: the gradient of the loss.
        conditions: the constraints and bounds.
    """
    least, active = np.inf, np.zeros(conditions.values.size, dtype=bool)
    for near in _NEAR:
        weights = _multipliers(root, grad, conditions, near)
        rest = np.linalg.solve(root, grad - conditions.rows.T @ weights)
        promise = rest @ rest / 2 + conditions.slack @ np.abs(weights)
        if promise < least:
            least, active = float(promise), weights != 0
    return least, active


def _multipliers(
    root: Array,
    grad: Vector,
    conditions: _Conditions,
    near: float = _NEAR[1],
) -> Vector:
    """Multipliers that explain most of the gradient, in a metric.

    Args:
        root: the lower triangular root of the metric's inverse.
        grad: the gradient of the loss.
        conditions: the constraints and bounds.
        near: the slack over the norm of the gradient up to which a constraint
            may be active.
    """
    rows, equal = conditions.rows, conditions.equal
    scale = np.abs(np.linalg.solve(root, rows.T)).max(axis=0, initial=0.0)
    reach = np.linalg.norm(rows, axis=1)
    chosen = equal | (conditions.slack <= near * reach)
    chosen &= scale > 0
    weights = np.zeros(equal.size)
    if not chosen.any():
        return weights
    columns = np.linalg.solve(root, rows[chosen].T) / scale[chosen]
    both = np.hstack([columns, -columns[:, equal[chosen]]])
    target = np.linalg.solve(root, grad)
    size = np.linalg.norm(target)
    if size == 0:
        return weights
    try:
        found, _ = scipy.optimize.nnls(both, target / size)
    except RuntimeError:
        return weights
    count = int(chosen.sum())
    signed = found[:count].copy()
    signed[equal[chosen]] -= found[count:]
    weights[chosen] = signed * size / scale[chosen]
    return weights
