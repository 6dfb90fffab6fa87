"""`Result`: how a fit or a minimization ended."""

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
    """How far one of several starting points got.

    Attributes:
        loss: the loss at its end.
        status: `"winner"` for the start that ran on to the result,
            `"left behind"` for a start that was dropped for better ones, or the
            status with which it ended on its own.
        iterations: the number of its accepted iterations in the race.
        evaluations: the number of its evaluations in the race.
        minimum: the number of the minimum that it has converged to. Starts with
            the same number have ended at the same point. `None` if it did not
            converge.
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
        status: String, one of `"converged"`, `"noise floor"`,
            `"iteration limit"`, `"evaluation limit"`, `"time limit"`,
            `"target reached"`, `"stopped by callback"`, `"plateau"`,
            `"interrupted"`, `"line search failed"`, `"stalled"`,
            `"unbounded"`, `"infeasible"` and `"non-finite"`.
        message: String, an explanation of the status, with figures and advice.
        success: Boolean, whether the run ended at an optimum: `"converged"`
            according to a tolerance, or `"noise floor"`, where rounding hides
            any further decrease of the loss.
        loss: Float, the loss at the best point that was found. The variables
            keep that point, unless a callback has set others.
        kept_loss: Float, the loss of the values that the variables keep. It
            differs from `loss` with `precision="float64"`, because a float32
            model rounds the point.
        initial_loss: Float, the loss at the start.
        iterations: Integer, the number of accepted iterations.
        evaluations: Integer, the number of evaluations of the loss (with or
            without its gradient).
        hessian_products: Integer, the number of products of the Hessian, or of
            the Gauss-Newton matrix, with a vector, and of second derivatives
            along a step.
        jacobians: Integer, the number of Jacobians of outputs or residuals.
        time: Float, the wall time in seconds.
        test: String, the name of the convergence test that ended the run, or
            `None`.
        value: Float, the quantity that was tested, or `None`.
        threshold: Float, the value that it was compared with, or `None`.
        float64_from: Integer, with `precision="auto"` the number of iterations
            after which float64 took over, or `None`.
        theta: After `kormos.solve`, the final point, a float64 array of shape
            `(size,)`. `None` otherwise.
        history: Dict of lists with one entry per iteration: `loss`, `grad`,
            `fg_evals`, `hessp_evals`, `seconds`, and the columns of the method.
        stamp: The versions, backend, device, dtype, seed and threads of the
            run, a `Stamp`.
        multipliers: For kormos' own methods with constraints, a list with an
            array of shape `(m,)` for each constraint. A multiplier is the
            rate at which the optimal loss falls if the zero of the constraint
            is lowered. `None` otherwise.
        choice: String, with the optimizer `"auto"`, what was chosen and why.
        restarts: With `restarts`, a list of tuples that say how far each start
            got, with `loss`, `status`, `iterations`, `evaluations`, `minimum`
            and `theta`.
        stages: List of tuples that say how each stage ended, with `name`,
            `status`, `loss`, `iterations`, `evaluations` and `seconds`. It has
            one entry if the optimizer is not a `Chain`.

    Example:

    ```python
    history = model.fit(x, y, epochs=50)
    result = history.result
    print(result.status, result.loss, result.evaluations)
    ```
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
        """Returns a `kormos.Summary`, which says how precise the fit is.

        It uses the data, the values of the variables and the loss with which
        the run ended, and keeps them in memory as long as this result exists.

        Args:
            **settings: `covariance`, `groups`, `level`, `absolute_sigma`,
                `names` and `parameters`, see `kormos.summary`. After
                `kormos.minimize`, whose loss must be the mean or the sum of
                negative log-likelihoods: `losses`, a function of no arguments
                that returns the negative log-likelihood of every row, a tensor
                of shape `(rows,)`; or `observations`, the number of rows, and
                `reduction`, `"mean"` or `"sum"` (that of the fit by default).
                After `kormos.least_squares`:
                `targets`, the observed values, for R-squared.

        Returns:
            A `kormos.Summary`, or a `kormos.PartialSummary` if `parameters` is
            given.

        Raises:
            ValueError: If the run was not one of `kormos.least_squares` or
                `kormos.minimize`, a setting cannot be used, or the function
                has changed since the run.

        Example:

        ```python
        b = keras.Variable([0.0, 0.0])
        result = kormos.least_squares(
            lambda data: b[0] + b[1] * data["x"] - data["y"],
            [b],
            data={"x": x, "y": y},
        )
        print(result.summary())
        ```
        """
        if self._summarize is None:
            raise ValueError(
                "Only a result of `kormos.least_squares` or "
                "`kormos.minimize` has a summary. For a Keras model, call "
                "`kormos.summary(model, x, y)`. Received: a result of "
                "another function"
            )
        return self._summarize(**settings)

    def to_frame(self) -> pandas.DataFrame:
        """Returns the iterations as a pandas `DataFrame` with one row for each.

        The index is the number of the iteration, counted from 1.

        Raises:
            ImportError: If pandas is not installed.
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
    """Describes the end of a run: figures, the test that ended it, advice.

    Args:
        outcome: the `Outcome`.
        iterations: the number of accepted iterations.
        evaluations: the number of evaluations.
        float64_from: the number of iterations after which float64 took over, or
            `None`.
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
        sentences.append(f"It ran in float64 from iteration {float64_from}.")
    if outcome.kept_loss is not None:
        sentences.append(
            f"The weights, rounded to their own dtype, have loss "
            f"{outcome.kept_loss:.6g}."
        )
    return " ".join(filter(None, sentences))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
