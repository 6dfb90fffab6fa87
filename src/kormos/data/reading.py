"""Reads data of every kind that Keras takes, once, and checks them."""

import keras
import numpy as np
from keras import tree

from kormos.data.arrays import cast
from kormos.data.arrays import check_rows
from kormos.data.arrays import check_targets
from kormos.data.arrays import check_weights
from kormos.data.arrays import map_parts
from kormos.data.arrays import to_array
from kormos.data.datasets import BatchReader
from kormos.data.datasets import is_dataset
from kormos.data.memory import Data
from kormos.data.memory import leaves
from kormos.data.stream import Stream

# Numbers of a batch of arrays that are streamed.
_STREAMED = 2**22


def gather(
    x,
    y=None,
    sample_weight=None,
    dtype=None,
    stream=False,
    batch_size=None,
    steps=None,
    steps_name=None,
    allow_nan=False,
):
    """Reads data of any kind that Keras takes into a checked `Data`.

    Args:
        x: arrays, tensors, pandas objects, lists of numbers, or dicts, lists
            and tuples of these, with as many rows each; or a finite
            `tf.data.Dataset`, `keras.utils.PyDataset` or torch `DataLoader`
            of batches `(x, y)` or `(x, y, sample_weight)`.
        y: targets, for arrays alone.
        sample_weight: weights of rows, for arrays alone.
        dtype: dtype of floating-point numbers. Defaults to `floatx`.
        stream: whether to return a `Stream`, which reads them again whenever
            they are needed.
        batch_size: the most rows of a batch of arrays that are streamed.
        steps: how many batches to take of a data set that may have no end.
        steps_name: the argument that gives that, if there is one.
        allow_nan: whether there may be NaN in `x` and `y`.

    Raises:
        ValueError: if the data are infinite, empty, cannot be read twice,
            differ in length, or hold NaN or infinite values.
    """
    if isinstance(x, (Data, Stream)):
        return x
    source = _Source((x, y, sample_weight), "x", Data._fields, dtype, allow_nan)
    return source.data(stream, batch_size, steps, steps_name)


def gather_validation(
    validation_data,
    dtype=None,
    stream=False,
    batch_size=None,
    steps=None,
    allow_nan=False,
):
    """As `gather`, for `(x, y)`, `(x, y, sample_weight)` or a data set."""
    parts = _unpack(validation_data, "validation_data")
    names = [f"validation_data[{i}]" for i in range(len(parts))]
    source = _Source(parts, "validation_data", names, dtype, allow_nan)
    return source.data(stream, batch_size, steps, "validation_steps")


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
    if isinstance(data, Stream):
        return data.each(lambda batch: weigh(batch, class_weight, dtype))
    _check_class_weight(data, class_weight)
    y = data.y
    if y.ndim > 1 and y.shape[-1] > 1:
        y = y.argmax(axis=-1)
    classes, places = np.unique(np.rint(y), return_inverse=True)
    weights = [float(class_weight.get(int(c), 1)) for c in classes]
    weights = cast(np.array(weights), "class_weight", dtype)
    return data._replace(sample_weight=weights[places.reshape(-1)])


def dtype_for(model, precision=None):
    """The dtype of floating-point data for a model."""
    if precision is not None or model.compute_dtype == "float64":
        return "float64"
    return keras.config.floatx()


class _Source:
    """What the user gave, and what to call it.

    Args:
        parts: `(x, y, sample_weight)`, of which `x` may be a data set.
        argument: the name of the whole.
        names: the names of the parts.
        dtype: dtype of floating-point numbers.
        allow_nan: whether there may be NaN in `x` and `y`.
    """

    def __init__(self, parts, argument, names, dtype, allow_nan):
        self._argument, self._names, self._dtype = argument, names, dtype
        self._allow_nan = allow_nan
        self._dataset, *others = parts
        self._arrays = None
        if not is_dataset(self._dataset):
            self._arrays = map_parts(to_array, parts, names)
            return
        for name, value in zip(names[1:], others, strict=True):
            if value is not None:
                raise ValueError(
                    f"Argument `{name}` must be None when `{names[0]}` is a "
                    "data set, which holds its targets and weights itself. "
                    f"Received: a {type(self._dataset).__name__} and "
                    f"{name} of type {type(value).__name__}"
                )

    def data(self, stream, batch_size, steps=None, steps_name=None):
        """A `Stream` of it, or all of it in a `Data`."""
        if self._arrays is None:
            self._reader = BatchReader(
                self._dataset, self._argument, steps, steps_name, stream
            )
        return self._stream(batch_size) if stream else self._gather()

    def _gather(self):
        if self._arrays is not None:
            return self._checked(self._arrays)
        parts = zip(*self._batches(), strict=True)
        return self._checked([_concatenate(part) for part in parts])

    def _stream(self, batch_size):
        if self._arrays is not None:
            check_rows(self._arrays, self._argument, self._names)

        def read():
            if self._arrays is None:
                return map(self._checked, self._batches())
            return map(self._checked, _slices(self._arrays, batch_size))

        return Stream(read, next(read()))

    def _batches(self):
        """Yields the batches of a data set, as arrays."""
        is_empty = True
        for parts in self._reader(self._converted):
            is_empty = False
            yield parts
        if is_empty:
            raise ValueError(
                f"Argument `{self._argument}` must hold a batch or more. "
                f"Received: {self._argument} of type "
                f"{type(self._dataset).__name__}, which is empty"
            )

    def _converted(self, batch):
        parts = _unpack(batch, self._argument)
        return map_parts(to_array, parts, self._names)

    def _checked(self, parts):
        names = self._names
        check_rows(parts, self._argument, names)
        check_targets(parts, names)
        check_weights(*parts[1:], *names[1:])

        def checked(array, name):
            is_weight = name.startswith(names[2])
            allow_nan = self._allow_nan and not is_weight
            return cast(array, name, self._dtype, allow_nan)

        return Data(*map_parts(checked, parts, names))


def _slices(parts, size):
    """Yields the parts in slices of so many rows."""
    rows = len(leaves(parts)[0])
    size = size or max(
        1, _STREAMED * rows // sum(a.size for a in leaves(parts))
    )
    for start in range(0, rows, size):
        cut = slice(start, start + size)
        yield map_parts(lambda a, _, cut=cut: a[cut], parts, "xyw")


def _unpack(data, argument):
    """Splits a tuple, as Keras does, into `(x, y, sample_weight)`."""
    parts = tuple(data) if isinstance(data, (list, tuple)) else (data,)
    if not 1 <= len(parts) <= 3:
        raise ValueError(
            f"Argument `{argument}` must hold `(x,)`, `(x, y)` or "
            f"`(x, y, sample_weight)`. Received: {len(parts)} parts"
        )
    return (*parts, None, None)[:3]


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
            "for the first dimension, the same shapes, to be kept as one. Pad "
            "them, or read batches of other lengths as they are by "
            f"`stream=True`. Received: {error}"
        ) from error
