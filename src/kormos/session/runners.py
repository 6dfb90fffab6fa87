"""The runners of a race: their progress, their order, and the table of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kormos.optimizers.stage import StageProgress
from kormos.session.result import Restart
from kormos.solvers import statuses
from kormos.solvers.solver_state import SolverState
from kormos.types import Vector

# Two ends are at the same minimum if their parameters differ by at most this
# part of their size, or of the shorter of the two ways from their starts.
_SAME_POINT = 1e-3


class Runner(NamedTuple):
    """A start and its progress.

    Attributes:
        number: the number of the start.
        start: where it began, `(size,)`.
        theta: the point, `(size,)`.
        loss: the loss there.
        state: the `SolverState` to continue from, or `None`.
        progress: the progress of its stages, or `None`.
        status: the status with which its latest run ended.
        evaluations: the evaluations so far.
        iterations: the iterations so far.
        violation: the violation of the constraints at its point, or zero if it
            is no more than rounding.
    """

    number: int
    start: Vector
    theta: Vector
    loss: float = np.nan
    state: SolverState | None = None
    progress: StageProgress | None = None
    status: str = statuses.EVALUATION_LIMIT
    evaluations: int = 0
    iterations: int = 0
    violation: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether its run has ended on its own."""
        return self.status != statuses.EVALUATION_LIMIT


def ranked(runners: Sequence[Runner]) -> list[Runner]:
    """The runners, sorted by violations, and then by their losses."""

    def key(runner: Runner) -> tuple[bool, float, float]:
        loss = runner.loss
        return not np.isfinite(loss), runner.violation, np.nan_to_num(loss)

    return sorted(runners, key=key)


def table(runners: Sequence[Runner], winner: Runner) -> list[Restart]:
    """The `Restart` of each runner."""
    found: list[Restart] = []
    minima: list[Runner] = []
    for runner in runners:
        minimum = None
        if runner.status in statuses.SUCCESSES:
            minimum = next(
                (i for i, m in enumerate(minima) if _is_same(m, runner)), None
            )
            if minimum is None:
                minimum = len(minima)
                minima.append(runner)
        status = runner.status if runner.is_over else "left behind"
        if runner is winner:
            status = "winner"
        found.append(
            Restart(
                runner.loss,
                status,
                runner.iterations,
                runner.evaluations,
                minimum,
                runner.theta,
            )
        )
    return found


def _is_same(one: Runner, other: Runner) -> bool:
    """Whether two runners have arrived at the same minimum."""
    ways = [np.linalg.norm(r.theta - r.start) for r in (one, other)]
    # The size of a minimum at zero is only rounding.
    size = max(np.linalg.norm(one.theta), min(ways))
    distance = np.linalg.norm(one.theta - other.theta)
    return bool(distance <= _SAME_POINT * size)


def line_of(field: Sequence[Runner]) -> str:
    """A line of text on the progress of a race, from its sorted runners."""
    best, worst = field[0], field[-1]
    return (
        f"{len(field)} starts, losses from {best.loss:.6g} (start "
        f"{best.number}) to {worst.loss:.6g}"
    )
