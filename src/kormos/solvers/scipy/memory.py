"""The evaluations of a run that SciPy may ask for a second time."""

from kormos.solvers.scipy.evaluation import Evaluation
from kormos.types import Vector

# This many of the latest points are remembered, beside the best and the
# accepted one. Our choice: methods ask again for points that they have just
# seen.
_REMEMBERED = 4


class Memory:
    """The latest evaluations of a run, its best one and the accepted one."""

    def __init__(self) -> None:
        self._evaluations: list[Evaluation] = []
        self._best: Evaluation | None = None

    def find(self, theta: Vector) -> Evaluation | None:
        """The evaluation at a point, or `None` if it is not remembered."""
        for known in reversed(self._evaluations):
            if known.is_at(theta):
                return known
        return None

    def add(self, made: Evaluation, accepted: Evaluation) -> None:
        """Remembers an evaluation, and forgets older ones.

        Args:
            made: the evaluation.
            accepted: the one that is accepted now.
        """
        if self._best is None or made.loss < self._best.loss:
            self._best = made
        # Simplex and model-based methods come back to the best point late.
        old = self._evaluations[:-_REMEMBERED]
        kept = [e for e in old if e is self._best or e is accepted]
        recent = self._evaluations[-_REMEMBERED:]
        self._evaluations = [*kept, *recent, made]

    def add_unusable(self, theta: Vector) -> None:
        """Remembers a point as one where the loss is not finite."""
        self._evaluations.append(Evaluation(theta.copy(), float("nan"), None))
