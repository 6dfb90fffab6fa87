"""Levenberg-Marquardt steps on batches of rows, one after the other.

Unlike in a run on all data, the loss may rise: a step lowers the loss of its
batch, and may raise that of all data.
"""

import numpy as np

from kormos.solvers import statuses
from kormos.solvers.least_squares.local_models import takes_products
from kormos.solvers.least_squares.loop import LeastSquaresRun
from kormos.solvers.newton.method import NewtonMethod
from kormos.solvers.newton.single_step import NewtonStep
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Iterate
from kormos.solvers.protocols import LeastSquaresSettings
from kormos.solvers.protocols import Observer
from kormos.solvers.protocols import Point
from kormos.solvers.solver_state import SolverState
from kormos.solvers.solver_state import is_rounding
from kormos.types import Vector

# The names of the number of passes, and of the best point, in the state that is
# kept.
_PASSES, _BEST = "passes", "best"


def run(
    problem: Problem,
    settings: LeastSquaresSettings,
    theta: Vector,
    earlier: SolverState | None,
    observer: Observer,
) -> Outcome:
    """Passes over the data until a limit is reached, or the observer stops.

    Args:
        problem: the `Problem`, whose objective has batches.
        settings: the `LevenbergMarquardt`.
        theta: the start.
        earlier: the `SolverState` to continue from, or `None`.
        observer: the `Observer`, which is called after each pass.

    Returns:
        An `Outcome`.
    """
    loss = problem.value(theta)
    problem.verify(Problem.peek, theta, loss)
    best = _best(problem, Point(theta, loss, None), earlier)
    stop = observer.started(best)
    if earlier is not None:
        theta = earlier.point(theta, problem.storage_eps)
    status = problem.spent() if np.isfinite(best.loss) else statuses.NON_FINITE
    one_pass = _Pass(problem, settings, theta, earlier)
    while not stop and status is None:
        before = loss, theta, one_pass.state
        status, logs = one_pass()
        loss = problem.value(one_pass.theta)
        if not np.isfinite(loss):
            loss, one_pass.theta, one_pass.state = before
        length = float(np.linalg.norm(one_pass.theta - theta))
        theta, logs = one_pass.theta, {"step": length, **logs}
        if loss <= best.loss:
            best = Point(theta, loss, None)
        stop = observer.accepted(
            Iterate(theta, loss, None, one_pass.keep(best), logs)
        )
        status = status or problem.spent()
    ended = None if stop else status
    return Outcome(ended, best.theta, best.loss, state=one_pass.keep(best))


def _best(problem: Problem, here: Point, earlier: SolverState | None) -> Point:
    """The best point that is known when a run begins.

    The variables have the best point after a fit, but the latest one in a
    backup. If they have another one, it was set on purpose.

    Args:
        problem: the `Problem`.
        here: the point of the variables.
        earlier: the `SolverState` to continue from, or `None`.
    """
    theta = None if earlier is None else earlier.arrays().get(_BEST)
    if theta is None or theta.shape != here.theta.shape:
        return here
    assert earlier is not None  # The point is from it.
    if not is_rounding(earlier.left, here.theta, problem.storage_eps):
        return here
    # The data may be others now.
    loss = problem.value(theta)
    return Point(theta, loss, None) if loss < here.loss else here


class _Pass:
    """A step on every batch, in an order that depends on the pass's number.

    So a resumed fit makes the same passes as one long fit.

    Attributes:
        theta: the present point, `(size,)`.
        state: the `SolverState` there, or `None`.
    """

    def __init__(
        self,
        problem: Problem,
        settings: LeastSquaresSettings,
        theta: Vector,
        state: SolverState | None,
    ):
        self._problem = problem
        self._settings = settings
        self.theta = theta
        self.state = state
        self._done = 0
        if state is not None:
            self._done = int(state.arrays().get(_PASSES, 0))

    def __call__(self) -> tuple[str | None, dict[str, float]]:
        """Makes the pass; returns the limit that was reached, and the logs."""
        problem, steps = self._problem, 0
        status: str | None = None
        damping: dict[str, float] = {}
        for batch in problem.batches(np.random.default_rng(self._done)):
            status = problem.spent()
            if status is not None:
                break
            before = self.theta
            damping = self._step(batch)
            steps += not np.array_equal(self.theta, before)
        else:
            self._done += 1
        return status, {"steps": steps, **damping}

    def keep(self, best: Point) -> SolverState | None:
        """The state, with the number of passes and the best point so far."""
        if self.state is not None:
            self.state.note(
                **{_PASSES: np.int32(self._done), _BEST: best.theta}
            )
        return self.state

    def _step(self, batch: Problem) -> dict[str, float]:
        step: NewtonStep | LeastSquaresRun
        if takes_products(batch, self._settings):
            step = NewtonStep(batch, NewtonMethod(is_gauss_newton=True))
        else:
            step = LeastSquaresRun(batch, self._settings)
        if step.begin(self.theta, self.state):
            self.theta = step.step()
            self.state = step.state(self.theta)
        return step.logs()
