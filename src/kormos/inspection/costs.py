"""Estimates what evaluations and iterations cost, and suggests a method."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import keras
import numpy as np

from kormos.inspection.report import MethodCost
from kormos.inspection.watch import Watched
from kormos.objective import Objective
from kormos.objective.base import FlatObjective
from kormos.optimizers.lbfgs import default_pairs
from kormos.types import Vector

# The numbers below are our choices, for rough estimates that need to be right
# within a factor of two.

# Evaluations that are timed after the first one. More take longer and make the
# median steadier.
_REPEATS = 5
# Evaluations of a line search in an iteration: most searches end at their
# first point. Short fits in the scaling tables of `docs/performance.md` take
# from 1.2 to 1.6.
_EVALUATIONS = 1.1
# Hessian products of an iteration of Newton-CG, each of about two evaluations.
_CG_PRODUCTS = 3
# The most parameters for which a method counts as usable: least squares, whose
# time for a step grows with the cube of this, and methods with a dense matrix,
# which takes 200 MB at 5,000 parameters. Newton-CG keeps no matrix.
_MOST_SQUARE = 2_000
_MOST_DENSE = 5_000
_MOST_NEWTON_CG = 10 * _MOST_DENSE
# A stronger method is suggested if its iteration takes at most this many times
# as long as one of L-BFGS. With larger values it is suggested more often, even
# where it takes more time in all. A step of least squares is worth dozens of
# L-BFGS steps. A dense matrix saves few iterations until a loose tolerance is
# met: 45 evaluations in place of 54 on the digits of the benchmarks.
_WORTH_OF_LEAST_SQUARES = 50
_WORTH_OF_DENSE = 1.5
# Losses of classes and of counts. For these, least squares is not suggested: on
# all such models of `benchmarks/auto.py`, quasi-Newton methods are faster.
_WITHOUT_RESIDUALS = (
    keras.losses.binary_crossentropy,
    keras.losses.binary_focal_crossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.categorical_focal_crossentropy,
    keras.losses.sparse_categorical_crossentropy,
    keras.losses.kl_divergence,
    keras.losses.poisson,
)
# Methods that split L1-regularized weights in two parts, without kinks.
_IN_PARTS = "lbfgs", "ssbroyden"
# The most numbers in a chunk of a Jacobian: see `Data.chunk_rows`.
_CHUNK_NUMBERS = 1.5 * 2**20
# Bytes of a float64 number.
_BYTES = 8.0


class Evaluation(NamedTuple):
    """A timed evaluation of the loss and its gradient.

    Attributes:
        theta: the point.
        loss: the loss there.
        grad: its gradient.
        seconds: the median time of an evaluation.
        compile_seconds: the additional seconds of the first evaluation.
    """

    theta: Vector
    loss: float
    grad: Vector
    seconds: float
    compile_seconds: float


class _Pace(NamedTuple):
    """The speed of a machine in float64.

    Attributes:
        flops: operations per second, in a matrix product.
        bytes: bytes per second that are read or written, in a sum of vectors.
    """

    flops: float
    bytes: float


def time_evaluation(
    objective: FlatObjective, theta: Vector, repeats: int = _REPEATS
) -> Evaluation:
    """Evaluates the loss and its gradient once and `repeats` times more."""
    seconds = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        loss, grad = objective.value_and_grad(theta)
        seconds.append(time.perf_counter() - begun)
    median = float(np.median(seconds[1:]))
    return Evaluation(theta, loss, grad, median, max(0.0, seconds[0] - median))


def evaluation_memory(objective: Objective, looked: Watched) -> float:
    """Bytes of an evaluation besides the data.

    They hold the outputs of the layers, the gradients with respect to these,
    and four float64 vectors.

    Args:
        objective: the objective.
        looked: an evaluation of some rows, with the outputs of the layers.
    """
    outputs = sum(o.nbytes for part in looked.outputs for o in part)
    share = objective.chunk_rows / looked.rows
    return 2 * outputs * share + 4 * _BYTES * objective.size


def estimate(
    objective: Objective, seconds: float, is_smooth: bool = True
) -> list[MethodCost]:
    """Estimates what an iteration of each method would cost.

    Args:
        objective: the objective.
        seconds: the time of an evaluation.
        is_smooth: whether the loss has no known kinks, at which methods stop.
    """
    if is_smooth:
        return _estimate_smooth(objective, seconds, objective.size)
    parts = objective.in_parts(None, None)
    size = objective.size if parts is None else parts.size
    return [
        cost
        if cost.method in _IN_PARTS
        else dataclasses.replace(cost, remark="stops at the kinks", fits=False)
        for cost in _estimate_smooth(objective, seconds, size)
    ]


def _estimate_smooth(
    objective: Objective, seconds: float, size: int
) -> list[MethodCost]:
    """The costs if the loss has no kinks.

    The factors below are the number of times that a step reads its memory:
    twice for a pair of L-BFGS, eight times for a dense matrix, including the
    update.

    Args:
        objective: the objective.
        seconds: the time of an evaluation.
        size: the number of parameters, with both parts of split weights.
    """
    dense = _BYTES * size**2
    pace = _pace()
    # A pair has a difference of points and one of gradients, in float64.
    pairs = 2 * _BYTES * size * default_pairs(size)
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
            8 * _BYTES * size,
            "products of the Hessian",
            size <= _MOST_NEWTON_CG,
        ),
        _least_squares(objective, seconds, pace),
    ]


def _least_squares(
    objective: Objective, seconds: float, pace: _Pace
) -> MethodCost:
    size = objective.size
    if objective.uses_training_state:
        remark = "not for layers with `training=True`"
        return MethodCost("lm", np.nan, np.nan, remark, False)
    try:
        objective.gauss_newton()
    except ValueError as error:
        return MethodCost("lm", np.nan, np.nan, _first_words(error), False)
    outputs = sum(objective.program.model_loss.outputs.widths)
    rows = objective.rows * outputs
    algebra = (rows * size**2 + size**3) / pace.flops
    chunk = _BYTES * min(rows * size, _CHUNK_NUMBERS)
    return MethodCost(
        "lm",
        outputs * seconds + seconds + algebra,
        3 * _BYTES * size**2 + chunk,
        "fewest iterations, for residuals",
        size <= _MOST_SQUARE,
    )


def choose(methods: list[MethodCost], objective: Objective) -> tuple[str, str]:
    """The name of the method to choose, and the reason, a sentence.

    Args:
        methods: the costs that `estimate` returns.
        objective: the objective.
    """
    by_name = {cost.method: cost for cost in methods}
    cheap = by_name["lbfgs"]
    lm, dense = by_name["lm"], by_name["ssbroyden"]
    is_cheap = lm.seconds <= _WORTH_OF_LEAST_SQUARES * cheap.seconds
    if lm.fits and is_cheap and _may_have_residuals(objective):
        return "lm", (
            "The loss is convex in the residuals or outputs of the model, and "
            "there are few parameters, so that second-order steps are cheap."
        )
    if dense.fits and dense.seconds <= _WORTH_OF_DENSE * cheap.seconds:
        return "ssbroyden", (
            "With so few parameters, a dense matrix costs little compared to "
            "an evaluation, and saves iterations."
        )
    return "lbfgs", (
        "Its memory and time are only proportional to the number of parameters."
    )


def _may_have_residuals(objective: Objective) -> bool:
    """Whether the loss may be one of residuals, rather than of classes."""
    losses = sum(objective.program.model_loss.terms.by_output, [])
    return not any(
        getattr(loss, "fn", None) in _WITHOUT_RESIDUALS for loss in losses
    )


def is_dense_cheap(size: int, seconds: float) -> bool:
    """Whether a dense matrix costs little compared to an evaluation.

    Args:
        size: the number of parameters.
        seconds: the seconds of an evaluation.
    """
    step = _EVALUATIONS * seconds
    algebra = 8 * _BYTES * size**2 / _pace().bytes
    return step + algebra <= _WORTH_OF_DENSE * step


@functools.cache
def _pace() -> _Pace:
    """The speed of this machine. It is measured once, in 20 ms."""
    matrix, vector = np.ones((400, 400)), np.ones(2**20)
    return _Pace(
        flops=2 * 400**3 / _fastest(lambda: matrix @ matrix),
        bytes=3 * vector.nbytes / _fastest(lambda: vector + vector),
    )


def _fastest(fn: Callable[[], Any]) -> float:
    """The shortest of three times of a call, in seconds."""
    times = []
    for _ in range(3):
        begun = time.perf_counter()
        fn()
        times.append(time.perf_counter() - begun)
    # The clock of some machines is coarse.
    return max(min(times), 1e-9)


def _first_words(error: Exception) -> str:
    received = str(error).partition("Received: ")[2]
    return f"not for this loss: {received}" if received else "not for this loss"
