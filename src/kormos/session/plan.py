"""Decides which stage of a session runs next, and where it ends."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
from typing import NamedTuple

from kormos.optimizers.stage import Stage
from kormos.optimizers.stage import StageProgress


class StageEnd(NamedTuple):
    """How a stage ended.

    Attributes:
        name: the name of its optimizer.
        status: see `Result`; `"plateau"` if `patience` ended it.
        loss: the loss at its end.
        iterations: the iterations accepted in it.
        evaluations: the evaluations of the loss in it.
        seconds: the seconds of wall time that it took.
    """

    name: str
    status: str
    loss: float
    iterations: int
    evaluations: int
    seconds: float


class Plan:
    """The stages of a session in order, and the progress of the present one.

    In functions without epochs, an epoch is an iteration.

    Args:
        stages: the stages.

    Attributes:
        progress: the progress of the stages.
    """

    def __init__(self, stages: Sequence[Stage]):
        self._stages = list(stages)
        self._is_continued = False
        # The epochs of earlier sessions, which this session does not count.
        self._before = 0
        self.progress = StageProgress()

    @property
    def has_several(self) -> bool:
        """Whether there is more than one stage."""
        return len(self._stages) > 1

    @property
    def epochs(self) -> int:
        """The most epochs of all stages together."""
        return sum(stage.epochs or 0 for stage in self._stages)

    @property
    def is_on_plateau(self) -> bool:
        """Whether the present stage has gained too little for too long."""
        patience = self._stages[self.progress.number].patience
        return patience is not None and self.progress.waited >= patience

    def continue_from(self, progress: StageProgress, before: int = 0) -> None:
        """Begins within the stage at which an earlier session ended.

        Args:
            progress: how far the stages had got.
            before: the epochs of earlier sessions, which this one does not
                count.
        """
        self._before = before
        if progress.number < len(self._stages):
            self.progress = progress
            self._is_continued = True

    def due(self, done: int) -> Iterator[tuple[Stage, bool]]:
        """Yields the stages that remain to be run.

        Args:
            done: the epochs that are done when the session begins.

        Returns:
            Pairs of a stage and whether an earlier session has begun it.
        """
        first = self.progress.number
        if not self._is_continued:
            while first < len(self._stages) - 1 and done >= self._planned(
                first
            ):
                first += 1
        for index in range(first, len(self._stages)):
            is_begun = self._is_continued and index == first
            if not is_begun:
                self.progress = StageProgress(index)
            stage = self._stages[index]
            # The stage decides at its end which point to keep.
            is_due = stage.assigns or index == len(self._stages) - 1
            if is_due or not (is_begun and self._is_over()):
                yield stage, is_begun

    def end(self, done: int) -> int:
        """The epoch at which the present stage ends.

        Args:
            done: the epochs that are done now.
        """
        index = self.progress.number
        stage = self._stages[index]
        planned = self._planned(index) - self._before
        if stage.takes_rest:
            return planned
        # An earlier stage may have converged before its last epoch.
        began = done - self.progress.done
        return min(planned, began + (stage.epochs or 0))

    def count(self, loss: float) -> None:
        """Counts an epoch of the present stage, with the loss at its end."""
        stage = self._stages[self.progress.number]
        self.progress = self.progress.after(loss, stage.min_delta)

    def _is_over(self) -> bool:
        epochs = self._stages[self.progress.number].epochs or 0
        return self.progress.done >= epochs or self.is_on_plateau

    def _planned(self, index: int) -> int:
        return sum(stage.epochs or 0 for stage in self._stages[: index + 1])
