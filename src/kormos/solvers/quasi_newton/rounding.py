"""The rounding of the loss, as a quasi-Newton run has measured it."""

from kormos.solvers import convergence
from kormos.solvers.problem import Problem
from kormos.solvers.quasi_newton.driver import CompiledLoop
from kormos.solvers.quasi_newton.end import Claim

# Two values differ if one is more than this many times the other. Our choice:
# the measurement itself is not much more precise.
_OTHER = 4.0
# The rounding is never taken for more than this part of the loss: above it the
# line search could not tell losses apart at all.
_MOST = 2.0**-4
# A loss in float64 is rough if its rounding is more than this part of it. Our
# choice: a few steps then gain less than the rounding, but many gain more.
_ROUGH = 1e-10


class Rounding:
    """The rounding of the loss: that of its dtype until it is measured.

    Args:
        loop: the compiled loop, which evaluates the loss.
        problem: the problem.

    Attributes:
        share: the rounding over the size of the loss, for the line search.
        measured: the latest measurement, or `None`.
    """

    def __init__(self, loop: CompiledLoop, problem: Problem):
        self._loop = loop
        self._problem = problem
        self.share: float = problem.evaluation_eps
        self.measured: float | None = None
        self._before = self.share

    def measure(self, claim: Claim) -> None:
        """Measures the rounding at a claimed point."""
        self._before = self.share
        self.measured = convergence.measured_noise(
            self._loop.value,
            claim.theta,
            claim.loss,
            self._problem.evaluation_eps,
        )
        self._problem.fg_evals = int(self._loop.state.evaluations)
        if claim.loss != 0:
            self.share = min(self.measured / abs(claim.loss), _MOST)

    @property
    def has_grown(self) -> bool:
        """Whether the latest measurement is far above what was known."""
        return self.share > _OTHER * self._before

    @property
    def has_shrunk(self) -> bool:
        """Whether the latest measurement is far below what was known."""
        return self._before > _OTHER * self.share

    def is_rough(self, loss: float) -> bool:
        """Whether a float64 loss is too rough for short trials.

        Args:
            loss: the loss where the rounding was measured.
        """
        if (
            self._problem.evaluation_eps > convergence.FINEST
            or self.measured is None
        ):
            return False
        return _ROUGH * abs(loss) < self.measured < abs(loss)
