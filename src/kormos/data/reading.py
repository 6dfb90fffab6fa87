"""Reads data of every kind that Keras takes, once, and checks them."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

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
from kormos.data.stream import Samples
from kormos.data.stream import Stream
from kormos.types import Structure

# Numbers in a batch of arrays that are streamed without a `batch_size`. Our
# choice, 16 MB in float32: a larger batch takes more memory, smaller ones more
# calls.
_NUMBERS_OF_BATCH = 2**22


def gather(
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    dtype: str | None = None,
    stream: bool = False,
    batch_size: int | None = None,
    steps: int | None = None,
    steps_name: str | None = None,
    allow_nan: bool = False,
) -> Samples:
    """Reads data of any kind that Keras takes into a checked `Data`.

    Args:
        x: arrays, tensors, pandas objects, lists of numbers, or dicts, lists
            and tuples of these, all with the same number of rows; or a finite
            `tf.data.Dataset`, `keras.utils.PyDataset` or torch `DataLoader`
            of batches `(x, y)` or `(x, y, sample_weight)`. `Data` and a
            `Stream` are returned as they are.
        y: targets, only if `x` holds arrays.
        sample_weight: weights of rows, only if `x` holds arrays.
        dtype: dtype of floating-point numbers. Defaults to `floatx`.
        stream: whether to return a `Stream`, which reads the data again
            whenever they are needed.
        batch_size: the most rows of a batch, if arrays are streamed.
        steps: the number of batches to take of a data set that may have no end.
        steps_name: the argument that sets `steps`, if there is one.
        allow_nan: whether `x` and `y` may hold NaN.

    Raises:
        ValueError: if the data have no end, are empty, cannot be read twice,
            differ in length, or hold NaN or infinite values.
    """
    if isinstance(x, (Data, Stream)):
        return x
    source = _Source((x, y, sample_weight), "x", Data._fields, dtype, allow_nan)
    return source.data(stream, batch_size, steps, steps_name)


def gather_validation(
    validation_data: Any,
    dtype: str | None = None,
    stream: bool = False,
    batch_size: int | None = None,
    steps: int | None = None,
    allow_nan: bool = False,
) -> Samples:
    """Reads validation data as `gather` does.

    Args:
        validation_data: `(x, y)`, `(x, y, sample_weight)` or a data set. The
            other arguments are those of `gather`.
    """
    parts = _unpack(validation_data, "validation_data")
    names = [f"validation_data[{i}]" for i in range(len(parts))]
    source = _Source(parts, "validation_data", names, dtype, allow_nan)
    return source.data(stream, batch_size, steps, "validation_steps")


def weigh(
    data: Samples,
    class_weight: Mapping[int, float] | None,
    dtype: str | None = None,
) -> Samples:
    """The data with each row weighted by its class.

    Args:
        data: the data.
        class_weight: dict from the number of a class to its weight. Classes
            that it lacks have the weight 1. `None` changes nothing.
        dtype: dtype of the weights. Defaults to `floatx`.

    Raises:
        ValueError: if there are sample weights, or not one class per row.
    """
    if class_weight is None:
        return data
    if isinstance(data, Stream):
        return data.each(lambda batch: _weighted(batch, class_weight, dtype))
    return _weighted(data, class_weight, dtype)


def _weighted(
    data: Data, class_weight: Mapping[int, float], dtype: str | None
) -> Data:
    _check_class_weight(data, class_weight)
    y = data.y
    if y.ndim > 1 and y.shape[-1] > 1:
        y = y.argmax(axis=-1)
    classes, places = np.unique(np.rint(y), return_inverse=True)
    given = np.array([float(class_weight.get(int(c), 1)) for c in classes])
    weights = cast(given, "class_weight", dtype)
    return data._replace(sample_weight=weights[places.reshape(-1)])


def dtype_for(model: keras.Model, precision: str | None = None) -> str:
    """The dtype of floating-point data for a model."""
    if precision is not None or model.compute_dtype == "float64":
        return "float64"
    return keras.config.floatx()


class _Source:
    """The data that the user gave, with their names in messages.

    Args:
        parts: `(x, y, sample_weight)`, of which `x` may be a data set.
        argument: the name of the argument that holds all of the data.
        names: the names of the parts.
        dtype: dtype of floating-point numbers.
        allow_nan: whether `x` and `y` may hold NaN.
    """

    def __init__(
        self,
        parts: Sequence[Any],
        argument: str,
        names: Sequence[str],
        dtype: str | None,
        allow_nan: bool,
    ) -> None:
        self._argument, self._names, self._dtype = argument, names, dtype
        self._allow_nan = allow_nan
        self._dataset, *others = parts
        self._arrays: list[Structure] | None = None
        if not is_dataset(self._dataset):
            self._arrays = map_parts(to_array, parts, names)
            return
        for name, value in zip(names[1:], others, strict=True):
            if value is not None:
                raise ValueError(
                    f"Argument `{name}` must be None when `{names[0]}` is a "
                    "dataset, which contains its own targets and weights. "
                    f"Received: a {type(self._dataset).__name__} and {name} "
                    f"of type {type(value).__name__}"
                )

    def data(
        self,
        stream: bool,
        batch_size: int | None,
        steps: int | None = None,
        steps_name: str | None = None,
    ) -> Samples:
        """The data as a `Stream`, or all of them as `Data`."""
        if self._arrays is None:
            self._reader = BatchReader(
                self._dataset, self._argument, steps, steps_name, stream
            )
        return self._stream(batch_size) if stream else self._gather()

    def _gather(self) -> Data:
        if self._arrays is not None:
            return self._checked(self._arrays)
        parts = zip(*self._batches(), strict=True)
        return self._checked([_concatenate(part) for part in parts])

    def _stream(self, batch_size: int | None) -> Stream:
        if self._arrays is not None:
            check_rows(self._arrays, self._argument, self._names)

        def read() -> Iterator[Data]:
            if self._arrays is None:
                return map(self._checked, self._batches())
            return map(self._checked, _slices(self._arrays, batch_size))

        return Stream(read, next(read()))

    def _batches(self) -> Iterator[list[Structure]]:
        """Yields the batches of a data set, as arrays."""
        is_empty = True
        for parts in self._reader(self._converted):
            is_empty = False
            yield parts
        if is_empty:
            raise ValueError(
                f"Argument `{self._argument}` must hold at least one batch. "
                f"Received: {self._argument} of type "
                f"{type(self._dataset).__name__}, which is empty"
            )

    def _converted(self, batch: Any) -> list[Structure]:
        parts = _unpack(batch, self._argument)
        return map_parts(to_array, parts, self._names)

    def _checked(self, parts: Sequence[Structure]) -> Data:
        names = self._names
        check_rows(parts, self._argument, names)
        check_targets(parts, names)
        check_weights(parts[1], parts[2], names[1], names[2])

        def checked(array: Any, name: str) -> Any:
            is_weight = name.startswith(names[2])
            allow_nan = self._allow_nan and not is_weight
            return cast(array, name, self._dtype, allow_nan)

        return Data(*map_parts(checked, parts, names))


def _slices(
    parts: Sequence[Structure], size: int | None
) -> Iterator[list[Structure]]:
    """Yields slices of `size` rows of the parts."""
    rows = len(leaves(parts)[0])
    numbers = sum(a.size for a in leaves(parts))
    size = size or max(1, _NUMBERS_OF_BATCH * rows // numbers)
    for start in range(0, rows, size):
        yield _slice(parts, slice(start, start + size))


def _slice(parts: Sequence[Structure], at: slice) -> list[Structure]:
    return map_parts(lambda array, _: array[at], parts, "xyw")


def _unpack(data: Any, argument: str) -> tuple[Any, Any, Any]:
    """Splits a tuple, as Keras does, into `(x, y, sample_weight)`."""
    parts = tuple(data) if isinstance(data, (list, tuple)) else (data,)
    if not 1 <= len(parts) <= 3:
        raise ValueError(
            f"Argument `{argument}` must hold `(x,)`, `(x, y)` or "
            f"`(x, y, sample_weight)`. Received: {len(parts)} parts"
        )
    x, y, sample_weight = (*parts, None, None)[:3]
    return x, y, sample_weight


def _check_class_weight(data: Data, class_weight: object) -> None:
    if not isinstance(class_weight, dict):
        raise ValueError(
            "Argument `class_weight` must be a dict that maps class indices "
            f"to weights. Received: class_weight={class_weight!r}"
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
            "Argument `class_weight` needs one class per row. "
            f"Received: y of shape {data.y.shape}"
        )


def _concatenate(parts: Sequence[Structure]) -> Structure:
    def join(*arrays: Any) -> Any:
        if all(a is None for a in arrays):
            return None
        return np.concatenate(arrays)

    try:
        return tree.map_structure(join, *parts)
    except ValueError as error:
        raise ValueError(
            "The batches of a dataset must have the same structure and, "
            "except in the first dimension, the same shapes, because they "
            "are joined in memory. Pad them, or read batches of different "
            f"shapes one by one with `stream=True`. Received: {error}"
        ) from error
