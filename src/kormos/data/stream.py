"""Data that are read again whenever they are needed, never all in memory."""

from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import TypeAlias

from kormos.data.memory import ByDevice
from kormos.data.memory import Data
from kormos.data.memory import leaves
from kormos.types import Array
from kormos.types import Structure


class Stream:
    """All rows of a data set, batch by batch, in place of `Data` in memory.

    Args:
        read: function that returns an iterator of `Data`, the same rows at
            every call, in any order.
        first: the first of these `Data`.

    Attributes:
        first: the first batch.
    """

    def __init__(self, read: Callable[[], Iterator[Data]], first: Data) -> None:
        self._read = read
        self._rows: int | None = None
        self.first = first

    @property
    def rows(self) -> int:
        """The number of all rows."""
        rows = self._rows
        return sum(batch.rows for batch in self) if rows is None else rows

    def __iter__(self) -> Iterator[Data]:
        rows = 0
        for batch in self._read():
            rows += batch.rows
            yield batch
        if self._rows not in (None, rows):
            raise ValueError(
                "A dataset that is streamed must yield the same rows every "
                f"time it is read. Received: {self._rows:,} rows at first, "
                f"then {rows:,}"
            )
        self._rows = rows

    @property
    def begins_alike(self) -> bool:
        """Whether its first batch is the same when it is read again."""
        again = next(iter(self._read()))
        return _contents(again) == _contents(self.first)

    def each(self, fn: Callable[[Data], Data]) -> "Stream":
        """The same stream, with `fn` applied to every batch."""
        return Stream(lambda: map(fn, self), fn(self.first))

    def map(self, fn: Callable[[Array], Any]) -> "Stream":
        """The same stream, with `fn` applied to every array."""
        return self.each(lambda batch: batch.map(fn))

    def chunks(
        self, *args: Any
    ) -> Iterator[tuple[Structure, Structure] | ByDevice]:
        """Yields the chunks of each batch, as `Data.chunks` returns them."""
        for batch in self:
            yield batch.chunks(*args)

    def chunk_rows(self, *args: Any) -> int:
        """The number of rows of a chunk of the first batch."""
        return self.first.chunk_rows(*args)

    def head(self, rows: int) -> Data:
        """The first rows of the first batch, as tensors on the device."""
        return self.first.head(rows)


def _contents(data: Data) -> list[tuple[tuple[int, ...], bytes]]:
    return [(array.shape, array.tobytes()) for array in leaves(data)]


# All rows of a data set: in memory, or read batch by batch.
Samples: TypeAlias = Data | Stream
