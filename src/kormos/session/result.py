"""What the user is told of how a fit ended."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING
from typing import Any
from typing import NamedTuple

from kormos.markup import pairs_table
from kormos.markup import paragraph
from kormos.optional import pandas_module
from kormos.session.plan import StageEnd
from kormos.session.stamp import Stamp
from kormos.solvers.outcome import Outcome
from kormos.solvers.statuses import ADVICE
from kormos.types import Vector

if TYPE_CHECKING:
    import pandas


class Restart(NamedTuple):
    """How far one of several starts got.

    Attributes:
        loss: the loss at its end.
        status: `"winner"`, which ran on to the result; `"left behind"` by
            better ones; or how it ended by itself.
        iterations: its accepted iterations in the race.
        evaluations: its evaluations in the race.
        minimum: the number of the minimum that it has converged to, the same
            for ends at the same point; `None` if it did not converge.
        theta: its point, float64 array of shape `(size,)`.
    """

    loss: float
    status: str
    iterations: int
    evaluations: int
    minimum: int | None
    theta: Vector


@dataclasses.dataclass(repr=False)
class Result:
    """How a fit or a minimization ended.

    Attributes:
        status: `"converged"`, `"noise floor"`, `"iteration limit"`,
            `"evaluation limit"`, `"time limit"`, `"target reached"`,
            `"stopped by callback"`, `"plateau"`, `"interrupted"`,
            `"line search failed"`, `"stalled"`, `"unbounded"`,
            `"infeasible"` or `"non-finite"`.
        message: a sentence that says so, with figures and advice.
        success: whether the end is an optimum: `"converged"`, by a tolerance,
            or `"noise floor"`, by the rounding of the loss.
        loss: the loss at the final iterate, whose weights remain, unless a
            callback sets others.
        kept_loss: the loss of the weights that remain: with
            `precision="float64"` a float32 model rounds them.
        initial_loss: the loss at the start.
        iterations: accepted iterations.
        evaluations: evaluations of the loss (and its gradient).
        hessian_products: products of the Hessian (or of the Gauss-Newton
            matrix) with a vector, and second derivatives along a step.
        jacobians: Jacobians of outputs or residuals, by methods that use them.
        time: seconds of wall time.
        test: name of the test that fired, or `None`.
        value: the tested quantity, or `None`.
        threshold: what it was compared with, or `None`.
        float64_from: with `precision="auto"`, after how many iterations
            float32 was left, or `None`.
        theta: for `kormos.solve`, the final point, float64 array `(size,)`.
        history: a dict of lists with an entry for each iteration: `loss`,
            `grad`, `fg_evals`, `hessp_evals`, `seconds`.
        stamp: versions, backend, device, dtype, seed and threads of the run, a
            `Stamp`.
        multipliers: of kormos' own methods under constraints, the multipliers
            of each constraint, a list of arrays `(m,)`: by how much the loss
            falls when a constraint's zero becomes a small number below it,
            per unit. `None` otherwise.
        choice: with the optimizer `"auto"`, what was chosen and why.
        restarts: with `restarts`, how far each start got, a list of tuples
            with `loss`, `status`, `iterations`, `evaluations`, `minimum` and
            `theta`.
        stages: how each stage ended, with `name`, `status`, `loss`,
            `iterations`, `evaluations` and `seconds`; one entry for a method
            that is not a `Chain`.
    """

    status: str
    message: str
    success: bool
    loss: float
    kept_loss: float
    initial_loss: float
    iterations: int
    evaluations: int
    hessian_products: int
    time: float
    jacobians: int = 0
    test: str | None = None
    value: float | None = None
    threshold: float | None = None
    float64_from: int | None = None
    history: dict[str, list[Any]] | None = None
    theta: Vector | None = None
    multipliers: list[Vector] | None = None
    stamp: Stamp | None = None
    choice: str = ""
    restarts: list[Restart] = dataclasses.field(default_factory=list)
    stages: list[StageEnd] = dataclasses.field(default_factory=list)
    _summarize: Callable[..., Any] | None = dataclasses.field(
        default=None, compare=False
    )

    def summary(self, **settings: Any) -> Any:
        """Tells how sure the parameters are: a `kormos.Summary`.

        It is one of the data, the variables' values and the loss that the run
        ended with, and keeps them in memory as long as this result is kept.

        Args:
            **settings: `covariance`, `groups`, `level`, `absolute_sigma` and
                `names`, as `kormos.summary` takes them. After `minimize`,
                whose loss is to be the mean or the sum of negative
                log-likelihoods, `losses` is a function of no arguments that
                returns the negative log-likelihood of every row, of shape
                `(rows,)`; or `observations` is their number and `reduction`
                is `"mean"` or `"sum"`. After `least_squares`, `targets` are
                the observed values, for R-squared.

        Raises:
            ValueError: if the run was none of `kormos.least_squares` or
                `kormos.minimize`, or a setting cannot be used.
        """
        if self._summarize is None:
            raise ValueError(
                "A result of `kormos.least_squares` or `kormos.minimize` has "
                "a summary. For a Keras model call `kormos.summary(model, x, "
                "y)`. Received: a result of another function"
            )
        return self._summarize(**settings)

    def to_frame(self) -> pandas.DataFrame:
        """The iterations as a pandas `DataFrame`, with a row for each.

        Its index is the iteration, counted from 1.

        Raises:
            ImportError: if pandas is not installed.
        """
        table = pandas_module()
        rows = self.history or {}
        frame: pandas.DataFrame = table.DataFrame(rows)
        frame.index = table.RangeIndex(1, len(frame) + 1, name="iteration")
        return frame

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return (
            f"<Result: {self.status}, loss {self.loss:.6g}, "
            f"{_counted(self.iterations, 'iteration')}, "
            f"{_counted(self.evaluations, 'evaluation')}, {self.time:.3g} s>"
        )

    def _repr_html_(self) -> str:
        pairs = [
            ("status", self.status),
            ("loss", f"{self.loss:.6g}"),
            ("initial loss", f"{self.initial_loss:.6g}"),
            ("iterations", str(self.iterations)),
            ("evaluations", str(self.evaluations)),
            ("Hessian products", str(self.hessian_products)),
            ("Jacobians", str(self.jacobians)),
            ("time", f"{self.time:.3g} s"),
        ]
        pairs = [pair for pair in pairs if pair[1] != "0"]
        notes = "" if self.stamp is None else paragraph(str(self.stamp))
        return paragraph(self.message) + pairs_table(pairs) + notes

    def __getstate__(self) -> dict[str, Any]:
        # Functions and variables stay in their process.
        return {**self.__dict__, "_summarize": None}


def sentence(
    outcome: Outcome,
    iterations: int,
    evaluations: int,
    float64_from: int | None = None,
) -> str:
    """The status of a run in words: figures, the test that fired, advice.

    Args:
        outcome: the `Outcome`.
        iterations: the number of accepted iterations.
        evaluations: the number of evaluations.
        float64_from: after how many iterations float64 began, or `None`.
    """
    text = (
        f"{outcome.status} after {_counted(iterations, 'iteration')} and "
        f"{_counted(evaluations, 'evaluation')}"
    )
    if evaluations or not math.isnan(outcome.loss):
        text += f" at loss {outcome.loss:.6g}"
    if outcome.test is not None and outcome.value is not None:
        text += (
            f": {outcome.test}, {outcome.value:.3g} <= {outcome.threshold:.3g}"
        )
    elif outcome.test is not None:
        text += f": {outcome.test} of {outcome.threshold:.3g} was met"
    if outcome.detail:
        text += f" ({outcome.detail})"
    advice = ADVICE.get(outcome.status or "", "")
    sentences = [f"{text}.", outcome.findings.strip(), advice]
    if float64_from is not None:
        sentences.append(f"In float64 from iteration {float64_from}.")
    if outcome.kept_loss is not None:
        sentences.append(
            f"The weights, rounded to their own dtype, have loss "
            f"{outcome.kept_loss:.6g}."
        )
    return " ".join(filter(None, sentences))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
