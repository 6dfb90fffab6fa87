"""Claims of convergence of a least-squares run, which are verified.

If a test of convergence holds, or if no step lowers the loss, the run continues
from there as if it had just begun. It only ends if that gains nothing.
"""

from kormos.solvers import convergence
from kormos.solvers import statuses
from kormos.solvers.least_squares.end import LeastSquaresEnd
from kormos.solvers.least_squares.local_models import Linearized
from kormos.solvers.least_squares.local_models import LocalModels
from kormos.solvers.outcome import Outcome
from kormos.solvers.problem import Problem
from kormos.solvers.protocols import Tolerances

# The ends that are verified.
_CLAIMS = (
    statuses.CONVERGED,
    statuses.NOISE_FLOOR,
    statuses.LINE_SEARCH_FAILED,
)


class Claims:
    """Decides whether an end of a run holds.

    In the first trial the scale and the radius are taken from the claimed point
    only. If no step gains anything, the second trial holds back parameters that
    have almost no effect there and would make long steps.

    Args:
        problem: the `Problem`.
        tolerances: those of the optimizer.
        models: makes models of the loss.
        loss: the loss at the start.
    """

    def __init__(
        self,
        problem: Problem,
        tolerances: Tolerances,
        models: LocalModels,
        loss: float,
    ):
        self._problem = problem
        self._tolerances = tolerances
        self._models = models
        # The loss at the latest point from which the run began anew, and how
        # often in a row it gained nothing from there.
        self._began_at = loss
        self._in_vain = 0

    @property
    def is_trial(self) -> bool:
        """Whether a run that began anew has gained nothing so far."""
        return self._in_vain > 0

    @property
    def restrains(self) -> bool:
        """Whether the next trial holds parameters without effect back."""
        return self._in_vain == 2

    def holds(self, outcome: Outcome, loss: float) -> bool:
        """Whether a run ends with an outcome, without another trial.

        Args:
            outcome: the `Outcome` that a test or a search calls for.
            loss: the loss at its point.
        """
        if outcome.status not in _CLAIMS:
            return True
        if self._gains(loss):
            self._began_at, self._in_vain = loss, 0
        else:
            self._in_vain += 1
        most = 2 if self._models.is_uneven else 1
        if self._is_sure(outcome) or self._in_vain > most:
            return True
        return self._problem.spent() is not None

    def judged(
        self, outcome: Outcome, here: Linearized, non_finite: int
    ) -> Outcome:
        """The outcome at a point from which a run gained nothing.

        Args:
            outcome: the outcome that was tried.
            here: what is known at its point.
            non_finite: how many points with a lower loss had derivatives that
                were not finite.
        """
        if outcome.status not in _CLAIMS or self._is_sure(outcome):
            return outcome
        end = LeastSquaresEnd(self._problem, self._tolerances.gtol)
        judged = end.judge(here, self._models.norms, here.theta, here.loss)
        if judged.status == statuses.CONVERGED and outcome.test == "ftol":
            judged.test, judged.value = outcome.test, outcome.value
            judged.threshold = outcome.threshold
        if non_finite:
            judged.findings += (
                " At points with a lower loss its derivatives were not finite "
                f"({non_finite} of them)."
            )
        return judged

    def _is_sure(self, outcome: Outcome) -> bool:
        """Whether an end needs no trial: its test only looks at this point."""
        is_tested = outcome.test == "gtol" and not self._models.is_stale
        return is_tested or outcome.test == "xtol"

    def _gains(self, loss: float) -> bool:
        """Whether the run has lowered the loss since it began anew."""
        return convergence.is_gain(
            self._began_at,
            loss,
            self._problem.evaluation_eps,
            max(self._tolerances.ftol, self._tolerances.gtol),
        )
