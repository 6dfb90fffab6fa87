"""What a run of a quasi-Newton method knows between two evaluations."""

from typing import Any
from typing import NamedTuple

import numpy as np

from kormos.solvers.quasi_newton import wolfe_search
from kormos.solvers.quasi_newton.wolfe_search import Search

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

# Columns of `State.rows`.
ROW = ("loss", "grad", "step", "evaluations", "resets")


class Limits(NamedTuple):
    """What ends a run, or a call; scalars.

    Attributes:
        gtol: the square root of the decrease that the curvature promises
            over the size of the loss.
        ftol: the decrease of the lowest loss over the size of the loss.
        xtol: the length of a step over that of the parameters.
        noise: the rounding of the loss over its size.
        target: the loss that is low enough.
        evaluations: where the count of evaluations ends the call.
        iterations: likewise of iterations.
    """

    gtol: Any
    ftol: Any
    xtol: Any
    noise: Any
    target: Any
    evaluations: Any
    iterations: Any


class Pair(NamedTuple):
    """A step and what it says of the curvature.

    Attributes:
        good: whether the curvature is positive beyond rounding.
        step: s, of shape `(size,)`.
        change: y, of the gradient along the step, likewise.
        energy: s'Bs, with B the inverse of H, scalar.
        direction: -Hg before the step, of shape `(size,)`.
        is_first: whether it is the first since the memory was cleared, so
            that the step was along the gradient.
    """

    good: Any
    step: Any
    change: Any
    energy: Any
    direction: Any
    is_first: Any


class State(NamedTuple):
    """A run between two evaluations.

    Attributes:
        theta: the accepted point, of shape `(size,)`.
        loss: the loss there, scalar.
        grad: the gradient there, of shape `(size,)`.
        direction: where the line search goes, of shape `(size,)`.
        search: the line search.
        store: what the method knows of the curvature, in large arrays.
        curvature: the rest of it, a tuple.
        units: the lengths that count as one for each parameter, `(size,)`.
        spread: squares of each entry of the gradient's change, as parts of
            the whole change, summed with falling weights, `(size,)`.
        lowest: the lowest loss so far, scalar.
        stalled: iterations since then, int32.
        is_anew: whether the memory is to be cleared at the start, int32.
        probes: how many of the next searches are to probe first, int32.
        resets: how often the memory was cleared, int32.
        pairs: good pairs since then, int32.
        iterations: accepted steps, int32.
        evaluations: evaluations, int32.
        latest: the loss of the latest of them, scalar.
        status: int32.
        value: the quantity of the test that ended the run, scalar.
        rows: a row an iteration of the present call, `(most, len(ROW))`.
    """

    theta: Any
    loss: Any
    grad: Any
    direction: Any
    search: Search
    store: Any
    curvature: Any
    units: Any
    spread: Any
    lowest: Any
    stalled: Any
    is_anew: Any
    probes: Any
    resets: Any
    pairs: Any
    iterations: Any
    evaluations: Any
    latest: Any
    status: Any
    value: Any
    rows: Any


def init(method, theta, rows):
    """The state before the first evaluation, of NumPy arrays.

    Args:
        method: a method of curvature. What it knows is in two parts: a store
            of large arrays, which no branch of the compiled loop may return,
            for it would be copied there; and the rest. It has `empty(size)`,
            both before the first pair; `record(store, curvature, good, step,
            change)`, the store with a pair if it is `good`; `update(store,
            curvature, pair, grad)`, the curvature after the `Pair` recorded
            last, with the direction at a new gradient; `clear(curvature,
            scale)`, for an inverse Hessian of `scale` times the identity;
            `settle(store, curvature)`, which brings into the store what the
            curvature holds for it; and `overshoots`, whether its directions
            are often too long.
        theta: the start, float64 array of shape `(size,)`.
        rows: the most iterations of a call of `advance`.
    """
    zero, none = np.float64(0), np.int32(0)
    store, curvature = method.empty(theta.size)
    return State(
        theta=theta,
        loss=zero,
        grad=np.zeros_like(theta),
        direction=np.zeros_like(theta),
        search=wolfe_search.begin(zero, zero, zero),
        store=store,
        curvature=curvature,
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
        rows=np.zeros((rows, len(ROW))),
    )
