"""Tests of an objective's values, each with a `Finding` in words."""

import numpy as np
from keras import ops

from kormos.arithmetic.vectors import NARROW
from kormos.data.memory import leaves
from kormos.float64.settings import is_true_float64
from kormos.inspection.report import Finding
from kormos.objective.compiled import leading_size

_WIDE = ("float64", "bool", "int32", "int64", "uint8", "uint32")
_UNEQUAL = 1e4


def finite(objective, looked, value, grad):
    """Whether the loss and its gradient are numbers."""
    if np.isfinite(value) and np.isfinite(grad).all():
        return Finding("finite", True, f"The loss is {value:.6g}.")
    for name, outputs in zip(looked.names, looked.outputs, strict=True):
        if not all(np.isfinite(o).all() for o in outputs):
            return Finding(
                "finite",
                False,
                f"Layer '{name}' puts out NaN or infinite values.",
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
            f"The loss is {value}{_by(names)}: a logarithm, a root or a "
            "division leaves its domain.",
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
        f"{', '.join(names)}: a root or a norm at zero has none.",
        names,
    )


def deterministic(objective, watch, looked, theta, value, grad):
    """Whether the loss is the same twice."""
    again, grad_again = objective.value_and_grad(theta)
    second = watch.first()
    layer = _first_other(looked, second)
    if layer is not None:
        return _random(f"layer '{layer}'", layer)
    if not _same(looked.losses, second.losses):
        return _random("the loss function", "the loss function")
    if _same(value, again) and _same(grad, grad_again):
        return Finding("deterministic", True, "The same twice, bit for bit.")
    if _close(value, again, objective.epsilon):
        # Kernels of an accelerator may add in any order.
        return Finding("deterministic", True, "The same twice, to rounding.")
    return _random("something outside of layers", "unknown")


def _random(what, name):
    return Finding(
        "deterministic",
        False,
        f"Evaluated twice, {what} gives two results: draw through "
        "`keras.random` with a `SeedGenerator`, or not at all.",
        (name,),
    )


def batch_size(objective, watch, looked, theta, value, objective_for):
    """Whether the loss is the same however the rows are cut."""
    rows = objective.rows
    if rows == 1:
        return Finding("batch size", True, "There is one row.")
    size = -(-min(rows, objective.chunk_rows) // 3)
    try:
        other = objective_for(size)
    except ValueError:
        return Finding(
            "batch size",
            True,
            f"The model or its loss takes no batches of {size:,} rows.",
        )
    other = other.value(theta)
    noise = 1e3 * objective.epsilon * max(abs(value), abs(other))
    if not np.isfinite(value) or abs(other - value) <= noise:
        return Finding(
            "batch size", True, f"The same in batches of {size:,} rows."
        )
    said = (
        f"The loss is {value:.6g}, and {other:.6g} in batches of {size:,} rows"
    )
    head = watch.head
    count = leading_size(head.x)
    halves = [watch(_rows(head, at)) for at in _halves(count)]
    for i, name in enumerate(looked.names):
        for j, output in enumerate(looked.outputs[i]):
            parts = [half.outputs[i][j] for half in halves]
            if _has_rows(output, count) and not _close(
                output, np.concatenate(parts), objective.epsilon
            ):
                return Finding(
                    "batch size",
                    False,
                    f"{said}: in layer '{name}' a row depends on the others.",
                    (name,),
                )
    names = tuple(
        name
        for i, name in enumerate(looked.terms)
        if not _close(
            looked.losses[i],
            halves[0].losses[i] + halves[1].losses[i],
            objective.epsilon,
        )
    )
    return Finding(
        "batch size",
        False,
        f"{said}{_by(names)}, which is no mean or sum over the rows.",
        names,
    )


def precision(objective, looked, theta):
    """Whether a float64 model is computed in float64."""
    if objective.epsilon > NARROW:
        narrowest = "bfloat16" if objective.epsilon > 1e-4 else "float32"
        return Finding(
            "precision",
            True,
            f"The model computes in {narrowest}, the solver in float64.",
        )
    names = tuple(
        name
        for name, outputs in zip(looked.names, looked.outputs, strict=True)
        if any(o.dtype.name not in _WIDE for o in outputs)
    )
    if names:
        said = f"In this float64 model, {', '.join(names)} put out float32."
    elif objective.program.packing.dtype is None and not is_true_float64():
        said = (
            "Keras computes a part of this float64 model in float32: call "
            "`kormos.enable_float64()` first, or fit with "
            "`precision='float64'`."
        )
    elif _is_noisy(objective, theta):
        said = (
            "Something inside of a layer or the loss computes in float32: "
            "over steps of 1e-6 the loss is as rough as that."
        )
    else:
        return Finding("precision", True, "The loss is smooth to float64.")
    return Finding("precision", False, said, names, is_fatal=False)


def _is_noisy(objective, theta):
    """Whether the loss is rough over small steps, as float32 makes it."""
    rng = np.random.default_rng(0)
    size = 0.1 + np.abs(theta)
    # Away from kinks that a start is exactly on.
    theta = theta + 1e-2 * size * rng.standard_normal(theta.shape)
    step = 1e-6 * size * rng.standard_normal(theta.shape)
    points = [theta + k * step for k in (-2, -1, 0, 1, 2)]
    values = np.array([objective.value(point) for point in points])
    # The fourth difference of what is smooth is smaller than its rounding.
    fourth = values @ np.array([1, -4, 6, -4, 1])
    return abs(fourth) > 1e-9 * np.max(np.abs(values))


def scaling(objective, data, grad):
    """Whether data and parameters are of similar sizes."""
    said, names = [], []
    for name, part in (("x", data.x), ("y", data.y)):
        for array in leaves(part):
            trouble = _unequal_columns(array)
            if trouble:
                said.append(f"{name} {trouble}")
                names.append(name)
    parts = objective.program.packing.split_array(grad)
    sizes = [np.sqrt(np.mean(np.square(part))) for part in parts]
    pairs = [
        (size, v.path)
        for size, v in zip(sizes, objective.variables, strict=True)
        if 0 < size < np.inf
    ]
    # What is zero but for rounding says nothing.
    noise = 10 * objective.epsilon * max(pairs, default=(0, ""))[0]
    pairs = [pair for pair in pairs if pair[0] > noise]
    if pairs and max(pairs)[0] > _UNEQUAL * min(pairs)[0]:
        low, high = min(pairs), max(pairs)
        said.append(
            f"the gradient is {high[0] / low[0]:.0e} times larger in "
            f"{high[1]} than in {low[1]}"
        )
        names += [high[1], low[1]]
    if not said:
        return Finding("scaling", True, "Data and gradients are alike in size.")
    return Finding(
        "scaling",
        False,
        f"Badly scaled: {'; '.join(said)}."
        + (" `keras.layers.Normalization` helps." if "x" in names else ""),
        tuple(dict.fromkeys(names)),
        is_fatal=False,
    )


def _unequal_columns(array):
    if array.dtype.kind != "f" or len(array) < 2:
        return None
    columns = array.reshape(len(array), -1).astype("float64")
    mean, spread = np.abs(columns.mean(axis=0)), columns.std(axis=0)
    moving = spread > 1e-12 * mean
    if not moving.any():
        return None
    mean, spread = mean[moving], spread[moving]
    if spread.max() > _UNEQUAL * spread.min():
        ratio = spread.max() / spread.min()
        return f"has columns that differ {ratio:.0e} times in their spread"
    if (mean > 100 * spread).any():
        ratio = (mean / spread).max()
        return f"lies {ratio:.0e} times its spread from zero"
    if spread.max() > _UNEQUAL or spread.max() < 1 / _UNEQUAL:
        return f"has a spread of {spread.max():.0e}"
    return None


def _same(a, b):
    return np.array_equal(a, b, equal_nan=True)


def _close(a, b, epsilon):
    a, b = np.asarray(a), np.asarray(b)
    size = max(np.max(np.abs(a), initial=0), np.max(np.abs(b), initial=0))
    return a.shape == b.shape and bool(
        np.all(np.abs(a - b) <= 100 * epsilon * size)
    )


def _first_other(first, second):
    """The first layer whose outputs differ."""
    calls = zip(first.names, first.outputs, strict=True)
    again = zip(second.names, second.outputs, strict=True)
    for (name, a), (other, b) in zip(calls, again, strict=False):
        if name != other or len(a) != len(b):
            return name
        if not all(_same(p, q) for p, q in zip(a, b, strict=True)):
            return name
    return None


def _has_rows(output, count):
    return output.ndim > 0 and len(output) == count


def _halves(count):
    return slice(0, count // 2), slice(count // 2, count)


def _rows(head, at):
    return head.map(lambda tensor: ops.convert_to_tensor(tensor[at]))


def _by(names):
    return f" by {', '.join(names)}" if names else ""
