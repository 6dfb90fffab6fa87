"""What the end of a least-squares run is: see `solvers/convergence.py`."""

from typing import Any

import numpy as np

from kormos.solvers import convergence
from kormos.solvers.outcome import Outcome


class LeastSquaresEnd:
    """Judges a point from which no step of a model gained anything.

    Args:
        problem: the `Problem`.
        gtol: the part of the loss that is small enough a promise.
    """

    def __init__(self, problem: Any, gtol: float):
        self._problem = problem
        self._gtol = gtol

    def judge(
        self, here: Any, norms: np.ndarray, theta: np.ndarray, loss: float
    ) -> Outcome:
        """The end that a point is.

        Args:
            here: the `Linearized` there.
            norms: the 2-norms of the columns of J, `(size,)`.
            theta: the point.
            loss: the loss there.
        """
        problem = self._problem

        def value(point: np.ndarray) -> float:
            return problem.value(problem.project(point))

        promise, noise = _promise(here, norms), None
        if convergence.is_promising(promise, loss, self._gtol):
            noise = convergence.measured_noise(
                value, theta, loss, self._problem.epsilon
            )
            # What the rounding of the parameters does to residuals of zero.
            moved = self._problem.epsilon * here.model.scaled(theta)
            noise = convergence.vanished_noise(
                max(noise, moved**2 / 2),
                promise,
                value,
                theta,
                loss,
                problem.epsilon,
            )
        verdict = convergence.confirmed(
            convergence.judge(promise, loss, self._gtol, noise),
            value,
            theta,
            here.grad,
            loss,
            noise,
            problem.epsilon,
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


def _promise(here: Any, norms: np.ndarray) -> float:
    """The decrease that is promised where no step of the model gains.

    By the undamped step, or by the best step along a single parameter: the
    square of MINPACK's cosine of residuals and a column of J. Where J is
    singular the first is that of a step of any length, which no model is right
    for.
    """
    known = np.isfinite(here.model.scale) & (norms > 0)
    cosines = here.grad[known] / norms[known]
    alone = np.max(cosines**2, initial=0.0) / 2
    return float(min(here.model.damped(0.0).promised, alone))
