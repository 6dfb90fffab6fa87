"""Tests of an objective's values, each of which returns a `Finding`."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from kormos.arithmetic.vectors import NARROW
from kormos.data.memory import Data
from kormos.float64.settings import is_true_float64
from kormos.inspection.costs import Evaluation
from kormos.inspection.kinks import away_from_kinks
from kormos.inspection.kinks import sizes
from kormos.inspection.report import Finding
from kormos.inspection.watch import Watch
from kormos.inspection.watch import Watched
from kormos.objective import Objective
from kormos.objective.compiled import leading_size
from kormos.types import Array
from kormos.types import Vector

# Dtypes in which a layer of a float64 model loses no precision.
_EXACT_DTYPES = ("float64", "bool", "int32", "int64", "uint8", "uint32")

# The numbers below are our choices. Smaller ones raise more false alarms,
# larger ones miss more.

# Two results count as the same if they differ by at most this many roundings:
# the first number for a loss over all rows, the second for any other value.
_ROUNDINGS_OF_LOSS = 1e3
_ROUNDINGS = 100
# The rounding of bfloat16 is 2**-7, that of float32 is 2**-23. Any number
# between the two distinguishes them.
_BFLOAT16 = 1e-4
# Relative to the loss, its fourth differences over steps of this size are about
# 1e-15 if it is computed in float64, and 1e-7 in float32.
_SMALL_STEP = 1e-6
_ROUGH = 1e-9


def finite(objective: Objective, looked: Watched, start: Evaluation) -> Finding:
    """Whether the loss and its gradient are finite."""
    value, grad = start.loss, start.grad
    if np.isfinite(value) and np.isfinite(grad).all():
        return Finding("finite", True, f"The loss is {value:.6g}.")
    for name, outputs in zip(looked.names, looked.outputs, strict=True):
        if not all(np.isfinite(o).all() for o in outputs):
            return Finding(
                "finite",
                False,
                f"Layer '{name}' returns NaN or infinite values.",
                (name,),
            )
    if not np.isfinite(value):
        names = tuple(
            name
            for name, term in zip(looked.terms, looked.losses, strict=True)
            if not np.isfinite(term)
        )
        return Finding(
            "finite",
            False,
            f"The loss is {value}{_because_of(names)}: the argument of a "
            "logarithm, a root or a division is outside of its domain.",
            names,
        )
    parts = objective.program.packing.split_array(grad)
    names = tuple(
        v.path
        for v, part in zip(objective.variables, parts, strict=True)
        if not np.isfinite(part).all()
    )
    return Finding(
        "finite",
        False,
        f"The loss is {value:.6g}, but its gradient is not finite in "
        f"{', '.join(names)}: a root or a norm has no finite gradient at zero.",
        names,
    )


def deterministic(
    objective: Objective, watch: Watch, looked: Watched, start: Evaluation
) -> Finding:
    """Whether two evaluations give the same loss.

    Args:
        objective: the objective.
        watch: evaluates its layers one by one.
        looked: the first evaluation by `watch`.
        start: the evaluation of the start.
    """
    value, grad = start.loss, start.grad
    again, grad_again = objective.value_and_grad(start.theta)
    second = watch.first()
    layer = _first_other(looked, second)
    if layer is not None:
        return _random(f"layer '{layer}'", layer)
    if not _same(looked.losses, second.losses):
        return _random("the loss function", "the loss function")
    if _same(value, again) and _same(grad, grad_again):
        return Finding(
            "deterministic", True, ("Two evaluations agree bit for bit.")
        )
    if _close(value, again, objective.evaluation_eps):
        # Kernels of an accelerator may add in any order.
        return Finding(
            "deterministic",
            True,
            ("Two evaluations agree, except for rounding."),
        )
    return _random("something outside of layers", "unknown")


def _random(what: str, name: str) -> Finding:
    return Finding(
        "deterministic",
        False,
        f"Evaluated twice, {what} gives different results: draw random "
        "numbers by `keras.random` with a `SeedGenerator`, or not at all.",
        (name,),
    )


def batch_size(
    objective: Objective,
    watch: Watch,
    looked: Watched,
    start: Evaluation,
    objective_for: Callable[[int], Objective],
) -> Finding:
    """Whether the loss is the same for every batch size.

    Args:
        objective: the objective.
        watch: evaluates its layers one by one.
        looked: the first evaluation by `watch`.
        start: the evaluation of the start.
        objective_for: function of a batch size that returns the objective
            with it.
    """
    value, rows = start.loss, objective.rows
    if rows == 1:
        return Finding("batch size", True, "There is one row.")
    size = -(-min(rows, objective.chunk_rows) // 3)
    try:
        in_parts = objective_for(size)
    except ValueError:
        return Finding(
            "batch size",
            True,
            f"The model or its loss does not accept batches of {size:,} rows.",
        )
    other = in_parts.value(start.theta)
    noise = (
        _ROUNDINGS_OF_LOSS
        * objective.evaluation_eps
        * max(abs(value), abs(other))
    )
    if not np.isfinite(value) or abs(other - value) <= noise:
        return Finding(
            "batch size",
            True,
            (f"The loss is the same in batches of {size:,} rows."),
        )
    said = (
        f"The loss is {value:.6g}, and {other:.6g} in batches of {size:,} rows"
    )
    layer, terms = _coupling_rows(watch, looked, objective.evaluation_eps)
    if layer is not None:
        return Finding(
            "batch size",
            False,
            f"{said}: in layer '{layer}' a row depends on the others.",
            (layer,),
        )
    return Finding(
        "batch size",
        False,
        f"{said}{_because_of(terms)}, which is not a mean or sum over rows.",
        terms,
    )


def _coupling_rows(
    watch: Watch, looked: Watched, evaluation_eps: float
) -> tuple[str | None, tuple[str, ...]]:
    """Finds where the result for a row depends on other rows.

    Args:
        watch: evaluates the layers one by one.
        looked: the first evaluation by `watch`.
        evaluation_eps: the machine epsilon of the evaluation's dtype.

    Returns:
        The first layer whose result does, or `None`; and, if there is none, the
        terms of the loss that do.
    """
    head = watch.head
    count = leading_size(head.x)
    halves = [watch(_rows(head, at)) for at in _halves(count)]
    for i, name in enumerate(looked.names):
        for j, output in enumerate(looked.outputs[i]):
            parts = [half.outputs[i][j] for half in halves]
            if _has_rows(output, count) and not _close(
                output, np.concatenate(parts), evaluation_eps
            ):
                return name, ()
    first, second = (half.losses for half in halves)
    return None, tuple(
        name
        for i, name in enumerate(looked.terms)
        if not _close(looked.losses[i], first[i] + second[i], evaluation_eps)
    )


def precision(objective: Objective, looked: Watched, theta: Vector) -> Finding:
    """Whether a float64 model is computed in float64."""
    if objective.evaluation_eps > NARROW:
        is_bfloat16 = objective.evaluation_eps > _BFLOAT16
        narrowest = "bfloat16" if is_bfloat16 else "float32"
        return Finding(
            "precision",
            True,
            f"The model computes in {narrowest}, the solver in float64.",
        )
    names = tuple(
        name
        for name, outputs in zip(looked.names, looked.outputs, strict=True)
        if any(o.dtype.name not in _EXACT_DTYPES for o in outputs)
    )
    if names:
        said = f"In this float64 model, {', '.join(names)} return float32."
    elif objective.program.packing.dtype is None and not is_true_float64():
        said = (
            "Keras computes a part of this float64 model in float32: call "
            "`kormos.enable_float64()` first, or fit with "
            "`precision='float64'`."
        )
    elif _is_noisy(objective, theta):
        said = (
            "Something inside a layer or the loss computes in float32: over "
            f"steps of {_SMALL_STEP:g} the loss has the rounding errors of "
            "float32."
        )
    else:
        return Finding(
            "precision", True, "The loss has only rounding errors of float64."
        )
    return Finding("precision", False, said, names, is_fatal=False)


def _is_noisy(objective: Objective, theta: Vector) -> bool:
    """Whether the loss has rounding errors of float32 over small steps."""
    rng = np.random.default_rng(0)
    near = away_from_kinks(theta, rng)
    step = _SMALL_STEP * sizes(theta) * rng.standard_normal(theta.shape)
    points = [near + k * step for k in (-2, -1, 0, 1, 2)]
    values = np.array([objective.value(point) for point in points])
    # The fourth difference of a smooth function is below its rounding error.
    fourth = values @ np.array([1, -4, 6, -4, 1])
    return bool(abs(fourth) > _ROUGH * np.max(np.abs(values)))


def _same(a: Any, b: Any) -> bool:
    return np.array_equal(a, b, equal_nan=True)


def _close(a: Any, b: Any, evaluation_eps: float) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    size = max(np.max(np.abs(a), initial=0), np.max(np.abs(b), initial=0))
    return a.shape == b.shape and bool(
        np.all(np.abs(a - b) <= _ROUNDINGS * evaluation_eps * size)
    )


def _first_other(first: Watched, second: Watched) -> str | None:
    """The first layer whose outputs differ, or `None`."""
    calls = zip(first.names, first.outputs, strict=True)
    again = zip(second.names, second.outputs, strict=True)
    for (name, a), (other, b) in zip(calls, again, strict=False):
        if name != other or len(a) != len(b):
            return name
        if not all(_same(p, q) for p, q in zip(a, b, strict=True)):
            return name
    return None


def _has_rows(output: Array, count: int) -> bool:
    return output.ndim > 0 and len(output) == count


def _halves(count: int) -> tuple[slice, slice]:
    return slice(0, count // 2), slice(count // 2, count)


def _rows(head: Data, at: slice) -> Data:
    return head.map(lambda tensor: ops.convert_to_tensor(tensor[at]))


def _because_of(names: tuple[str, ...]) -> str:
    return f" because of {', '.join(names)}" if names else ""
