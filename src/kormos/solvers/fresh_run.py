"""A short run from a point that is claimed to be an optimum.

It uses nothing but the point. For few parameters it takes Newton steps, with a
Hessian from differences of the gradient. For more it takes a few steps of BFGS.
Parameters that the gradient presses against a bound are held there, and trials
are moved into the box.

The two-loop recursion: J. Nocedal and S. J. Wright, "Numerical Optimization",
2nd edition, algorithm 7.4.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kormos.solvers.difference_model import DifferenceModel
from kormos.solvers.parameter_units import sizes_of
from kormos.solvers.parameter_units import units_of
from kormos.types import Array
from kormos.types import Vector

# For up to this many parameters Newton steps are taken. Our choice: each column
# of the Hessian takes an evaluation, so the Hessian takes at most as many as
# `MOST_TRIALS` steps.
MOST_NEWTON = 10
# At most this many steps are tried, besides what the Hessian takes. Our choice:
# as many as `convergence.trial_evaluations` begins with.
MOST_TRIALS = 10

# This many Newton steps are tried in one direction, each of this part of the
# one before. Our choice: a 64th of the step gains something if the model is not
# far off.
_SHORTER, _MOST_SHORTENED = 0.25, 4
# If a step gains less than this part of what was predicted, no other follows.
# Our choice: then only rounding is left, or the model does not describe the
# loss.
_LEAST_KEPT = 1e-3
# A step that gains more than the first number times the prediction met no
# curvature, and one that changes the loss by less than the second part may be
# lost in its rounding. Both are followed by a step that is at least the third
# number times as long. Our choice: without curvature a step gains twice the
# prediction, and with curvature just the prediction.
_STRAIGHT, _HIDDEN, _LONGER = 1.5, 1e-6, 10.0
# After about this many such steps, a linear loss would be zero. Our choice: the
# longest step that stays before the minimum then still gains a visible part.
_MOST_LONGER = 4

# The first step of BFGS along the gradient is this part of the parameters'
# length.
_FIRST_STEP = 0.1
# Before it there is a very short one, of this power of the spacing, to measure
# the curvature: the same as in `DifferenceModel`.
_PROBE_POWER = 1 / 3
# A step of BFGS that gained nothing is shortened to the minimum of a parabola,
# but within these limits: J. E. Dennis and R. B. Schnabel, "Numerical Methods
# for Unconstrained Optimization and Nonlinear Equations", algorithm A6.3.1. In
# all it is not shortened below the third number times itself, our choice.
_LEAST_SHORTENED, _MOST_OF_STEP, _SHORTEST = 0.1, 0.5, 1e-6

Evaluate = Callable[[Vector], tuple[float, Vector]]


class Gain(NamedTuple):
    """What a fresh run has reached.

    Attributes:
        theta: the best point, `(size,)`.
        loss: the loss there.
        grad: the gradient there.
        promise: the decrease that the run's model of the loss predicts there.
        evaluations: the number of evaluations that it took.
        non_finite: the number of them that were not finite.
    """

    theta: Vector
    loss: float
    grad: Vector
    promise: float
    evaluations: int
    non_finite: int


class _Point(NamedTuple):
    """A point, its loss and its gradient."""

    theta: Vector
    loss: float
    grad: Vector


def try_to_gain(
    evaluate: Evaluate,
    theta: Vector,
    loss: float,
    grad: Vector,
    evaluation_eps: float,
    lower: Vector | None = None,
    upper: Vector | None = None,
    units: Vector | None = None,
    most: int = MOST_TRIALS,
) -> Gain:
    """Tries to lower a loss from a point, in a handful of evaluations.

    Args:
        evaluate: loss and gradient as a function of a float64 array `(size,)`.
        theta: the point.
        loss: the loss there.
        grad: the gradient there.
        evaluation_eps: the machine epsilon of the evaluation's dtype.
        lower, upper: arrays of bounds, or `None`.
        units: units of the parameters, `(size,)`, or `None` to find them.
        most: how many steps may be tried. The Hessian of up to ten parameters
            takes one evaluation more for each parameter, or two if it is
            nearly singular.

    Returns:
        What was gained. If that is nothing, it has the point itself.
    """
    run = _Run(
        evaluate, _Point(theta, loss, grad), evaluation_eps, lower, upper
    )
    free = run.free()
    if not free.any():
        return run.gained(0.0)
    if np.count_nonzero(free) <= MOST_NEWTON:
        return run.gained(_newton(run, free, units, most))
    given = np.ones_like(theta) if units is None else units
    promise, spread = _bfgs(
        run, given, most if units is not None else most // 2
    )
    if units is None:
        found = units_of(spread)
        if (found != given).any():
            again, _ = _bfgs(run, found, most - most // 2)
            promise = max(promise, again)
    return run.gained(promise)


class _Run:
    """Evaluates in the box, counts, and keeps the best point."""

    def __init__(
        self,
        evaluate: Evaluate,
        start: _Point,
        evaluation_eps: float,
        lower: Vector | None,
        upper: Vector | None,
    ):
        infinite = np.full(start.theta.shape, np.inf)
        self.lower = -infinite if lower is None else lower
        self.upper = infinite if upper is None else upper
        self.best = start
        self.evaluation_eps = evaluation_eps
        self._evaluate = evaluate
        self._evaluations = self._non_finite = 0

    def free(self) -> Array:
        """A mask of the parameters that are not pressed against a bound."""
        theta, grad = self.best.theta, self.best.grad
        at_lower = (theta <= self.lower) & (grad >= 0)
        at_upper = (theta >= self.upper) & (grad <= 0)
        return ~(at_lower | at_upper)

    def into_box(self, theta: Vector) -> Vector:
        """The nearest point of the box."""
        return np.clip(theta, self.lower, self.upper)

    def look(self, theta: Vector) -> _Point | None:
        """Evaluates at a point; `None` if that is not finite."""
        self._evaluations += 1
        loss, grad = self._evaluate(theta)
        if math.isfinite(loss) and np.isfinite(grad).all():
            return _Point(theta, float(loss), grad)
        self._non_finite += 1
        return None

    def go(self, theta: Vector) -> _Point | None:
        """Like `look`; a lower point becomes the best."""
        point = self.look(theta)
        if point is not None and point.loss < self.best.loss:
            self.best = point
        return point

    def gained(self, promise: float) -> Gain:
        """What the run has gained, with what is predicted at its end."""
        counts = self._evaluations, self._non_finite
        return Gain(*self.best, promise, *counts)


def _newton(run: _Run, free: Array, units: Vector | None, most: int) -> float:
    """Takes Newton steps with one Hessian.

    Args:
        run: the run.
        free: a mask of the parameters to move.
        units: the units of the parameters, `(size,)`, or `None` to find them.
        most: how many steps may be tried.

    Returns:
        The decrease that is predicted at the end.
    """

    def gradient(theta: Vector) -> Vector | None:
        point = run.look(theta)
        return None if point is None else point.grad

    sizes = sizes_of(run.best.theta, units)
    box = run.lower, run.upper
    model = DifferenceModel(
        gradient, *run.best, run.evaluation_eps, sizes, free, *box
    )
    tried = 0
    while True:
        before = run.best
        step, promise = model.step(before.theta, before.grad)
        if promise == 0 or tried >= most:
            return promise
        # A shorter step shows no more of a decrease that rounding hides.
        is_visible = promise > run.evaluation_eps * abs(before.loss)
        shortened = _MOST_SHORTENED if is_visible else 1
        for _ in range(min(shortened, most - tried)):
            run.go(run.into_box(before.theta + step))
            tried += 1
            if run.best.loss < before.loss:
                break
            step = _SHORTER * step
        tried += _lengthened(run, model.flat, most - tried)
        if before.loss - run.best.loss <= _LEAST_KEPT * promise:
            return model.step(run.best.theta, run.best.grad)[1]


def _lengthened(run: _Run, step: Vector, most: int) -> int:
    """Takes longer and longer steps in a direction without curvature.

    A parameter may be many powers of ten smaller than it must become. The loss
    then changes by less than its rounding where that parameter changes by its
    own size, whatever the other parameters are.

    Args:
        run: the run.
        step: a first step, `(size,)`; zero if there is curvature everywhere.
        most: how many steps may be tried.

    Returns:
        The number of steps that were tried.
    """
    start, tried = run.best, 0
    promise = -float(start.grad @ step) / 2
    if not promise > 0:
        return 0
    size = abs(start.loss)
    longer = max(_LONGER, (size / promise) ** (1 / _MOST_LONGER))
    while tried < most:
        before = run.best
        point = run.go(run.into_box(before.theta + step))
        tried += 1
        decrease = before.loss - run.best.loss
        if point is None or point.loss - start.loss > _HIDDEN * size:
            break
        is_hidden = start.loss - run.best.loss <= _HIDDEN * size
        if not (is_hidden or decrease > _STRAIGHT * promise):
            break
        step = longer * step
        promise = -float(start.grad @ step) / 2
    return tried


def _bfgs(run: _Run, units: Vector, most: int) -> tuple[float, Vector]:
    """Takes steps of BFGS in given units.

    Args:
        run: the run.
        units: the units of the parameters, `(size,)`.
        most: how many steps may be tried.

    Returns:
        The decrease that is predicted at the end, and the sums of squares of
        the changes of each entry of the gradient.
    """
    start = run.best
    pairs: list[tuple[Vector, Vector]] = []
    spread = np.zeros_like(start.theta)

    def keep(before: _Point, after: _Point | None) -> None:
        if after is None:
            return
        change = (after.theta - before.theta) / units
        turn = (after.grad - before.grad) * units
        spread[:] += (after.grad - before.grad) ** 2
        sizes = float(np.linalg.norm(change) * np.linalg.norm(turn))
        if change @ turn > run.evaluation_eps * sizes:
            pairs.append((change, turn))

    scaled = np.where(run.free(), start.grad, 0.0) * units
    slope = float(np.linalg.norm(scaled))
    if slope == 0:
        return 0.0, spread
    most_step = (float(np.linalg.norm(start.theta / units)) or 1.0) / slope
    # A very short step shows how far away a minimizer is.
    length = run.evaluation_eps**_PROBE_POWER * most_step
    probe = start.theta - length * scaled * units
    keep(start, run.look(run.into_box(probe)))
    tried, factor = 1, 1.0
    while True:
        before = run.best
        step = _step(run, pairs, units, _FIRST_STEP * most_step)
        promise = -float(before.grad @ step) / 2
        if tried >= most or not promise > 0 or factor < _SHORTEST:
            return max(promise, 0.0), spread
        after = run.go(run.into_box(before.theta + factor * step))
        tried += 1
        if run.best is before:
            factor *= _shortened(before, after, factor * step)
        else:
            keep(before, run.best)
            factor = 1.0


def _shortened(before: _Point, after: _Point | None, step: Vector) -> float:
    """The factor by which a step is shortened, from a parabola.

    Args:
        before: the point before the step.
        after: the point after it, or `None` if the loss is not finite there.
        step: the step, `(size,)`.
    """
    if after is None:
        return _LEAST_SHORTENED
    slope = float(before.grad @ step)
    bend = after.loss - before.loss - slope
    part = -slope / (2 * bend or 1.0)
    return float(np.clip(part, _LEAST_SHORTENED, _MOST_OF_STEP))


def _step(
    run: _Run,
    pairs: list[tuple[Vector, Vector]],
    units: Vector,
    length: float,
) -> Vector:
    """The quasi-Newton step from the best point, moved into the box.

    Args:
        run: the run.
        pairs: pairs of a step and the change of the gradient along it, in
            units.
        units: the units of the parameters, `(size,)`.
        length: the factor of the gradient for a step without pairs.
    """
    free = run.free()
    vector = np.where(free, run.best.grad, 0.0) * units
    if not pairs:
        vector = length * vector
    factors = []
    for change, turn in reversed(pairs):
        factors.append(change @ vector / (change @ turn))
        vector = vector - factors[-1] * turn
    if pairs:
        change, turn = pairs[-1]
        vector = vector * (change @ turn / (turn @ turn))
    for (change, turn), factor in zip(pairs, reversed(factors), strict=True):
        vector = vector + (factor - turn @ vector / (change @ turn)) * change
    theta = run.best.theta
    step = np.where(free, -vector * units, 0.0)
    return run.into_box(theta + step) - theta
