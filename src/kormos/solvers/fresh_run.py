"""A short run from a point that is claimed to be an optimum.

It knows nothing but the point. For few parameters it takes Newton steps, with
a Hessian from differences of the gradient; for more a few steps of BFGS.
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

# Up to so many parameters the Hessian is taken, a column an evaluation.
MOST_NEWTON = 10
# Trials of steps, besides what the Hessian takes.
MOST_TRIALS = 10

_SHORTER = 0.25
_MOST_SHORTENED = 4
# Where a step keeps less than this part of its promise, no more follow.
_LEAST_KEPT = 1e-3
# A step that keeps more than this part of its promise met no curvature, and one
# that changes less than this part of the loss may be lost in its rounding. Both
# are followed by one that is so many times as long.
_STRAIGHT, _HIDDEN, _LONGER = 1.5, 1e-6, 10.0
# A step of BFGS is not made shorter than this part of itself.
_SHORTEST = 1e-6

Evaluate = Callable[[np.ndarray], tuple[float, np.ndarray]]


class Gain(NamedTuple):
    """What a fresh run has reached.

    Attributes:
        theta: the best point, `(size,)`.
        loss: the loss there.
        grad: the gradient there.
        promise: the decrease that the run's model of the loss promises there.
        evaluations: how many it took.
        non_finite: how many of them were not finite.
    """

    theta: np.ndarray
    loss: float
    grad: np.ndarray
    promise: float
    evaluations: int
    non_finite: int


class _Point(NamedTuple):
    theta: np.ndarray
    loss: float
    grad: np.ndarray


def try_to_gain(
    evaluate: Evaluate,
    theta: np.ndarray,
    loss: float,
    grad: np.ndarray,
    epsilon: float,
    lower: np.ndarray | None = None,
    upper: np.ndarray | None = None,
    units: np.ndarray | None = None,
    most: int = MOST_TRIALS,
) -> Gain:
    """Tries to lower a loss from a point, in a handful of evaluations.

    Args:
        evaluate: loss and gradient as a function of a float64 array `(size,)`.
        theta: the point.
        loss: the loss there.
        grad: the gradient there.
        epsilon: the spacing of numbers near one in the evaluation's dtype.
        lower, upper: arrays of bounds, or `None`.
        units: units of the parameters, `(size,)`, or `None` to find them.
        most: how many steps may be tried. The Hessian of up to ten parameters
            takes as many evaluations more as there are parameters, or twice
            as many where it is nearly singular.

    Returns:
        A `Gain`; where nothing was gained it has the point itself.
    """
    run = _Run(evaluate, _Point(theta, loss, grad), epsilon, lower, upper)
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
        epsilon: float,
        lower: np.ndarray | None,
        upper: np.ndarray | None,
    ):
        infinite = np.full(start.theta.shape, np.inf)
        self.lower = -infinite if lower is None else lower
        self.upper = infinite if upper is None else upper
        self.best = start
        self.epsilon = epsilon
        self._evaluate = evaluate
        self._evaluations = self._non_finite = 0

    def free(self) -> np.ndarray:
        """Which parameters the gradient does not press against a bound."""
        theta, grad = self.best.theta, self.best.grad
        at_lower = (theta <= self.lower) & (grad >= 0)
        at_upper = (theta >= self.upper) & (grad <= 0)
        return ~(at_lower | at_upper)

    def into_box(self, theta: np.ndarray) -> np.ndarray:
        return np.clip(theta, self.lower, self.upper)

    def look(self, theta: np.ndarray) -> _Point | None:
        """Evaluates at a point; `None` where that is not finite."""
        self._evaluations += 1
        loss, grad = self._evaluate(theta)
        if math.isfinite(loss) and np.isfinite(grad).all():
            return _Point(theta, float(loss), grad)
        self._non_finite += 1
        return None

    def go(self, theta: np.ndarray) -> _Point | None:
        """As `look`; a lower point becomes the best."""
        point = self.look(theta)
        if point is not None and point.loss < self.best.loss:
            self.best = point
        return point

    def gained(self, promise: float) -> Gain:
        counts = self._evaluations, self._non_finite
        return Gain(*self.best, promise, *counts)


def _newton(
    run: _Run, free: np.ndarray, units: np.ndarray | None, most: int
) -> float:
    """Newton steps with one Hessian; what is promised at the end."""

    def gradient(theta: np.ndarray) -> np.ndarray | None:
        point = run.look(theta)
        return None if point is None else point.grad

    sizes = sizes_of(run.best.theta, units)
    box = run.lower, run.upper
    model = DifferenceModel(gradient, *run.best, run.epsilon, sizes, free, *box)
    tried = 0
    while True:
        before = run.best
        step, promise = model.step(before.theta, before.grad)
        if promise == 0 or tried >= most:
            return promise
        # Of what is all rounding a shorter step shows no more.
        shows = promise > run.epsilon * abs(before.loss)
        shortened = _MOST_SHORTENED if shows else 1
        for _ in range(min(shortened, most - tried)):
            run.go(run.into_box(before.theta + step))
            tried += 1
            if run.best.loss < before.loss:
                break
            step = _SHORTER * step
        if model.is_flat:
            tried += _lengthened(run, before, step, promise, most - tried)
        if before.loss - run.best.loss <= _LEAST_KEPT * promise:
            return model.step(run.best.theta, run.best.grad)[1]


def _lengthened(
    run: _Run, before: _Point, step: np.ndarray, promise: float, most: int
) -> int:
    """Goes on along a step where a model has no curvature.

    Returns:
        How many steps were tried.
    """
    start, tried = before, 0
    while tried < most:
        decrease = before.loss - run.best.loss
        is_hidden = start.loss - run.best.loss <= _HIDDEN * abs(start.loss)
        if not (is_hidden or decrease > _STRAIGHT * promise):
            break
        before, step = run.best, _LONGER * step
        promise = -float(start.grad @ step) / 2
        run.go(run.into_box(before.theta + step))
        tried += 1
    return tried


def _bfgs(run: _Run, units: np.ndarray, most: int) -> tuple[float, np.ndarray]:
    """Steps of BFGS in given units.

    Returns:
        What is promised at the end, and the sums of squares of the changes of
        each entry of the gradient.
    """
    start = run.best
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    spread = np.zeros_like(start.theta)

    def keep(before: _Point, after: _Point | None) -> None:
        if after is None:
            return
        change = (after.theta - before.theta) / units
        turn = (after.grad - before.grad) * units
        spread[:] += (after.grad - before.grad) ** 2
        sizes = float(np.linalg.norm(change) * np.linalg.norm(turn))
        if change @ turn > run.epsilon * sizes:
            pairs.append((change, turn))

    scaled = np.where(run.free(), start.grad, 0.0) * units
    slope = float(np.linalg.norm(scaled))
    if slope == 0:
        return 0.0, spread
    most_step = (float(np.linalg.norm(start.theta / units)) or 1.0) / slope
    # A very short step shows how far away a minimizer is.
    probe = start.theta - run.epsilon ** (1 / 3) * most_step * scaled * units
    keep(start, run.look(run.into_box(probe)))
    tried, factor = 1, 1.0
    while True:
        before = run.best
        step = _step(run, pairs, units, 0.1 * most_step)
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


def _shortened(before: _Point, after: _Point | None, step: np.ndarray) -> float:
    """By how much a step is shortened, from a parabola."""
    if after is None:
        return 0.1
    slope = float(before.grad @ step)
    bend = after.loss - before.loss - slope
    return float(np.clip(-slope / (2 * bend or 1.0), 0.1, 0.5))


def _step(
    run: _Run,
    pairs: list[tuple[np.ndarray, np.ndarray]],
    units: np.ndarray,
    length: float,
) -> np.ndarray:
    """The quasi-Newton step from the best point, moved into the box."""
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
