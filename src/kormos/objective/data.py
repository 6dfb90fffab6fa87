"""Training data: read once, checked, cut into chunks."""

import collections
import types
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
from keras import ops
from keras import tree


class Data(NamedTuple):
    """All rows of a data set, as NumPy arrays in the user's structures.

    Attributes:
        x: arrays of shape `(rows, ...)`, in any structure.
        y: likewise, or `None`.
        sample_weight: likewise, or `None`.
    """

    x: Any
    y: Any
    sample_weight: Any

    @property
    def rows(self):
        return len(_leaves(self.x)[0])

    def map(self, fn):
        """The same structures, `fn` applied to every array."""
        return Data(*(_map_arrays(fn, part) for part in self))

    def chunks(self, batch_size=None):
        """Tensors on the device, cut for `Program`: `(stacked, last)`.

        Args:
            batch_size: the most rows of a chunk. Defaults to as many as keep
                the inputs of a chunk at about a million numbers.
        """
        rows = self.rows
        if batch_size is None:
            width = sum(a.size for a in _leaves(self.x)) / rows
            batch_size = max(256, int(2**20 / max(width, 1)))
        count = -(-rows // min(batch_size, rows))
        size = -(-rows // count)
        full = rows // size if rows > size else 0
        stacked = None
        if full:
            stacked = self.map(
                lambda a: _to_device(
                    a[: full * size].reshape(full, size, *a.shape[1:])
                )
            )
        last = None
        if full * size < rows:
            last = self.map(lambda a: _to_device(a[full * size :]))
        return (
            None if stacked is None else tuple(stacked),
            None if last is None else tuple(last),
        )

    def head(self, rows):
        """The first rows, as tensors on the device."""
        return self.map(lambda a: _to_device(a[:rows]))


def gather(x, y=None, sample_weight=None, class_weight=None, dtype=None):
    """Reads data of any kind that Keras takes into a checked `Data`.

    Args:
        x: arrays, tensors, pandas objects, or dicts, lists and tuples of
            these, with as many rows each; or a finite `tf.data.Dataset`,
            `keras.utils.PyDataset` or torch `DataLoader` of batches
            `(x, y)` or `(x, y, sample_weight)`.
        y: targets, for arrays alone.
        sample_weight: weights of rows, for arrays alone.
        class_weight: dict from a class's number to its weight.
        dtype: dtype of floating-point numbers. Defaults to `floatx`.

    Raises:
        ValueError: if the data are infinite, empty, cannot be read twice,
            differ in length, or hold NaN or infinite values.
    """
    dtype = dtype or keras.config.floatx()
    if isinstance(x, Data):
        return x
    if is_dataset(x):
        for name, value in (("y", y), ("sample_weight", sample_weight)):
            if value is not None:
                raise ValueError(
                    f"Argument `{name}` must be None when `x` is a data set, "
                    f"which holds it. Received: x of type {type(x).__name__}, "
                    f"{name} of type {type(value).__name__}"
                )
        x, y, sample_weight = _read(x)
    data = Data(
        *(
            _map_arrays(lambda a: _to_array(a, name, dtype), part)
            for name, part in zip(
                Data._fields, (x, y, sample_weight), strict=True
            )
        )
    )
    _check(data)
    if class_weight is not None:
        data = data._replace(
            sample_weight=_class_weights(data, class_weight).astype(dtype)
        )
    return data


def dtype_for(model):
    """The dtype of floating-point data for a model."""
    if model.compute_dtype == "float64":
        return "float64"
    return keras.config.floatx()


def split(x, y, sample_weight, validation_split):
    """Cuts the last rows off arrays, as Keras does.

    Returns:
        `((x, y, sample_weight), (x, y, sample_weight))`, for training and
        for validation.
    """
    if is_dataset(x):
        raise ValueError(
            "`validation_split` cuts arrays alone; give `validation_data`. "
            f"Received: x of type {type(x).__name__}"
        )
    parts = [
        _map_arrays(lambda a: _to_array(a, name, None), part)
        for name, part in zip(Data._fields, (x, y, sample_weight), strict=True)
    ]
    rows = len(_leaves(parts[0])[0])
    cut = int(rows * (1 - validation_split))
    if not 0 < cut < rows:
        raise ValueError(
            "Argument `validation_split` must leave rows on both sides. "
            f"Received: validation_split={validation_split} of {rows} rows"
        )
    train = tuple(_map_arrays(lambda a: a[:cut], p) for p in parts)
    validation = tuple(_map_arrays(lambda a: a[cut:], p) for p in parts)
    return train, validation


def is_dataset(x):
    """Whether `x` yields batches instead of being arrays."""
    if isinstance(x, (types.GeneratorType, keras.utils.PyDataset)):
        return True
    if x is None or isinstance(x, (list, tuple, dict)) or _is_array(x):
        return False
    return hasattr(x, "__iter__") or hasattr(x, "__getitem__")


def _is_array(x):
    return (
        isinstance(x, np.ndarray)
        or hasattr(x, "__array__")
        or ops.is_tensor(x)
        or hasattr(x, "toarray")
    )


def _map_arrays(fn, structure):
    if structure is None:
        return None
    if isinstance(structure, dict):
        return {k: _map_arrays(fn, v) for k, v in structure.items()}
    if isinstance(structure, (list, tuple)) and not _is_rows(structure):
        return type(structure)(_map_arrays(fn, v) for v in structure)
    return fn(structure)


def _is_rows(structure):
    return bool(structure) and isinstance(structure[0], (int, float, bool))


def _leaves(structure):
    return [a for a in tree.flatten(structure) if a is not None]


def _to_array(value, name, dtype):
    if _is_rows_of_numbers(value):
        value = np.asarray(value)
    if hasattr(value, "toarray"):
        value = value.toarray()
    if hasattr(value, "to_numpy"):
        frame = value.to_numpy()
        value = frame[:, None] if frame.ndim == 1 else frame
    elif ops.is_tensor(value):
        value = ops.convert_to_numpy(value)
    array = np.asarray(value)
    if array.dtype == object or array.dtype.kind in "USOM":
        raise ValueError(
            f"Argument `{name}` must hold numbers. "
            f"Received: an array of dtype {array.dtype}"
        )
    if array.ndim == 0:
        raise ValueError(
            f"Argument `{name}` must have a row for each sample. "
            f"Received: a scalar, {value!r}"
        )
    if array.dtype.kind == "f" and dtype is not None:
        _check_finite(array, name)
        array = array.astype(dtype, copy=False)
    return array


def _is_rows_of_numbers(value):
    return isinstance(value, (list, tuple)) and _is_rows(value)


def _check_finite(array, name):
    finite = np.isfinite(array)
    if not finite.all():
        row = int(np.argwhere(~finite)[0][0])
        raise ValueError(
            f"Argument `{name}` holds NaN or infinite values; remove or "
            "impute them, or drop the rows (a weight of 0 does not, for "
            f"0 * NaN is NaN). Received: {int((~finite).sum())} such values, "
            f"the first in row {row}"
        )


def _check(data):
    if not _leaves(data.x):
        raise ValueError(
            "Argument `x` must hold the training data. Received: x=None"
        )
    lengths = {
        name: sorted({len(a) for a in _leaves(part)})
        for name, part in data._asdict().items()
        if part is not None
    }
    if len({n for sizes in lengths.values() for n in sizes}) > 1:
        raise ValueError(
            "All arrays must have the same number of rows. "
            f"Received: rows of {lengths}"
        )
    if data.rows == 0:
        raise ValueError("The data hold no rows. Received: 0 rows in `x`")


def _to_device(array):
    dtype = keras.backend.standardize_dtype(array.dtype)
    return ops.convert_to_tensor(array, dtype=dtype)


def _class_weights(data, class_weight):
    if data.sample_weight is not None:
        raise ValueError(
            "Give `class_weight` or sample weights, not both. "
            f"Received: class_weight={class_weight} and sample weights"
        )
    if not isinstance(data.y, np.ndarray):
        raise ValueError(
            "Argument `class_weight` needs one output. "
            f"Received: y of type {type(data.y).__name__}"
        )
    y = data.y
    if y.ndim > 1 and y.shape[-1] > 1:
        y = y.argmax(axis=-1)
    classes = np.rint(y.reshape(len(y), -1)).astype(int)
    if classes.shape[1] != 1:
        raise ValueError(
            "Argument `class_weight` needs one class a row. "
            f"Received: y of shape {data.y.shape}"
        )
    return np.array([class_weight.get(int(c), 1.0) for c in classes[:, 0]])


def _read(dataset):
    """Reads a data set of batches to its end, by Keras' own readers."""
    if isinstance(dataset, types.GeneratorType) or hasattr(dataset, "__next__"):
        raise ValueError(
            "A generator can be read only once. Give arrays, a "
            "`keras.utils.PyDataset`, a `tf.data.Dataset` or a `DataLoader`. "
            f"Received: x of type {type(dataset).__name__}"
        )
    if _is_infinite(dataset):
        raise ValueError(
            "The data set never ends, and a full-batch method needs all of "
            "it: cut it with `take(n)` or leave out `repeat()`. "
            f"Received: x of type {type(dataset).__name__}"
        )
    collector = _Collector()
    collector.compile(optimizer="sgd", loss=None, run_eagerly=True)
    try:
        collector.fit(dataset, epochs=1, shuffle=False, verbose=0)
    except ValueError:
        if collector.batches or not _is_empty(dataset):
            raise
    if not collector.batches:
        raise ValueError(
            "The data set is empty. "
            f"Received: x of type {type(dataset).__name__} without a batch"
        )
    batches = [
        keras.utils.unpack_x_y_sample_weight(b) for b in collector.batches
    ]
    return tuple(_concatenate(parts) for parts in zip(*batches, strict=True))


def _is_infinite(dataset):
    if hasattr(dataset, "cardinality"):
        return int(dataset.cardinality()) == -1
    if isinstance(dataset, keras.utils.PyDataset):
        return dataset.num_batches is None
    return False


def _is_empty(dataset):
    try:
        return len(dataset) == 0
    except TypeError:
        return True


def _concatenate(parts):
    try:
        return tree.map_structure(
            lambda *a: None if a[0] is None else np.concatenate(a), *parts
        )
    except ValueError as error:
        raise ValueError(
            "The batches of a data set must have the same structure and, but "
            f"for the first dimension, the same shapes. Received: {error}"
        ) from error


class _Collector(keras.Model):
    """Keeps the batches that Keras' `fit` hands to a train step."""

    def __init__(self):
        super().__init__()
        self.built = True
        # Keras would wrap and track a list.
        self.batches = collections.deque()

    def call(self, x):
        return x

    if keras.backend.backend() == "jax":

        def train_step(self, state, data):
            self._keep(data)
            return {"loss": 0.0}, state

    else:

        def train_step(self, data):
            self._keep(data)
            return {"loss": ops.zeros(())}

    def _keep(self, data):
        arrays = tree.map_structure(
            lambda t: None if t is None else ops.convert_to_numpy(t), data
        )
        self.batches.append(arrays)
