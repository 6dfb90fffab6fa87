"""The verdict on the end of a least-squares run: see `solvers/convergence`."""

import numpy as np

from kormos.solvers import convergence
from kormos.solvers import statuses
from kormos.solvers.least_squares.local_models import Linearized
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.types import Vector


class LeastSquaresEnd:
    """Judges a point from which no step of a model gained anything.

    Args:
        problem: the problem.
        gtol: a predicted decrease of this part of the loss is small.
    """

    def __init__(self, problem: Problem, gtol: float):
        self._problem = problem
        self._gtol = gtol

    def judge(
        self, here: Linearized, norms: Vector, theta: Vector, loss: float
    ) -> Outcome:
        """The outcome of a run that ends at a point.

        Args:
            here: what is known there.
            norms: the 2-norms of the columns of J, `(size,)`.
            theta: the point.
            loss: the loss there.
        """
        problem = self._problem

        def value(point: Vector) -> float:
            return problem.value(problem.project(point))

        promise, noise = _promise(here, norms), None
        if convergence.is_promising(promise, loss, self._gtol):
            if not problem.affords(convergence.MOST_MEASURING):
                return Outcome(statuses.EVALUATION_LIMIT, theta, loss)
            noise = convergence.measured_noise(
                value, theta, loss, self._problem.evaluation_eps
            )
            # Rounding of the parameters changes residuals that are zero.
            moved = self._problem.evaluation_eps * here.model.scaled(theta)
            noise = convergence.vanished_noise(
                max(noise, moved**2 / 2),
                promise,
                value,
                theta,
                loss,
                problem.evaluation_eps,
            )
        verdict = convergence.confirmed(
            convergence.judge(promise, loss, self._gtol, noise),
            value,
            theta,
            problem.pull(theta, here.grad),
            loss,
            noise,
            problem.evaluation_eps,
            problem.project,
        )
        return Outcome(
            verdict.status,
            theta,
            loss,
            verdict.test,
            verdict.value,
            verdict.threshold,
            findings=verdict.findings,
        )


def _promise(here: Linearized, norms: Vector) -> float:
    """The predicted decrease where no step of the model gains anything.

    It is the smaller one of two: that of the undamped step, and that of the
    best step along a single parameter, which is half the square of MINPACK's
    cosine of the residuals and a column of J. Where J is singular, the undamped
    step may have any length, and no model is right for it.
    """
    known = np.isfinite(here.model.scale) & (norms > 0)
    cosines = here.grad[known] / norms[known]
    single = np.max(cosines**2, initial=0.0) / 2
    return float(min(here.model.damped(0.0).promised, single))
