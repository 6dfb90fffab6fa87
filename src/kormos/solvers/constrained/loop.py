"""Minimizes under constraints, by single steps on an augmented Lagrangian.

Each iteration takes one step of a convex quadratic program (`subproblem.py`)
with the curvature that the method has learned (`curvature.py`), searches along
it for a lower augmented Lagrangian (`merit.py`), and adopts the program's
multipliers. Near a solution its steps are those of sequential quadratic
programming. Penalties are in the units of the curvature, so that neither the
units of the loss nor those of a constraint matter.

The closest published method is P. E. Gill and D. P. Robinson, "A globally
convergent stabilized SQP method", SIAM J. Optim. 23(4), 2013. This one differs
in two points: the line search only looks at the augmented Lagrangian, and the
multipliers are updated after every step.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from kormos.solvers.constrained import merit
from kormos.solvers.constrained.curvature import Curvature
from kormos.solvers.constrained.program import Program
from kormos.solvers.constrained.subproblem import Conditions
from kormos.solvers.constrained.subproblem import Step
from kormos.solvers.problem import Problem
from kormos.types import Vector

# A penalty is at least this many times the curvature along its constraint. Our
# choice: a step then leaves a tenth of a violation.
_LEAST_PENALTY = 10.0
# Penalties are multiplied by the first number while the program leaves more
# than the second part of the violation.
_GROWTH, _ENOUGH = 10.0, 0.3
_MOST_PENALTY = 1e10
# The constant of Armijo's condition, and the limits of the factor by which one
# trial shortens the step.
_ARMIJO, _SHORTEST, _LONGEST = 1e-4, 0.1, 0.5
_MOST_TRIALS = 25
# Violations of at most this part of what counts as feasible are small. Our
# choice: the loss is then right to three more digits.
_WELL_FEASIBLE = 2.0**-10
# Penalties fall after a step that was shortened, unless it made the violation
# this many times as large. Our choice: along a bent constraint, short steps in
# a narrow valley make it a little larger each time.
_LITTLE = 3.0
# No constraint is violated by more than this many times its violation at the
# start, or the change that its gradient predicts for a step as long as the
# parameters there (or of length one). Our choice: usual runs never get as far.
_MOST_VIOLATION = 10.0
# A change by this many roundings is none. Our choice.
_ROUNDINGS = 4


@dataclasses.dataclass
class At:
    """A point of the run.

    Attributes:
        theta: the point, `(size,)`.
        loss: the loss.
        grad: its gradient, `(size,)`.
        constraints: the values and gradients of the constraints, without
            bounds.
        sizes: the number of values of each constraint of the problem.
    """

    theta: Vector
    loss: float
    grad: Vector
    constraints: Conditions
    sizes: list[int]


class ConstrainedLoop:
    """The iterations of one run.

    Args:
        problem: the problem.
        make_curvature: function of the first scale that makes a `Curvature`.

    Attributes:
        at: the present point.
        multipliers: those of the constraints, `(m,)`.
        promise: the decrease of the loss that the latest program predicted.
        gap: the complementarity gap: the multipliers times the values of the
            constraints, over those that are violated or have a positive
            multiplier.
        step: the length of the latest step.
    """

    def __init__(
        self, problem: Problem, make_curvature: Callable[[float], Curvature]
    ) -> None:
        self._problem = problem
        self._make_curvature = make_curvature
        lower = np.full(problem.size, -np.inf)
        self._lower, self._upper = lower, -lower
        if problem.is_bounded:
            self._lower, self._upper = problem.box
        self.promise = self.gap = np.inf
        self.step = 0.0

    def begin(self, theta: Vector, multipliers: Vector | None = None) -> None:
        """Evaluates the start."""
        self.at = self.evaluated(theta)
        count = self.at.constraints.values.size
        self.multipliers = np.zeros(count)
        if multipliers is not None and multipliers.shape == (count,):
            self.multipliers = multipliers.copy()
        self._penalties = np.zeros(count)
        self._strength = _LEAST_PENALTY
        self._program: Program | None = None
        self._reach = max(float(np.linalg.norm(theta)), 1.0)
        self._limits = np.full(count, np.inf)
        self._limit_violations()
        self.curvature = self._make_curvature(self._first_scale())
        self.is_fresh = True

    def evaluated(self, theta: Vector) -> At:
        """The loss and the constraints at a point."""
        loss, grad = self._problem.value_and_grad(theta)
        return At(theta, loss, grad, *self._constraints(theta))

    def clear(self) -> None:
        """Forgets the curvature."""
        self.curvature.clear(self._first_scale())
        self._program = None
        self.is_fresh = True

    def go_to(self, at: At, multipliers: Vector) -> None:
        """Makes another point the present one, with a cleared memory."""
        self.at, self.multipliers = at, multipliers
        self.clear()

    @property
    def left(self) -> float:
        """The decrease of the loss that the latest program leaves possible."""
        return max(self.promise, 0.0) + self.gap

    def violation(self) -> float:
        """The largest violation of a constraint."""
        return float(self.at.constraints.violation().max(initial=0.0))

    def is_well_feasible(self) -> bool:
        """Whether no smaller violation is worth a step."""
        allowed = _WELL_FEASIBLE * self._problem.feasibility
        rounding = _ROUNDINGS * self._rounding(self.at)
        worst = self.at.constraints.violation()
        return bool((worst <= np.maximum(allowed, rounding)).all())

    def _limit_violations(self) -> None:
        """Sets the limits on violations that the present point shows.

        Gradients may be tiny or zero at the start, and grow on the way.
        """
        values, rows, *_ = self.at.constraints
        along = self._reach * np.linalg.norm(rows, axis=1)
        is_known = np.isfinite(self._limits)
        first = _MOST_VIOLATION * np.abs(values)
        before = np.where(is_known, self._limits, first)
        limits = np.maximum(before, _MOST_VIOLATION * along)
        self._limits = np.where(limits > 0, limits, np.inf)

    def _rounding(self, at: At) -> Vector:
        """The rounding of the values of the constraints, `(m,)`."""
        terms = np.abs(at.constraints.rows) @ np.abs(at.theta)
        return self._problem.evaluation_eps * terms

    def iterate(self) -> bool:
        """Takes a step; returns whether one was found."""
        at = self.at
        try:
            step = self._step()
        except np.linalg.LinAlgError:
            return False  # The gradients are not finite, or too large.
        count = self.multipliers.size
        new = step.multipliers[:count]
        self._predict(step, new)
        slope = merit.slope(
            at.grad,
            step.direction,
            at.constraints,
            self.multipliers,
            self._penalties,
        )
        found = self._searched(step, slope)
        if found is None:
            return False
        length, after, step = found
        self.step = float(np.linalg.norm(after.theta - at.theta))
        self._program = None
        # Bounds are linear, so their multipliers do not change the curvature.
        change = after.grad - at.grad
        change -= (after.constraints.rows - at.constraints.rows).T @ new
        self.curvature.learn(
            after.theta - at.theta, change, length * step.force
        )
        self.is_fresh = False
        before, left = self.violation(), after.constraints.violation()
        self.at, self.multipliers = after, new
        self._limit_violations()
        little = 1.0 if self.is_well_feasible() else _LITTLE
        if length < 1 and left.max(initial=0.0) <= little * before:
            # Penalties that are too large make the valley along the
            # constraints so narrow that steps are short.
            self._strength = max(self._strength / _GROWTH, _LEAST_PENALTY)
            self._penalties = self._penalties / _GROWTH
        return True

    def _first_scale(self) -> float:
        """How far the first step goes: the length of the parameters."""
        size = float(np.linalg.norm(self.at.grad))
        reach = float(np.linalg.norm(self.at.theta)) or 1.0
        return reach / size if size > 0 else 1.0

    def _constraints(self, theta: Vector) -> tuple[Conditions, list[int]]:
        """All constraints at a point, and the number of values of each."""
        values, rows, equal = [], [], []
        for constraint in self._problem.constraints:
            found = np.atleast_1d(constraint.fun(theta))
            values.append(found)
            rows.append(constraint.jac(theta))
            equal.append(np.full(found.size, constraint.type == "eq"))
        sizes = [len(found) for found in values]
        every = Conditions(
            np.concatenate(values),
            np.concatenate(rows),
            np.concatenate(equal),
            np.zeros(sum(sizes), dtype=bool),
        )
        return every, sizes

    def _step(self) -> Step:
        """The step of the program, with penalties that make it feasible."""
        constraints = self.at.constraints
        self._program = self._program or Program(
            self.at.theta,
            self.at.grad,
            constraints.rows,
            (self._lower, self._upper),
            self.curvature,
        )
        before = constraints.violation()
        while True:
            self._penalties = np.maximum(
                self._penalties, self._strength / self._program.along
            )
            step = self._program(constraints, self.multipliers, self._penalties)
            reached = constraints.values + constraints.rows @ step.direction
            left = constraints._replace(values=reached).violation()
            # Beside a large decrease a small violation does not matter yet.
            weight = np.abs(step.multipliers[: left.size]) @ before
            is_enough = (
                left.max(initial=0.0) <= _ENOUGH * before.max(initial=0.0)
                or weight <= step.force @ step.direction / 2
            )
            if is_enough or self._strength >= _MOST_PENALTY:
                return step
            self._strength *= _GROWTH

    def _predict(self, step: Step, new: Vector) -> None:
        """Notes what the program predicts."""
        constraints = self.at.constraints
        self.promise = float(step.force @ step.direction) / 2
        open_ = np.where(
            constraints.equal,
            np.abs(constraints.values),
            np.abs(constraints.values) * ((new > 0) | (constraints.values < 0)),
        )
        self.gap = float(np.abs(new) @ open_)

    def _searched(
        self, step: Step, slope: float
    ) -> tuple[float, At, Step] | None:
        """The length of the step, the point there and the step; or `None`.

        Args:
            step: the step of the program.
            slope: the slope of the augmented Lagrangian along it.
        """
        at, problem = self.at, self._problem
        if not np.isfinite(step.direction).all() or not slope < 0:
            return None
        before = self._merit(at)
        noise = _ROUNDINGS * (
            problem.evaluation_eps * max(abs(at.loss), abs(before))
            + merit.change(
                at.constraints,
                self.multipliers,
                self._penalties,
                self._rounding(at),
            )
        )
        length = 1.0
        for _ in range(_MOST_TRIALS):
            trial = self._moved(step, length)
            if problem.spent() is not None or np.array_equal(trial, at.theta):
                return None
            after = self.evaluated(trial)
            if (after.constraints.violation() > self._limits).any():
                # The loss may fall without end where no constraint holds.
                self._strength = min(self._strength * _GROWTH, _MOST_PENALTY)
                length *= _SHORTEST
                continue
            rise = self._merit(after) - before
            if rise <= _ARMIJO * length * slope + noise:
                return length, after, step
            may_go_on = problem.spent() is None
            if length == 1 and np.isfinite(rise) and may_go_on:
                other = self._corrected(step, after)
                corrected = self.evaluated(self._moved(other))
                if self._merit(corrected) - before <= _ARMIJO * slope + noise:
                    return length, corrected, other
            shorter = _SHORTEST
            if np.isfinite(rise):
                bend = rise - length * slope
                shorter = -length * slope / (2 * bend) if bend > 0 else _LONGEST
            length *= min(max(shorter, _SHORTEST), _LONGEST)
        return None

    def _moved(self, step: Step, length: float = 1.0) -> Vector:
        """The point after a step; a full step ends exactly on its bounds."""
        theta = self.at.theta + length * step.direction
        if length == 1 and step.landing is not None:
            theta = np.where(np.isnan(step.landing), theta, step.landing)
        return self._problem.project(theta)

    def _corrected(self, step: Step, after: At) -> Step:
        """The step, corrected for how the constraints bend along it.

        Near a solution, full steps then remain acceptable: section 18.3 of
        Nocedal and Wright.

        Args:
            step: the step.
            after: the point after it.
        """
        own = self.at.constraints
        bent = after.constraints.values - own.rows @ step.direction
        assert self._program is not None  # The step came from it.
        return self._program(
            own._replace(values=bent), self.multipliers, self._penalties
        )

    def _merit(self, at: At) -> float:
        """The augmented Lagrangian at a point, infinite where not finite."""
        found = merit.merit(
            at.loss, at.constraints, self.multipliers, self._penalties
        )
        known = (
            np.isfinite(found)
            and np.isfinite(at.grad).all()
            and np.isfinite(at.constraints.rows).all()
        )
        return found if known else np.inf
