"""Why a run of an optimizer ended."""

import dataclasses
from typing import Any

CONVERGED = "converged"
NOISE_FLOOR = "noise floor"
ITERATION_LIMIT = "iteration limit"
EVALUATION_LIMIT = "evaluation limit"
TIME_LIMIT = "time limit"
TARGET_REACHED = "target reached"
STOPPED_BY_CALLBACK = "stopped by callback"
INTERRUPTED = "interrupted"
LINE_SEARCH_FAILED = "line search failed"
STALLED = "stalled"
UNBOUNDED = "unbounded"
INFEASIBLE = "infeasible"
NON_FINITE = "non-finite"

# What the user can do, where that follows from the status alone.
ADVICE = {
    ITERATION_LIMIT: (
        "Give more `epochs` (`max_iterations` in `kormos.minimize`) to go on."
    ),
    EVALUATION_LIMIT: "Raise the limit on evaluations to go on.",
    TIME_LIMIT: "Give more `max_seconds` to go on.",
    NON_FINITE: "The loss or its gradient is NaN or infinite.",
}

# Ends at an optimum: by a tolerance, or by the rounding of the loss.
SUCCESSES = (CONVERGED, NOISE_FLOOR)

# No warning is due: they are right, or the user asked for them.
QUIET = (*SUCCESSES, TARGET_REACHED, STOPPED_BY_CALLBACK, INTERRUPTED)

# At these a wider dtype may go further.
WIDENING = (
    CONVERGED,
    NOISE_FLOOR,
    LINE_SEARCH_FAILED,
    STALLED,
    NON_FINITE,
)

# After these no later run of the same fit follows.
FINAL = (
    INTERRUPTED,
    NON_FINITE,
    TARGET_REACHED,
    TIME_LIMIT,
    EVALUATION_LIMIT,
)


@dataclasses.dataclass
class Outcome:
    """How one run of one method ended.

    Attributes:
        status: one of the constants of this module; `None` when the run was
            stopped from outside.
        theta: the final point, float64 array of shape `(size,)`.
        loss: the loss there.
        test: name of the test that fired, or `None`.
        value: the tested quantity, or `None`.
        threshold: what it was compared with, or `None`.
        detail: the method's own words.
        raw: the wrapped library's own result, or `None`.
        is_polished: whether the point is the best although the loss there may
            be above the lowest, by less than its rounding.
        kept_loss: the loss at the point as the variables round it; `None` if
            that is the same.
        findings: sentences of what was checked at the end, with figures.
        evaluate: function of a point to the loss and the gradient there, or
            `None` for a method without gradients.
        hessian: function of a point to the Hessian of the method's model there,
            or `None`.
    """

    status: str | None
    theta: Any
    loss: float
    test: str | None = None
    value: float | None = None
    threshold: float | None = None
    detail: str = ""
    raw: Any = None
    is_polished: bool = False
    kept_loss: float | None = None
    findings: str = ""
    evaluate: Any = None
    hessian: Any = None


@dataclasses.dataclass
class Result:
    """How a fit or a minimization ended.

    Attributes:
        status: `"converged"`, `"noise floor"`, `"iteration limit"`,
            `"evaluation limit"`, `"time limit"`, `"target reached"`,
            `"stopped by callback"`, `"interrupted"`, `"line search failed"`,
            `"stalled"`, `"unbounded"`, `"infeasible"` or `"non-finite"`.
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
        time: seconds of wall time.
        test: name of the test that fired, or `None`.
        value: the tested quantity, or `None`.
        threshold: what it was compared with, or `None`.
        float64_from: with `precision="auto"`, after how many iterations
            float32 was left, or `None`.
        history: for `kormos.minimize`, a dict of lists with an entry for each
            iteration: `loss`, `grad`, `fg_evals`, `hessp_evals`, `seconds`.
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
    test: str | None = None
    value: float | None = None
    threshold: float | None = None
    float64_from: int | None = None
    history: dict | None = None

    def __str__(self):
        return self.message


def sentence(outcome, iterations, evaluations, float64_from=None):
    """The status of a run in words: figures, the test that fired, advice.

    Args:
        outcome: the `Outcome`.
        iterations: how many there were.
        evaluations: likewise.
        float64_from: after how many iterations that began, or `None`.
    """
    text = (
        f"{outcome.status} after {_counted(iterations, 'iteration')} and "
        f"{_counted(evaluations, 'evaluation')} at loss {outcome.loss:.6g}"
    )
    if outcome.test is not None and outcome.value is not None:
        text += (
            f": {outcome.test}, {outcome.value:.3g} <= {outcome.threshold:.3g}"
        )
    elif outcome.test is not None:
        text += f": {outcome.test} of {outcome.threshold:.3g} was met"
    if outcome.detail:
        text += f" ({outcome.detail})"
    advice = ADVICE.get(outcome.status, "")
    sentences = [f"{text}.", outcome.findings.strip(), advice]
    if float64_from is not None:
        sentences.append(f"In float64 from iteration {float64_from}.")
    if outcome.kept_loss is not None:
        sentences.append(
            f"The weights, rounded to their own dtype, have loss "
            f"{outcome.kept_loss:.6g}."
        )
    return " ".join(filter(None, sentences))


def _counted(number, noun):
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
