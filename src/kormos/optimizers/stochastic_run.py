"""Levenberg-Marquardt steps on batches of rows, one after the other.

What the whole run guarantees is not so here: a step lowers the loss of its
batch, and may raise that of all data.
"""

import numpy as np

from kormos.numerics import stopping
from kormos.numerics.stopping import Outcome
from kormos.optimizers.least_squares_run import LeastSquaresRun
from kormos.optimizers.problem import Problem


def run(problem, settings, theta, report, earlier):
    """Passes over the data until a limit, or until `report` says stop.

    Args:
        problem: the `Problem`, whose objective has batches.
        settings: the `LevenbergMarquardt`.
        theta: the start.
        report: as `Stage` has it, told once a pass.
        earlier: the `SolverState` to go on from, or `None`.

    Returns:
        An `Outcome` and a `SolverState`.
    """
    rng = np.random.default_rng(0)
    loss = problem.value(theta)
    stop = report(theta, loss, None)
    status, state = None, earlier
    if not np.isfinite(loss):
        status = stopping.NON_FINITE
    while not stop and status is None:
        start, steps = theta, 0
        for batch in problem.batches(rng):
            part = Problem(
                batch,
                problem.lower,
                problem.upper,
                epsilon=problem.epsilon,
                rounding=problem.rounding,
            )
            step = LeastSquaresRun(part, settings)
            if step.begin(theta, state):
                moved = step.step()
                steps += not np.array_equal(moved, theta)
                theta, state = moved, step.state(moved)
            problem.fg_evals += part.fg_evals
            problem.hessp_evals += part.hessp_evals
            status = problem.spent()
            if status is not None:
                break
        loss = problem.value(theta)
        logs = {"step": float(np.linalg.norm(theta - start)), "steps": steps}
        stop = report(theta, loss, None, **logs, **step.logs())
    return Outcome(status, theta, loss), state
