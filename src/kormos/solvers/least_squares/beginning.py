"""Begins with L-BFGS where steps of Levenberg-Marquardt are expensive.

A step of Levenberg and Marquardt's method factorizes a matrix. If that is
large, L-BFGS lowers the loss as far in the same time while the minimum is far
away. L-BFGS runs as long as that holds.
"""

import contextlib
import math
from collections.abc import Iterator

import numpy as np

from kormos.solvers.least_squares.local_models import LocalModels
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Iterate
from kormos.solvers.protocols import LeastSquaresSettings
from kormos.solvers.protocols import Observer
from kormos.solvers.protocols import Point

# L-BFGS only begins if the shorter side of J is at least this long: a step then
# takes as long as dozens of evaluations.
_FEWEST = 1_000
# A step takes as long as one evaluation for each of this many entries of that
# side. For each number in J, a step takes as many operations as the side has
# entries, at 50 a nanosecond, and an evaluation takes a few dozen. Our choice,
# from Poisson's equation in three and five dimensions.
_SIDE_AN_EVALUATION = 100
# L-BFGS ends where the loss falls by less than this factor in the time of a
# step. Our choice: early steps gain a factor of 1.3 to 2.
_WORTH = 2.0
# If the limit on iterations is worth at most this many steps, the run does not
# begin with L-BFGS: the user then means iterations of Levenberg-Marquardt.
_MOST_SHORT = 20
# `Beginning` looks at the loss each time after this many iterations. Our
# choice: they take about a tenth of the time of a step.
_STRIDE = 10


def window(problem: Problem, settings: LeastSquaresSettings) -> int:
    """The iterations of L-BFGS in the time of a step; 0 to begin without it.

    Args:
        problem: the problem.
        settings: the `LevenbergMarquardt`.
    """
    is_plain = settings.linear_solver == "auto" and settings.preset is None
    if not is_plain or problem.is_bounded or settings.regularization:
        return 0
    models = LocalModels(problem, "auto", True, np.zeros(problem.size), False)
    shorter, most = min(models.outputs, problem.size), problem.budget.iterations
    count = -(-shorter // _SIDE_AN_EVALUATION)
    is_short = most is not None and most <= _MOST_SHORT * count
    return 0 if is_short or shorter < _FEWEST else count


@contextlib.contextmanager
def looks(problem: Problem) -> Iterator[None]:
    """A scope in which compiled calls end where `Beginning` looks."""
    before = problem.stride
    problem.stride = math.gcd(before, _STRIDE)
    try:
        yield
    finally:
        problem.stride = before


class Beginning:
    """Observes L-BFGS, and ends it when Levenberg-Marquardt promises more.

    Args:
        observer: the observer of the run.
        problem: the problem.
        count: the iterations in the time of a step.

    Attributes:
        has_ended: whether Levenberg-Marquardt promises more.
    """

    def __init__(self, observer: Observer, problem: Problem, count: int):
        self._observer = observer
        self._problem = problem
        self._count = count
        self._losses: list[float] = []
        self._evaluations = 0
        self.has_ended = False

    def started(self, point: Point) -> bool:
        self._losses = [point.loss]
        self._evaluations = self._problem.fg_evals
        return self._observer.started(point)

    def accepted(self, iterate: Iterate) -> bool:
        made = self._problem.fg_evals - self._evaluations
        self._evaluations += made
        self._losses.append(iterate.loss)
        logs = {
            "step": iterate.logs["step"],
            "trials": made,
            "damping": float("nan"),
            "radius": float("nan"),
        }
        # Levenberg-Marquardt cannot continue from the state of L-BFGS.
        stopped = self._observer.accepted(
            iterate._replace(state=None, logs=logs)
        )
        done = len(self._losses) - 1
        # Calls of the loop end at multiples of the stride, whatever the clock.
        if done % _STRIDE == 0 and done >= self._count:
            before = self._losses[-1 - self._count]
            self.has_ended = iterate.loss * _WORTH > before
        self.has_ended = self.has_ended and not stopped
        return stopped or self.has_ended


class Begun:
    """An observer that knows the start already.

    Args:
        observer: the observer of the run.
    """

    def __init__(self, observer: Observer):
        self._observer = observer

    def started(self, point: Point) -> bool:
        del point
        return False

    def accepted(self, iterate: Iterate) -> bool:
        return self._observer.accepted(iterate)
