"""The base class of observers of a session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

from kormos.session.result import Result
from kormos.solvers.outcome import Outcome
from kormos.solvers.protocols import Iterate
from kormos.solvers.protocols import Point
from kormos.types import Vector

if TYPE_CHECKING:
    from kormos.session.replacement import Replacement
    from kormos.session.reporter import Reporter

# Iterations in one compiled call, if nothing needs each of them.
STRIDE = 50


class SessionObserver:
    """Base class of the observers to which a session reports.

    A subclass overrides `is_stopped`, `accepts`, and other methods as needed.

    Attributes:
        done: epochs, or iterations in functions without epochs, so far.
        end: the epochs or iterations at which the present stage ends.
        steps: the accepted iterations of an epoch.
        stride: the iterations after which a run is looked at again.
        resamplers: the `Replacement`s among the user's callbacks.
        is_quiet: whether to suppress warnings about what a run finds.
    """

    done: int = 0
    end: int = 0
    steps: int = 1
    stride: int = 1
    resamplers: Sequence[Replacement] = ()
    is_quiet: bool = False

    @property
    def is_stopped(self) -> bool:
        """Whether the user or a callback has asked to stop."""
        raise NotImplementedError

    def begin(self, reporter: Reporter) -> None:
        """Called before anything is evaluated; it may assign variables."""

    def run_begins(self, theta: Vector) -> None:
        """Called before each run of a solver, with its start."""

    def starts(self, point: Point) -> None:
        """Called with the start of each run, once it is evaluated."""

    def opens(self, iterate: Iterate) -> None:
        """Called before an iterate is recorded; it may assign variables."""

    def discards(self) -> None:
        """Called if `opens` has led to another loss or point."""

    def accepts(self, iterate: Iterate, logs: dict[str, Any]) -> None:
        """Called with an iterate and the numbers that are recorded for it."""
        raise NotImplementedError

    def run_ended(self, outcome: Outcome) -> None:
        """Called after each run of a solver."""

    def latest(self) -> tuple[Vector, float] | None:
        """The point and loss that a callback leaves when it stops a session.

        `None` if the best point should be kept instead.
        """
        return None

    def close(self) -> None:
        """Called after the last stage, before the result is made."""

    def finish(self, result: Result) -> None:
        """Called with the result."""

    def abandon(self) -> None:
        """Called instead of `close` and `finish` after an exception."""
