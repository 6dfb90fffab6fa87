"""What a session has done so far: iterations, evaluations, time, losses."""

from __future__ import annotations

from typing import TYPE_CHECKING
from typing import Any
from typing import NamedTuple

import numpy as np

from kormos.processes import now
from kormos.session.result import Result
from kormos.session.result import sentence
from kormos.solvers import statuses
from kormos.solvers.outcome import Outcome
from kormos.solvers.protocols import Iterate

if TYPE_CHECKING:
    from kormos.session.plan import StageEnd
    from kormos.session.run import Run
    from kormos.solvers.problem import Problem


class Counts(NamedTuple):
    """The numbers of evaluations, counted in the same way by all functions.

    Attributes:
        evaluations: evaluations of the loss, with or without its gradient.
        hessian_products: products of the Hessian or the Gauss-Newton matrix
            with a vector, and second derivatives along a step.
        jacobians: Jacobians of the outputs or the residuals, or matrices
            computed from them.
    """

    evaluations: int = 0
    hessian_products: int = 0
    jacobians: int = 0

    def with_those_of(self, problem: Problem) -> Counts:
        """These counts plus those of a `Problem`."""
        return Counts(
            self.evaluations + problem.fg_evals,
            self.hessian_products + problem.hessp_evals,
            self.jacobians + problem.jacobians,
        )


class Record:
    """What a session has done so far, over all of its runs.

    Attributes:
        trace: a dict of columns with an entry for each accepted iterate.
        initial_loss: the loss at the start, or `None` before that is known.
        float64_from: the iterations after which float64 took over, or `None`.
        stage: the number of the present stage, or `None` if there is one only.
        stages: the `StageEnd`s of the stages so far.
        run: the present `Run`, or `None`.
        of_method: the names of the numbers that the method has reported so far.
    """

    def __init__(self) -> None:
        self.trace: dict[str, list[Any]] = {}
        self.initial_loss: float | None = None
        self.float64_from: int | None = None
        self.stage: int | None = None
        self.stages: list[StageEnd] = []
        self.run: Run | None = None
        self.of_method: set[str] = set()
        # The totals of the runs that have ended.
        self._counts, self._iterations = Counts(), 0
        self._columns: dict[str, None] = {}
        self._began = 0.0

    def begin(self) -> float:
        """Begins to count seconds; returns the time by `processes.now`."""
        self._began = now()
        return self._began

    def end_run(self) -> None:
        """Adds the present run to those that have ended."""
        self._counts, self._iterations = self.counts, self.iterations
        self.run = None

    @property
    def iterations(self) -> int:
        """Accepted iterations."""
        running = 0 if self.run is None else self.run.iterations
        return self._iterations + running

    @property
    def counts(self) -> Counts:
        """Evaluations."""
        if self.run is None:
            return self._counts
        return self._counts.with_those_of(self.run.problem)

    @property
    def seconds(self) -> float:
        """Seconds since the session began."""
        return now() - self._began

    @property
    def knows_start(self) -> bool:
        """Whether the loss at the start is known and finite.

        It may be finite in float64 although it is not in float32.
        """
        loss = self.initial_loss
        return loss is not None and bool(np.isfinite(loss))

    def row(self, iterate: Iterate) -> dict[str, Any]:
        """The numbers of an iterate that every History has."""
        grad, counts = iterate.grad, self.counts
        self.of_method.update(iterate.logs)
        row = {
            "loss": float(iterate.loss),
            # A solver reports a vector, its norm, or nothing.
            "grad": np.nan if grad is None else float(np.linalg.norm(grad)),
            "fg_evals": counts.evaluations,
            "hessp_evals": counts.hessian_products,
            **({} if self.stage is None else {"stage": self.stage}),
            **iterate.logs,
        }
        # Columns of an earlier stage that this stage does not report.
        row = {**dict.fromkeys(self._columns, np.nan), **row}
        self._columns.update(dict.fromkeys(row))
        return row

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row to the trace."""
        before = len(self.trace.get("seconds", ()))
        self.trace.update(aligned(self.trace, row, before))
        for name, value in {**row, "seconds": self.seconds}.items():
            self.trace.setdefault(name, []).append(value)

    def result(self, outcome: Outcome, choice: str = "") -> Result:
        """The `Result` for the user, at the end of the session.

        Args:
            outcome: the `Outcome` of the last run.
            choice: with `"auto"`, the method that was chosen and why; or
                `None`.
        """
        assert outcome.status is not None  # The session has set the status.
        counts, initial = self.counts, self.initial_loss
        kept = outcome.loss if outcome.kept_loss is None else outcome.kept_loss
        return Result(
            status=outcome.status,
            message=sentence(
                outcome, self.iterations, counts.evaluations, self.float64_from
            ),
            success=outcome.status in statuses.SUCCESSES,
            loss=float(outcome.loss),
            kept_loss=float(kept),
            initial_loss=float(np.nan if initial is None else initial),
            float64_from=self.float64_from,
            iterations=self.iterations,
            evaluations=counts.evaluations,
            hessian_products=counts.hessian_products,
            jacobians=counts.jacobians,
            time=self.seconds,
            test=outcome.test,
            value=outcome.value,
            threshold=outcome.threshold,
            multipliers=outcome.multipliers,
            stages=self.stages,
            choice=choice,
        )


def aligned(
    table: dict[str, list[Any]], row: dict[str, Any], rows: int
) -> dict[str, list[Any]]:
    """The new columns of a row, filled with NaN for the rows before it.

    Stages with different methods report different numbers. The rows of other
    stages have NaN in these columns.

    Args:
        table: the columns.
        row: the row that is to be added.
        rows: the number of rows before it.
    """
    found = {}
    for name in row.keys() - table.keys():
        if rows:
            found[name] = [np.nan] * rows
    return found
