"""Arrays of every kind that Keras takes, as checked NumPy arrays."""

import numbers

import keras
import numpy as np
from keras import ops
from keras import tree

from kormos.objective.data import leaves


def is_array(x):
    """Whether `x` is an array, a tensor or a table of columns."""
    return (
        any(hasattr(x, name) for name in ("__array__", "to_numpy", "toarray"))
        or ops.is_tensor(x)
        or _is_ragged(x)
    )


def _is_ragged(x):
    return hasattr(x, "nested_row_splits")  # TensorFlow's, on any backend.


def refuse_ragged(value, name):
    """Refuses a ragged tensor, which Keras would fill up with zeros."""
    if _is_ragged(value):
        raise ValueError(
            f"Argument `{name}` must hold arrays, whose rows are of one "
            "shape, and not ragged tensors: fill the rows up with "
            "`to_tensor()` (in a data set, `map` or `padded_batch`), and mask "
            "the filling by `Embedding(mask_zero=True)`, a `Masking` layer "
            f"or weights. Received: {type(value).__name__} of shape "
            f"{tuple(value.shape)}"
        )


def to_array(value, name):
    """A NumPy array of numbers, with a row for each sample."""
    refuse_ragged(value, name)
    try:
        array = _as_numpy(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"Argument `{name}` must hold arrays of numbers. "
            f"Received: {type(value).__name__}, of which NumPy says: {error}"
        ) from error
    if array.dtype.name == "bfloat16":
        array = array.astype("float32")
    if array.dtype.kind not in "fiub":
        raise ValueError(
            f"Argument `{name}` must hold numbers. "
            f"Received: {type(value).__name__} of dtype {array.dtype}"
        )
    if array.ndim == 0:
        raise ValueError(
            f"Argument `{name}` must have a row for each sample; batch a data "
            f"set that yields single samples. Received: a scalar, {value!r}"
        )
    # PyTorch takes numbers in the machine's own order of bytes alone.
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _as_numpy(value):
    if hasattr(value, "toarray"):
        return value.toarray()
    if hasattr(value, "to_numpy"):
        array = value.to_numpy()
        if array.dtype == object:
            # Columns of different dtypes; NumPy finds a common one.
            array = np.array(array.tolist())
        return array[:, None] if array.ndim == 1 else array
    if ops.is_tensor(value):
        return ops.convert_to_numpy(value)
    return np.asarray(value)


def cast(array, name, dtype):
    """Floating-point numbers in a dtype, in which they must be finite."""
    if array.dtype.kind != "f":
        return array
    dtype = dtype or keras.config.floatx()
    with np.errstate(over="ignore"):
        array = array.astype(dtype, copy=False)
    finite = np.isfinite(array)
    if not finite.all():
        row = int(np.argwhere(~finite)[0][0])
        raise ValueError(
            f"Argument `{name}` must be finite in {dtype}; remove or impute "
            "NaN and infinite values, or drop the rows (a weight of 0 does "
            f"not, for 0 * NaN is NaN). Received: {int((~finite).sum())} such "
            f"values, the first in row {row}"
        )
    return array


def map_parts(fn, parts, names):
    """Applies `fn(array, name)` to every array of parts with names."""
    return [_map(fn, p, name) for p, name in zip(parts, names, strict=True)]


def _map(fn, value, name):
    """Applies `fn(array, name)` to every array, with the name of its place."""
    if value is None:
        return None
    if isinstance(value, dict):
        return {k: _map(fn, v, f"{name}[{k!r}]") for k, v in value.items()}
    if isinstance(value, (list, tuple)) and not _is_list_of_numbers(value):
        parts = [_map(fn, v, f"{name}[{i}]") for i, v in enumerate(value)]
        if hasattr(value, "_fields"):
            return type(value)(*parts)
        return parts if isinstance(value, list) else tuple(parts)
    return fn(value, name)


def _is_list_of_numbers(value):
    while isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        if not value:
            return False
        value = value[0]
    return isinstance(value, (numbers.Number, np.generic))


def check_rows(parts, argument, names):
    """Refuses arrays that differ in length, or are empty."""
    if not leaves(parts[0]):
        raise ValueError(
            f"Argument `{argument}` must hold data. Received: {parts[0]}"
        )
    rows = {len(a) for a in leaves(parts)}
    if len(rows) > 1:
        raise ValueError(
            "All arrays must have the same number of rows. "
            f"Received: {_shapes(parts, names)}"
        )
    if rows == {0}:
        raise ValueError(
            f"Argument `{argument}` must hold a row or more. Received: 0 rows"
        )


def check_weights(y, weights, y_name, name):
    """Refuses weights that fit neither rows nor outputs."""
    if weights is None or not tree.is_nested(y):
        return
    if tree.is_nested(weights):
        try:
            return tree.assert_same_structure(y, weights)
        except ValueError:
            pass  # Its message prints the arrays.
    elif weights.ndim == 1 or weights.shape[1:] == (1,):
        return
    raise ValueError(
        f"Argument `{name}` must be one weight a row, for all outputs alike, "
        f"or hold an array for each of `{y_name}`. "
        f"Received: {_shapes((y, weights), (y_name, name))}"
    )


def _shapes(parts, names):
    shapes = tree.map_structure(lambda a: a.shape, parts, none_is_leaf=False)
    return "; ".join(
        f"{name} of shape {shape}"
        for shape, name in zip(shapes, names, strict=True)
        if shape is not None
    )
