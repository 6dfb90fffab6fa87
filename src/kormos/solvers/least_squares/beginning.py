"""A cheap beginning, for least squares whose steps take long.

Far from a minimum, L-BFGS lowers the loss as far in the time of one step of
Levenberg and Marquardt's method, where that factorizes a large matrix. It goes
on for as long as it does.
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

# From so long a shorter side of J on, a step takes dozens of evaluations.
_FEWEST = 1_000
# A step takes as long as an evaluation for each so many of them: it takes as
# many operations for each number in J, of 50 a nanosecond, and an evaluation a
# few dozens. Our choice, from Poisson's equation in three and five dimensions.
_SIDE_AN_EVALUATION = 100
# The beginning ends where the loss falls by less than this factor in the time
# of a step. Our choice: early steps gain a factor of 1.3 to 2.
_WORTH = 2.0
# A run of at most so many steps' worth of iterations is one of steps only: a
# limit of iterations means these.
_MOST_SHORT = 20
# Looks are this many iterations apart. Our choice: a tenth of a step or so.
_STRIDE = 10


def window(problem: Problem, settings: LeastSquaresSettings) -> int:
    """The iterations of L-BFGS that a step is worth, or 0 for no beginning.

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
    """Observes L-BFGS, and ends it where steps promise more.

    Args:
        observer: the observer of the run.
        problem: the problem.
        count: the iterations that a step is worth.

    Attributes:
        has_ended: whether steps promise more.
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
        # What it has learned is not what the steps go on from.
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
