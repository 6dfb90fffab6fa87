"""Arrays of every kind that Keras takes, as checked NumPy arrays."""

import numbers
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.data.memory import leaves
from kormos.types import Array
from kormos.types import Structure

# Methods by which arrays and tables of other libraries convert to NumPy.
_CONVERTIBLE = "__array__", "to_numpy", "toarray", "todense"


def is_array(x: object) -> bool:
    """Whether `x` is an array, a tensor or a table of columns."""
    return (
        any(hasattr(x, name) for name in _CONVERTIBLE)
        or ops.is_tensor(x)
        or _is_ragged(x)
        or _is_column(x)
        or _is_sparse(x)
    )


def _is_column(x: object) -> bool:
    """Whether it is a lazy column of a Hugging Face data set."""
    return hasattr(x, "column_name") and hasattr(x, "__getitem__")


def _is_sparse(x: object) -> bool:
    """Whether it is a sparse tensor of TensorFlow's, on any backend."""
    return hasattr(x, "dense_shape") and hasattr(x, "indices")


def _is_ragged(x: object) -> bool:
    """Whether it is a ragged tensor of TensorFlow's, on any backend."""
    return hasattr(x, "nested_row_splits")


def refuse_ragged(value: Any, name: str) -> None:
    """Refuses a ragged tensor, which Keras would pad with zeros."""
    if _is_ragged(value):
        raise ValueError(
            f"Argument `{name}` must hold arrays whose rows have the same "
            "shape, not ragged tensors: pad the rows with `to_tensor()` (in "
            "a dataset, `map` or `padded_batch`), and mask the padding by "
            "`Embedding(mask_zero=True)`, a `Masking` layer or weights. "
            f"Received: {type(value).__name__} of shape {tuple(value.shape)}"
        )


def to_array(value: Any, name: str) -> Array:
    """A NumPy array of numbers, with a row for each sample."""
    refuse_ragged(value, name)
    try:
        array = _as_numpy(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"Argument `{name}` must hold arrays of numbers. "
            f"Received: {type(value).__name__}, which NumPy refuses: {error}"
        ) from error
    if array.dtype.name == "bfloat16":
        array = array.astype("float32")
    if _holds_strings(array):
        _check_strings(value, name, array)
        array = array.astype(object)
    elif array.dtype.kind not in "fciub":
        raise ValueError(
            f"Argument `{name}` must hold numbers. "
            f"Received: {type(value).__name__} of dtype {array.dtype}"
        )
    if array.ndim == 0:
        raise ValueError(
            f"Argument `{name}` must have a row for each sample; if a "
            "dataset yields single samples, batch it. Received: a scalar, "
            f"{value!r}"
        )
    # PyTorch takes only numbers in the byte order of the machine.
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _holds_strings(array: Array) -> bool:
    if array.dtype.kind == "O" and array.size:
        return all(isinstance(a, (str, bytes)) for a in array.flat)
    return array.dtype.kind in "US"


def _check_strings(value: Any, name: str, array: Array) -> None:
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"Argument `{name}` must hold numbers: strings are for layers on "
            "TensorFlow. Call the layer that takes them on the data first "
            "(`x = lookup(strings)`), and build the model without it. "
            f"Received: {type(value).__name__} of dtype {array.dtype}"
        )


def check_targets(parts: Sequence[Structure], names: Sequence[str]) -> None:
    """Refuses targets and weights of strings, and complex weights."""
    _, y, weights = parts
    for part, name, kinds in (
        (y, names[1], "fciub"),
        (weights, names[2], "fiub"),
    ):
        for array in leaves(part):
            if array.dtype.kind not in kinds:
                raise ValueError(
                    f"Argument `{name}` must hold numbers"
                    f"{', real ones' if kinds == 'fiub' else ''}. "
                    f"Received: an array of dtype {array.dtype}"
                )


def check_inputs(x: Structure, inputs: Iterable[Any] | None) -> None:
    """Refuses strings and complex numbers if a model has no such input.

    Keras would drop the imaginary parts.

    Args:
        x: arrays in any structure.
        inputs: the symbolic inputs of the model, or `None` if it has none.
    """
    taken = [keras.backend.standardize_dtype(i.dtype) for i in inputs or ()]

    def check(array: Array, name: str) -> None:
        kind = {"c": "complex", "O": "string"}.get(array.dtype.kind)
        if kind and taken and not any(kind in dtype for dtype in taken):
            raise ValueError(
                f"Argument `{name}` must hold real numbers, because the "
                f"model has no {kind} input (`keras.Input(dtype=...)`). "
                f"Received: an array of dtype {array.dtype}"
            )

    map_parts(check, [x], ["x"])


def in_dtype(array: Array, dtype: str) -> Array:
    """Casts floating-point numbers, and the parts of complex ones, to a dtype.

    Arrays of other kinds are returned unchanged.
    """
    if array.dtype.kind == "c":
        dtype = "complex128" if dtype == "float64" else "complex64"
    elif array.dtype.kind != "f":
        return array
    return array.astype(dtype, copy=False)


def _as_numpy(value: Any) -> Array:
    if _is_column(value):
        value = value[:]
    if _is_sparse(value) and not hasattr(value, "toarray"):
        dense = np.zeros(tuple(value.dense_shape), value.dtype.as_numpy_dtype)
        dense[tuple(np.asarray(value.indices).T)] = np.asarray(value.values)
        return dense
    if hasattr(value, "toarray"):
        return value.toarray()
    if hasattr(value, "todense"):
        return np.asarray(value.todense())
    if "sparse" in str(getattr(value, "layout", "")):
        value = value.to_dense()
    if hasattr(value, "to_numpy"):
        array = value.to_numpy()
        if array.dtype == object:
            # The columns have different dtypes. NumPy finds a common one.
            array = np.array(array.tolist())
        return array[:, None] if array.ndim == 1 else array
    if ops.is_tensor(value):
        return backend.to_numpy(value)
    return np.asarray(value)


def cast(
    array: Array, name: str, dtype: str | None, allow_nan: bool = False
) -> Array:
    """Casts floating-point numbers to a dtype in which they must be finite.

    Args:
        array: the array.
        name: its name in messages.
        dtype: the dtype. Defaults to `floatx`.
        allow_nan: whether NaN is allowed.
    """
    if array.dtype.kind not in "fc":
        return array
    dtype = dtype or keras.config.floatx()
    with np.errstate(over="ignore"):
        array = in_dtype(array, dtype)
    finite = np.isfinite(array)
    if allow_nan:
        finite = finite | np.isnan(array)
    if not finite.all():
        row = int(np.argwhere(~finite)[0][0])
        raise ValueError(
            f"Argument `{name}` must be finite in {dtype}; remove or impute "
            "NaN and infinite values, or drop the rows (a weight of 0 does "
            "not drop them, because 0 * NaN is NaN). For a model or loss that "
            "handles NaN, give `allow_nan=True`. "
            f"Received: {int((~finite).sum())} such values, the first in row "
            f"{row}"
        )
    return array


def map_parts(
    fn: Callable[[Any, str], Any],
    parts: Sequence[Structure],
    names: Sequence[str],
) -> list[Structure]:
    """Applies `fn(array, name)` to every array of the named parts."""
    return [_map(fn, p, name) for p, name in zip(parts, names, strict=True)]


def _map(
    fn: Callable[[Any, str], Any], value: Structure, name: str
) -> Structure:
    """Applies `fn` to every array and its name, such as `"x['a'][0]"`."""
    if value is None:
        return None
    if isinstance(value, dict):
        return {k: _map(fn, v, f"{name}[{k!r}]") for k, v in value.items()}
    if isinstance(value, (list, tuple)) and not _is_list_of_values(value):
        parts = [_map(fn, v, f"{name}[{i}]") for i, v in enumerate(value)]
        if hasattr(value, "_fields"):
            return type(value)(*parts)
        return parts if isinstance(value, list) else tuple(parts)
    return fn(value, name)


def _is_list_of_values(value: Any) -> bool:
    while isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        if not value:
            return False
        value = value[0]
    return isinstance(value, (numbers.Number, np.generic, str, bytes))


def check_rows(
    parts: Sequence[Structure], argument: str, names: Sequence[str]
) -> None:
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


def check_weights(
    y: Structure, weights: Structure, y_name: str, name: str
) -> None:
    """Refuses weights that match neither the rows nor the outputs.

    Args:
        y: the targets.
        weights: the weights.
        y_name: the name of the targets in messages.
        name: the name of the weights in messages.
    """
    if weights is None or not tree.is_nested(y):
        return
    if tree.is_nested(weights):
        try:
            tree.assert_same_structure(y, weights)
            return
        except ValueError:
            pass  # Keras' message would print the whole arrays.
    elif weights.ndim == 1 or weights.shape[1:] == (1,):
        return
    raise ValueError(
        f"Argument `{name}` must hold one weight per row, shared by all "
        f"outputs, or an array for each of `{y_name}`. Received: "
        f"{_shapes((y, weights), (y_name, name))}"
    )


def _shapes(parts: Sequence[Structure], names: Sequence[str]) -> str:
    shapes = tree.map_structure(lambda a: a.shape, parts, none_is_leaf=False)
    return "; ".join(
        f"{name} of shape {shape}"
        for shape, name in zip(shapes, names, strict=True)
        if shape is not None
    )
