"""The rows of a fit: those to train on, and those to validate on."""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple
from typing import cast

import keras

from kormos.data import reading
from kormos.data.memory import Data
from kormos.data.stream import Samples
from kormos.data.stream import Stream


class Rows(NamedTuple):
    """Rows of data.

    Attributes:
        samples: the data.
        batch_size: the most rows in memory at once, or `None` for all.
    """

    samples: Samples
    batch_size: int | None

    @property
    def has_targets(self) -> bool:
        """Whether there are targets."""
        samples = self.samples
        first = samples.first if isinstance(samples, Stream) else samples
        return any(a is not None for a in keras.tree.flatten(first.y))

    def split(
        self, share: float, batch_size: int | None
    ) -> tuple["Rows", "Rows"]:
        """Cuts a share of the rows off the end, with their own batch size."""
        # A stream was refused before it was read.
        first, last = cast(Data, self.samples).split(share)
        return Rows(first, self.batch_size), Rows(last, batch_size)

    def weighted(
        self, class_weight: Mapping[int, float] | None, dtype: str
    ) -> "Rows":
        """The rows, each weighted by its class."""
        samples = reading.weigh(self.samples, class_weight, dtype)
        return self._replace(samples=samples)


class RowReader(NamedTuple):
    """How the data of a fit are read.

    Attributes:
        dtype: dtype of floating-point numbers.
        stream: whether to read the data again at every evaluation.
        allow_nan: whether inputs and targets may hold NaN.
    """

    dtype: str
    stream: bool
    allow_nan: bool

    def training(
        self,
        x: Any,
        y: Any,
        sample_weight: Any,
        batch_size: int | None,
        batches: int | None,
    ) -> Rows:
        """The data to train on.

        Args:
            x: see `kormos.fit`.
            y: see `kormos.fit`.
            sample_weight: see `kormos.fit`.
            batch_size: see `kormos.fit`.
            batches: the number of batches to take of a data set without an end.
        """
        samples = reading.gather(
            x,
            y,
            sample_weight,
            self.dtype,
            self.stream,
            batch_size,
            batches,
            "steps_per_epoch",
            self.allow_nan,
        )
        return Rows(samples, batch_size)

    def validation(
        self, data: Any, batch_size: int | None, batches: int | None
    ) -> Rows | None:
        """The data to validate on, if there are any.

        Args:
            data: `validation_data`, as `kormos.fit` takes it.
            batch_size: the most rows in memory at once.
            batches: the number of batches to take of a data set without an end.
        """
        if data is None:
            return None
        samples = reading.gather_validation(
            data, self.dtype, self.stream, batch_size, batches, self.allow_nan
        )
        return Rows(samples, batch_size)
