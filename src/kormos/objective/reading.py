"""Reads data of every kind that Keras takes, once, and checks them."""

import numbers

import keras
import numpy as np
from keras import ops
from keras import tree

from kormos.objective.data import Data
from kormos.objective.data import leaves


def gather(x, y=None, sample_weight=None, dtype=None):
    """Reads data of any kind that Keras takes into a checked `Data`.

    Args:
        x: arrays, tensors, pandas objects, lists of numbers, or dicts, lists
            and tuples of these, with as many rows each; or a finite
            `tf.data.Dataset`, `keras.utils.PyDataset` or torch `DataLoader`
            of batches `(x, y)` or `(x, y, sample_weight)`.
        y: targets, for arrays alone.
        sample_weight: weights of rows, for arrays alone.
        dtype: dtype of floating-point numbers. Defaults to `floatx`.

    Raises:
        ValueError: if the data are infinite, empty, cannot be read twice,
            differ in length, or hold NaN or infinite values.
    """
    if isinstance(x, Data):
        return x
    return _gather((x, y, sample_weight), "x", Data._fields, dtype)


def gather_validation(validation_data, dtype=None):
    """As `gather`, for `(x, y)`, `(x, y, sample_weight)` or a data set."""
    parts = _unpack(validation_data, "validation_data")
    names = [f"validation_data[{i}]" for i in range(len(parts))]
    return _gather(parts, "validation_data", names, dtype)


def weigh(data, class_weight, dtype=None):
    """The data with each row weighed by its class.

    Args:
        data: a `Data`.
        class_weight: dict from a class's number to its weight, 1 for any
            other class. `None` changes nothing.
        dtype: dtype of the weights. Defaults to `floatx`.

    Raises:
        ValueError: if there are sample weights, or not one class a row.
    """
    if class_weight is None:
        return data
    _check_class_weight(data, class_weight)
    y = data.y
    if y.ndim > 1 and y.shape[-1] > 1:
        y = y.argmax(axis=-1)
    classes, places = np.unique(np.rint(y), return_inverse=True)
    weights = [float(class_weight.get(int(c), 1)) for c in classes]
    weights = _cast(np.array(weights), "class_weight", dtype)
    return data._replace(sample_weight=weights[places.reshape(-1)])


def dtype_for(model, precision=None):
    """The dtype of floating-point data for a model."""
    if precision is not None or model.compute_dtype == "float64":
        return "float64"
    return keras.config.floatx()


def is_dataset(x):
    """Whether `x` yields batches instead of being arrays."""
    if x is None or isinstance(x, (list, tuple, dict, str)) or _is_array(x):
        return False
    return hasattr(x, "__iter__") or hasattr(x, "__getitem__")


def _is_array(x):
    return any(
        hasattr(x, name) for name in ("__array__", "to_numpy", "toarray")
    ) or ops.is_tensor(x)


def _gather(parts, argument, names, dtype):
    x, *others = parts
    if is_dataset(x):
        for name, value in zip(names[1:], others, strict=True):
            if value is not None:
                raise ValueError(
                    f"Argument `{name}` must be None when `{names[0]}` is a "
                    "data set, which holds its targets and weights itself. "
                    f"Received: a {type(x).__name__} and "
                    f"{name} of type {type(value).__name__}"
                )
        parts = _read(x, argument, names)
    else:
        parts = _map_parts(_to_array, parts, names)
    _check_rows(parts, argument, names)
    _check_weights(*parts[1:], *names[1:])
    return Data(
        *_map_parts(lambda a, name: _cast(a, name, dtype), parts, names)
    )


def _unpack(data, argument):
    """Splits a tuple, as Keras does, into `(x, y, sample_weight)`."""
    parts = tuple(data) if isinstance(data, (list, tuple)) else (data,)
    if not 1 <= len(parts) <= 3:
        raise ValueError(
            f"Argument `{argument}` must hold `(x,)`, `(x, y)` or "
            f"`(x, y, sample_weight)`. Received: {len(parts)} parts"
        )
    return (*parts, None, None)[:3]


def _map_parts(fn, parts, names):
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


def _to_array(value, name):
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


def _cast(array, name, dtype):
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


def _check_rows(parts, argument, names):
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


def _check_weights(y, weights, y_name, name):
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


def _check_class_weight(data, class_weight):
    if not isinstance(class_weight, dict):
        raise ValueError(
            "Argument `class_weight` must be a dict from a class's number to "
            f"its weight. Received: class_weight={class_weight!r}"
        )
    if data.sample_weight is not None:
        raise ValueError(
            "Give `class_weight` or sample weights, not both. "
            f"Received: class_weight={class_weight} and sample weights"
        )
    if not isinstance(data.y, np.ndarray):
        raise ValueError(
            "Argument `class_weight` needs the targets of one output. "
            f"Received: y of type {type(data.y).__name__}"
        )
    if data.y.ndim > 2:
        raise ValueError(
            "Argument `class_weight` needs one class a row. "
            f"Received: y of shape {data.y.shape}"
        )


def _read(dataset, argument, names):
    """Reads a data set of batches to its end."""
    kind = type(dataset).__name__
    if hasattr(dataset, "__next__"):
        raise ValueError(
            f"Argument `{argument}` must be data that can be read again and "
            "end, which a generator cannot promise. Give arrays, a "
            "`keras.utils.PyDataset`, a `tf.data.Dataset` or a torch "
            f"`DataLoader`. Received: {argument} of type {kind}"
        )
    if _is_infinite(dataset):
        raise ValueError(
            f"Argument `{argument}` must end: a full-batch method needs all "
            "of the data. Cut the data set with `take(n)`, leave out "
            "`repeat()`, or give it a length. "
            f"Received: {argument} of type {kind}, without an end"
        )
    batches = []
    for batch in _batches(dataset, argument):
        parts = _unpack(batch, argument)
        batches.append(_map_parts(_to_array, parts, names))
    if not batches:
        raise ValueError(
            f"Argument `{argument}` must hold a batch or more. "
            f"Received: {argument} of type {kind}, which is empty"
        )
    return [_concatenate(parts) for parts in zip(*batches, strict=True)]


def _is_infinite(dataset):
    if isinstance(dataset, keras.utils.PyDataset):
        return dataset.num_batches is None
    if hasattr(dataset, "cardinality"):
        return int(dataset.cardinality()) == -1
    return False


def _batches(dataset, argument):
    if isinstance(dataset, keras.utils.PyDataset):
        dataset.on_epoch_begin()
        for index in range(dataset.num_batches):
            yield dataset[index]
        dataset.on_epoch_end()
    elif hasattr(dataset, "__iter__"):
        yield from dataset
    else:
        raise ValueError(
            f"Argument `{argument}` must be arrays or a data set of batches; "
            "put a torch `Dataset` into a `DataLoader`. "
            f"Received: {argument} of type {type(dataset).__name__}"
        )


def _concatenate(parts):
    def join(*arrays):
        if all(a is None for a in arrays):
            return None
        return np.concatenate(arrays)

    try:
        return tree.map_structure(join, *parts)
    except ValueError as error:
        raise ValueError(
            "The batches of a data set must have the same structure and, but "
            f"for the first dimension, the same shapes. Received: {error}"
        ) from error
