"""What evaluations and iterations take, and which method suits."""

import dataclasses
import time
from typing import NamedTuple

import numpy as np

from kormos import optimizers
from kormos.inspection.report import MethodCost

_REPEATS = 5
# Evaluations in an iteration of a line search, about.
_EVALUATIONS = 1.1
_CG_PRODUCTS = 3
# Parameters up to which a method pays, as our benchmarks have it.
_MOST_SQUARE = 2_000
_MOST_DENSE = 5_000
# Pairs that SciPy's method keeps.
_SCIPY_PAIRS = 10


class Evaluation(NamedTuple):
    """A timed evaluation of the loss and its gradient."""

    loss: float
    grad: np.ndarray
    seconds: float
    compile_seconds: float


def time_evaluation(objective, theta):
    """Evaluates some times."""
    loss = grad = None
    seconds = []
    for _ in range(_REPEATS + 1):
        begun = time.perf_counter()
        loss, grad = objective.value_and_grad(theta)
        seconds.append(time.perf_counter() - begun)
    median = float(np.median(seconds[1:]))
    return Evaluation(loss, grad, median, max(0.0, seconds[0] - median))


def evaluation_memory(objective, looked):
    """Bytes besides the data: what layers put out, and their gradients."""
    outputs = sum(o.nbytes for part in looked.outputs for o in part)
    share = objective.chunk_rows / looked.rows
    return 2 * outputs * share + 4 * 8 * objective.size


def estimate(objective, seconds, is_smooth=True):
    """What an iteration of each method would take: list of `MethodCost`s.

    Args:
        objective: an `Objective`.
        seconds: seconds of an evaluation.
        is_smooth: whether no kinks are known, at which methods stop.
    """
    methods = _estimate_smooth(objective, seconds)
    if is_smooth:
        return methods
    stopped = [
        dataclasses.replace(cost, remark="stops at the kinks", fits=False)
        for cost in methods
    ]
    size = objective.size
    split = MethodCost(
        "l-bfgs-b",
        _EVALUATIONS * seconds,
        16.0 * size * min(size, _SCIPY_PAIRS),
        "for weights in two non-negative parts",
    )
    return [*stopped, split]


def _estimate_smooth(objective, seconds):
    size = objective.size
    dense = 8.0 * size**2
    pace = _Pace()
    # A difference of points and one of gradients each.
    pairs = 16.0 * size * optimizers.get("lbfgs").pairs(size)
    step = _EVALUATIONS * seconds
    return [
        MethodCost(
            "lbfgs",
            step + 2 * pairs / pace.bytes,
            pairs,
            "for any number of parameters",
        ),
        MethodCost(
            "ssbroyden",
            step + 8 * dense / pace.bytes,
            2 * dense,
            "fewer iterations, for a dense matrix",
            size <= _MOST_DENSE,
        ),
        MethodCost(
            "newton-cg",
            step + 2 * _CG_PRODUCTS * seconds,
            8 * 8 * size,
            "products of the Hessian",
            size <= 10 * _MOST_DENSE,
        ),
        _least_squares(objective, seconds, pace),
    ]


def _least_squares(objective, seconds, pace):
    size = objective.size
    try:
        objective.gauss_newton()
    except ValueError as error:
        return MethodCost("lm", np.nan, np.nan, _first_words(error), False)
    outputs = sum(objective.program.model_loss.output_widths)
    rows = objective.rows * outputs
    algebra = (rows * size**2 + size**3) / pace.flops
    chunk = min(rows * size, 1.5 * 2**20) * 8
    return MethodCost(
        "lm",
        outputs * seconds + seconds + algebra,
        3 * 8.0 * size**2 + chunk,
        "fewest iterations, for residuals",
        size <= _MOST_SQUARE,
    )


def choose(methods):
    """The method to take, and why."""
    by_name = {cost.method: cost for cost in methods}
    if "l-bfgs-b" in by_name:
        return "l-bfgs-b", (
            "With weights written as differences of two non-negative parts the "
            "loss is smooth, and it keeps the bounds; as the model is, no "
            "method ends at the minimum."
        )
    cheap = by_name["lbfgs"]
    lm, dense = by_name["lm"], by_name["ssbroyden"]
    # Each of its iterations is worth tens of a quasi-Newton method's.
    if lm.fits and lm.seconds <= 50 * cheap.seconds:
        return "lm", (
            "The loss is one of residuals or of outputs with curvature, and "
            "the matrix of so few parameters is cheap: second-order steps."
        )
    if dense.fits and dense.seconds <= 3 * cheap.seconds:
        return "ssbroyden", (
            "A dense matrix of so few parameters costs little beside an "
            "evaluation, and saves iterations."
        )
    return "lbfgs", (
        "Its memory and time grow in proportion to the parameters alone."
    )


class _Pace:
    """How fast this machine is at float64 algebra."""

    def __init__(self):
        matrix = np.ones((400, 400))
        self.flops = 2 * 400**3 / _fastest(lambda: matrix @ matrix)
        vector = np.ones(2**20)
        self.bytes = 3 * vector.nbytes / _fastest(lambda: vector + vector)


def _fastest(fn):
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        fn()
        times.append(time.perf_counter() - begun)
    return max(min(times), 1e-9)


def _first_words(error):
    received = str(error).partition("Received: ")[2]
    return f"not for this loss: {received}" if received else "not for this loss"
