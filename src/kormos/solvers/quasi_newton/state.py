"""The state of a quasi-Newton run between two evaluations."""

from typing import NamedTuple

import numpy as np

from kormos.solvers.protocols import Method
from kormos.solvers.quasi_newton import wolfe_search
from kormos.solvers.quasi_newton.search_interval import Search
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor
from kormos.types import Vector

# `State.status`: before the first evaluation, under way, or why it ended.
(
    STARTING,
    RUNNING,
    GRADIENT,
    DECREASE,
    STEP,
    NOISE,
    TARGET,
    LINE_SEARCH,
    NON_FINITE,
) = range(9)

# The fewest rows of `State.rows`. Our choice: their number is part of the
# compiled program, which fits with and without a callback should share.
_FEWEST_ROWS = 50

# Columns of `State.rows`, and those that bounds add.
ROW = ("loss", "grad", "step", "evaluations", "resets")
BOUNDED_ROW = (*ROW, "active")


class Limits(NamedTuple):
    """The limits of a run, or of a call; scalars.

    Attributes:
        gtol: the square root of the decrease that the curvature predicts
            over the size of the loss.
        ftol: the decrease of the lowest loss over the size of the loss.
        xtol: the length of a step over that of the parameters.
        noise: the rounding of the loss over its size.
        target: the loss that is low enough.
        evaluations: the count of evaluations that ends the call, int32.
        iterations: the count of iterations that ends the call, int32.
    """

    gtol: Scalar
    ftol: Scalar
    xtol: Scalar
    noise: Scalar
    target: Scalar
    evaluations: Scalar
    iterations: Scalar


class Pair(NamedTuple):
    """A step, and the change of the gradient along it.

    Attributes:
        good: whether the curvature is positive beyond rounding.
        step: s, of shape `(size,)`.
        change: y, the change of the gradient along it, of shape `(size,)`.
        energy: s'Bs, with B the inverse of H, scalar.
        direction: where the step went, of shape `(size,)`: the step is a
            multiple of it.
        downhill: -Hg before the step, of shape `(size,)`; equal to `direction`
            without bounds.
        is_first: whether it is the first since the memory was cleared, so
            that the step was along the gradient.
    """

    good: Scalar
    step: Tensor
    change: Tensor
    energy: Scalar
    direction: Tensor
    downhill: Tensor
    is_first: Scalar


class State(NamedTuple):
    """A run between two evaluations.

    Attributes:
        theta: the accepted point, of shape `(size,)`.
        loss: the loss there, scalar.
        grad: the gradient there, of shape `(size,)`.
        direction: where the line search goes, of shape `(size,)`.
        search: the line search.
        store: the large arrays of what is known about the curvature: see
            `protocols.Curvature`.
        curvature: the rest of what is known, a named tuple.
        units: the length that counts as one for each parameter, `(size,)`.
        spread: the squares of each entry of the gradient's changes, as parts of
            the whole change, summed with weights that fall with age, `(size,)`.
        lowest: the lowest loss so far, scalar.
        stalled: iterations in a row without a new lowest loss, int32.
        is_anew: whether to clear the memory at the start, int32.
        probes: the number of next searches that begin with a probe, int32.
        resets: the number of times that the memory was cleared, int32.
        pairs: good pairs since then, int32.
        iterations: accepted steps, int32.
        evaluations: evaluations, int32.
        latest: the loss of the latest evaluation, scalar.
        status: one of the constants above, int32.
        value: the quantity of the test that ended the run, scalar.
        rows: a row for each iteration of the present call, with the columns
            of `ROW` or `BOUNDED_ROW`, and then the readings:
            `(most, columns)`.
    """

    theta: Tensor
    loss: Scalar
    grad: Tensor
    direction: Tensor
    search: Search
    store: Structure
    curvature: Structure
    units: Tensor
    spread: Tensor
    lowest: Scalar
    stalled: Scalar
    is_anew: Scalar
    probes: Scalar
    resets: Scalar
    pairs: Scalar
    iterations: Scalar
    evaluations: Scalar
    latest: Scalar
    status: Scalar
    value: Scalar
    rows: Tensor


def init(
    curvature: Method,
    theta: Vector,
    rows: int,
    is_bounded: bool = False,
    readings: int = 0,
    dtype: str = "float64",
) -> State:
    """The state before the first evaluation, of NumPy arrays.

    Args:
        curvature: the formulas of the curvature.
        theta: the start, float64 array of shape `(size,)`.
        rows: the most iterations of a call of `advance`.
        is_bounded: whether the parameters have bounds.
        readings: the number of readings of the objective at a point.
        dtype: see `protocols.Method.empty`.
    """
    zero, none = np.float64(0), np.int32(0)
    columns = len(BOUNDED_ROW if is_bounded else ROW) + readings
    store, known = curvature.empty(theta.size, dtype)
    return State(
        theta=theta,
        loss=zero,
        grad=np.zeros_like(theta),
        direction=np.zeros_like(theta),
        search=wolfe_search.begin(zero, zero, zero),
        store=store,
        curvature=known,
        units=np.ones_like(theta),
        spread=np.zeros_like(theta),
        lowest=zero,
        stalled=none,
        is_anew=np.int32(1),
        probes=none,
        resets=none,
        pairs=none,
        iterations=none,
        evaluations=none,
        latest=zero,
        status=np.int32(STARTING),
        value=zero,
        rows=np.zeros((max(rows, _FEWEST_ROWS), columns)),
    )
