"""Levenberg-Marquardt steps on batches of rows, one after the other.

What the whole run guarantees is not so here: a step lowers the loss of its
batch, and may raise that of all data.
"""

import numpy as np

from kormos.solvers import statuses
from kormos.solvers.least_squares.loop import LeastSquaresRun
from kormos.solvers.outcome import Outcome

# How the number of passes is called in the state that is kept.
_PASSES = "passes"


def run(problem, settings, theta, report, earlier):
    """Passes over the data until a limit, or until `report` says stop.

    Args:
        problem: the `Problem`, whose objective has batches.
        settings: the `LevenbergMarquardt`, which is given the state after
            each pass: callbacks may save it.
        theta: the start.
        report: as `Stage` has it, told once a pass.
        earlier: the `SolverState` to go on from, or `None`.

    Returns:
        An `Outcome`.
    """
    settings.solver_state = earlier
    if earlier is not None:
        theta = earlier.point(theta, problem.rounding)
    loss = problem.value(theta)
    stop = report(theta, loss, None)
    status = problem.spent() if np.isfinite(loss) else statuses.NON_FINITE
    one_pass = _Pass(problem, settings, theta, earlier)
    while not stop and status is None:
        before = loss, theta, one_pass.state
        status, logs = one_pass()
        loss = problem.value(one_pass.theta)
        if not np.isfinite(loss):
            loss, one_pass.theta, one_pass.state = before
        length = float(np.linalg.norm(one_pass.theta - theta))
        theta, settings.solver_state = one_pass.theta, one_pass.keep()
        stop = report(theta, loss, None, step=length, **logs)
        status = status or problem.spent()
    return Outcome(None if stop else status, theta, loss)


class _Pass:
    """A step on every batch, in an order that the pass's number draws.

    A fit that is resumed goes on with the passes of one long fit.

    Attributes:
        theta: where it has arrived.
        state: the `SolverState` there, or `None`.
    """

    def __init__(self, problem, settings, theta, state):
        self._problem = problem
        self._settings = settings
        self.theta = theta
        self.state = state
        self._done = 0
        if state is not None:
            self._done = int(state.arrays().get(_PASSES, 0))

    def __call__(self):
        """The limit that was reached, or `None`, and what to log."""
        problem, status, damping, steps = self._problem, None, {}, 0
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

    def keep(self):
        """The state, with the number of passes."""
        if self.state is not None:
            self.state.note(**{_PASSES: np.int32(self._done)})
        return self.state

    def _step(self, batch):
        step = LeastSquaresRun(batch, self._settings)
        if step.begin(self.theta, self.state):
            self.theta = step.step()
            self.state = step.state(self.theta)
        return step.logs()
