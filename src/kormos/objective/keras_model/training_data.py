"""The data of a model's loss, in the dtypes and chunks that it takes."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from typing import TypeAlias

import keras
import numpy as np

from kormos import backend
from kormos.checks import check_count
from kormos.data import reading
from kormos.data.arrays import in_dtype
from kormos.data.memory import Data
from kormos.data.stream import Stream
from kormos.objective.compiled import Chunk
from kormos.objective.compiled import Chunks
from kormos.objective.compiled import SpreadPair
from kormos.objective.compiled import each_chunk
from kormos.objective.units import largest
from kormos.types import Structure

# What `ProgramArguments` calls `chunks` and `read`, of which one is `None`.
_Chunked: TypeAlias = tuple[
    Chunks | None, Callable[[], Iterable[SpreadPair]] | None
]


class TrainingData:
    """The data of a model's loss.

    Methods take the dtype of an evaluation: `"float64"`, or `None` for the
    model's own.

    Args:
        model: the model.
        x: see `Objective`.
        y: see `Objective`.
        sample_weight: see `Objective`.
        class_weight: see `Objective`.
        batch_size: see `Objective`.
        precision: see `Objective`.
        stream: see `Objective`.
        allow_nan: see `Objective`.

    Raises:
        ValueError: if the data cannot be used.

    Attributes:
        batch_size: the `batch_size` argument.
    """

    def __init__(
        self,
        model: keras.Model,
        x: Any,
        y: Any,
        sample_weight: Any,
        class_weight: Mapping[int, float] | None = None,
        *,
        batch_size: int | None,
        precision: str | None,
        stream: bool = False,
        allow_nan: bool,
    ) -> None:
        if batch_size is not None:
            check_count("batch_size", batch_size, 1)
        dtype = reading.dtype_for(model, precision)
        data = reading.gather(
            x,
            y,
            sample_weight,
            dtype,
            stream,
            batch_size,
            allow_nan=allow_nan,
        )
        self._samples = reading.weigh(data, class_weight, dtype)
        self._model = model
        self.batch_size = batch_size
        self._devices = backend.replicas(model)
        self._allow_nan = allow_nan

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self._samples.rows

    @property
    def batches(self) -> int:
        """The number of batches of `batch_size` rows."""
        return -(-self.rows // (self.batch_size or self.rows))

    @property
    def first(self) -> Data:
        """The data, or the first batch of a stream."""
        return self._samples.first

    @property
    def arrays(self) -> tuple[Structure, ...] | None:
        """`(x, y)`, or `(x, y, sample_weight)`; `None` if streamed."""
        if isinstance(self._samples, Stream):
            return None
        return tuple(a for a in self._samples if a is not None)

    @property
    def in_memory(self) -> Data | None:
        """The data; `None` if streamed."""
        return self._samples if isinstance(self._samples, Data) else None

    @property
    def is_read_alike(self) -> bool:
        """Whether data that are read again begin with the same rows."""
        data = self._samples
        return isinstance(data, Data) or data.begins_alike

    @property
    def largest_target(self) -> float:
        """The largest target, times the largest weight of a row."""
        first = self._samples.first
        return largest(first.y) * largest(first.sample_weight, 1.0)

    def replaced(self, arrays: Structure, dtype: str | None) -> TrainingData:
        """Other data for the same model.

        Args:
            arrays: `(x, y)`, or `(x, y, sample_weight)`, like `arrays`.
            dtype: the dtype of an evaluation.

        Raises:
            ValueError: if these are not as many arrays as before, or cannot
                be used.
        """
        before = self.arrays or ()
        if not isinstance(arrays, tuple) or len(arrays) != len(before):
            raise ValueError(
                "New data of a fit must be a tuple like the data before, "
                f"{'(x, y)' if len(before) < 3 else '(x, y, weights)'}. "
                f"Received: {type(arrays).__name__} of "
                f"{len(arrays) if hasattr(arrays, '__len__') else 1} entries"
            )
        x, y, sample_weight = (*arrays, None, None)[:3]
        return TrainingData(
            self._model,
            x,
            y,
            sample_weight,
            batch_size=self.batch_size,
            precision=dtype,
            allow_nan=self._allow_nan,
        )

    def head(self, dtype: str | None, rows: int | None = None) -> Data:
        """The first rows, as tensors.

        Args:
            dtype: the dtype of an evaluation.
            rows: their number. Defaults to the rows of a chunk.
        """
        data = self.first_rows(dtype, rows)
        return data.head(data.rows)

    def first_rows(self, dtype: str | None, rows: int | None = None) -> Data:
        """Like `head`, but arrays."""
        data = self._in(dtype)
        if rows is None:
            rows = data.chunk_rows(self.batch_size)
        return data.first.map(lambda array: array[:rows])

    def chunk_rows(
        self, dtype: str | None, width: int | None, widest: int
    ) -> int:
        """The rows of a chunk of `chunked`, with the same arguments."""
        cut = self.batch_size, width, widest, self._devices
        return self._in(dtype).chunk_rows(*cut)

    def chunked(
        self, dtype: str | None, width: int | None, widest: int
    ) -> _Chunked:
        """The data in chunks, as arguments of a `Program`.

        Args:
            dtype: the dtype of an evaluation.
            width: see `Data.chunk_rows`.
            widest: see `Data.chunk_rows`.
        """
        data = self._in(dtype)
        cut = self.batch_size, width, widest, self._devices
        if isinstance(data, Stream):
            return None, lambda: data.chunks(*cut)
        return (data.chunks(*cut),), None

    def first_chunks(
        self, dtype: str | None, width: int | None, widest: int
    ) -> Chunks:
        """The chunks of the data, or of the first batch of a stream.

        Args:
            dtype: the dtype of an evaluation.
            width: see `Data.chunk_rows`.
            widest: see `Data.chunk_rows`.
        """
        data = self._in(dtype).first
        cut = self.batch_size, width, widest, self._devices
        return (data.chunks(*cut),)

    def shuffled(
        self, dtype: str | None, rng: np.random.Generator
    ) -> Iterator[Chunk] | None:
        """The batches of the data in a random order, or `None` if streamed.

        Args:
            dtype: the dtype of an evaluation.
            rng: the generator that chooses the order.
        """
        data = self._in(dtype)
        if isinstance(data, Stream):
            return None
        order = rng.permutation(data.rows)
        shuffled = data.map(lambda array: array[order])
        # Batches of about equal size: a last batch with only a few rows would
        # lead to a bad step.
        return each_chunk(shuffled.chunks(self.batch_size, is_even=True))

    def _in(self, dtype: str | None) -> Data | Stream:
        """The data in the dtype of an evaluation."""
        dtype = dtype or reading.dtype_for(self._model)
        return self._samples.map(lambda a: in_dtype(a, dtype))
