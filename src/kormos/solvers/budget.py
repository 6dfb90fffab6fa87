"""Limits that end a run, besides the tests of its method."""

from typing import NamedTuple
from typing import Self

from kormos.processes import now
from kormos.solvers import statuses


class Budget(NamedTuple):
    """The limits of a run; `None` where there is no limit.

    Attributes:
        iterations: the most accepted iterations.
        evaluations: the most evaluations.
        deadline: the time at which to end, in seconds of `processes.now`.
        target: the loss that is low enough.
    """

    iterations: int | None = None
    evaluations: int | None = None
    deadline: float | None = None
    target: float | None = None

    def started(self, now: float) -> Self:
        """The same, with its deadline counted from `now` instead of zero."""
        if self.deadline is None:
            return self
        return self._replace(deadline=now + self.deadline)

    def until(self, deadline: float | None) -> Self:
        """The same, with a deadline that may be earlier."""
        if deadline is None:
            return self
        if self.deadline is not None:
            deadline = min(deadline, self.deadline)
        return self._replace(deadline=deadline)

    def without(self, evaluations: int) -> Self:
        """The rest of the budget after this many evaluations."""
        if self.evaluations is None:
            return self
        return self._replace(evaluations=self.evaluations - evaluations)

    def spent(self, evaluations: int) -> str | None:
        """The limit that is reached, as a status, or `None`."""
        if self.evaluations is not None and evaluations >= self.evaluations:
            return statuses.EVALUATION_LIMIT
        if self.deadline is not None and now() >= self.deadline:
            return statuses.TIME_LIMIT
        return None


UNLIMITED = Budget()
