"""Callbacks that change the loss between the runs of a session."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kormos.checks import check_count

if TYPE_CHECKING:
    from kormos.objective.base import FlatObjective


class Replacement:
    """Base class of callbacks that change the loss at regular intervals.

    The optimizer keeps its state, and a run that has converged continues at
    once with the changed loss.

    Args:
        every: the number of iterations (in `fit`, of epochs) between two
            changes.
    """

    def __init__(self, every: int):
        check_count("every", every, 1)
        self._every = every

    def check(self, objective: FlatObjective) -> None:
        """Refuses an objective that the callback cannot change.

        Raises:
            ValueError: if it cannot.
        """

    def begin(self, objective: FlatObjective, iteration: int) -> None:
        """Prepares for a session.

        Args:
            objective: the objective of the first stage.
            iteration: the iterations (in `fit`, the epochs) of the earlier
                session that this one continues; or zero.
        """

    def is_due(self, iteration: int) -> bool:
        """Whether a change follows an iteration."""
        return iteration > 0 and iteration % self._every == 0

    def next_after(self, iteration: int) -> int:
        """The next iteration that a change follows."""
        return (iteration // self._every + 1) * self._every

    def carry(
        self, before: FlatObjective, objective: FlatObjective, iteration: int
    ) -> None:
        """Repeats its latest change in the objective of the next stage.

        Args:
            before: the objective of the stage before.
            objective: the objective of the next stage.
            iteration: the iterations (in `fit`, the epochs) so far.
        """

    def replace(self, objective: FlatObjective, iteration: int) -> None:
        """Changes an objective, whose variables hold the present point."""
        raise NotImplementedError
