"""Data that are read again whenever they are needed, never all in memory."""


class Stream:
    """All rows of a data set, batch by batch: what `Data` is in memory.

    Args:
        read: function that returns an iterator of `Data`, the same rows at
            every call, in any order.
        first: the first of these `Data`.

    Attributes:
        first: likewise.
    """

    def __init__(self, read, first):
        self._read = read
        self._rows = None
        self.first = first

    @property
    def rows(self):
        """The number of all rows."""
        if self._rows is None:
            for _ in self:
                pass
        return self._rows

    def __iter__(self):
        rows = 0
        for batch in self._read():
            rows += batch.rows
            yield batch
        if self._rows not in (None, rows):
            raise ValueError(
                "A data set that is streamed must hold the same rows every "
                f"time that it is read. Received: {self._rows:,} rows at "
                f"first, then {rows:,}"
            )
        self._rows = rows

    def each(self, fn):
        """The same stream, `fn` applied to every `Data`."""
        return Stream(lambda: map(fn, self), fn(self.first))

    def map(self, fn):
        """The same stream, `fn` applied to every array."""
        return self.each(lambda batch: batch.map(fn))

    def chunks(self, *args):
        """Yields each batch's chunks, a pair as `Data.chunks` returns it."""
        for batch in self:
            yield batch.chunks(*args)

    def chunk_rows(self, *args):
        """The rows of the first batch's chunks."""
        return self.first.chunk_rows(*args)

    def head(self, rows):
        """The first rows, of those of the first batch."""
        return self.first.head(rows)
