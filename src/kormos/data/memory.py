"""All rows of a data set, and how they are cut into chunks."""

from typing import Any
from typing import NamedTuple

from keras import ops
from keras import tree

from kormos import backend


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
        return len(leaves(self.x)[0])

    def map(self, fn):
        """The same structures, `fn` applied to every array."""
        return Data(
            *(tree.map_structure(fn, p, none_is_leaf=False) for p in self)
        )

    def split(self, share):
        """Cuts a share of the rows off the end, as Keras does.

        Returns:
            Two `Data`, the second with the last rows.
        """
        cut = int(self.rows * (1 - share))
        if not 0 < cut < self.rows:
            raise ValueError(
                "Argument `validation_split` must leave rows on both sides. "
                f"Received: validation_split={share} of {self.rows} rows"
            )
        return self.map(lambda a: a[:cut]), self.map(lambda a: a[cut:])

    @property
    def first(self):
        """All of it, where a `Stream` has its first batch."""
        return self

    def chunk_rows(self, batch_size=None, width=None, widest=0):
        """The rows of a chunk, but for a last one with fewer.

        Args:
            batch_size: that many, or all that there are: a loss may couple
                the rows of a batch, and need a certain number of them.
                Defaults to as many as the backend computes fast and keeps in
                little memory.
            width: how many numbers are computed of a row, to be kept at about
                a million a chunk too, or at half more where that is all of
                them. Defaults to not many.
            widest: how many numbers the widest layer puts out for a row, where
                that is known.
        """
        rows = self.rows
        size = batch_size
        if batch_size is None:
            inputs = sum(a.size for a in leaves(self.x)) / rows
            size = _fast_rows(rows, max(inputs, widest, 1))
        if width is not None and (2 * width * rows > 3 * 2**20):
            size = min(size, max(16, 2**20 // width))
        if size == batch_size:
            return min(size, rows)
        return _even(rows, size)

    def chunks(self, *args, is_even=False):
        """Tensors on the device, cut for `Program`: `(stacked, last)`.

        Args:
            *args: those of `chunk_rows`.
            is_even: whether to cut fewer rows a chunk, all but alike.
        """
        rows, size = self.rows, self.chunk_rows(*args)
        if is_even:
            size = _even(rows, size)
        full = rows // size if rows > size else 0
        stacked = last = None
        if full:
            # Neither slices nor these reshapes copy anything.
            stacked = self.map(
                lambda a: _to_device(
                    a[: full * size].reshape(full, size, *a.shape[1:])
                )
            )
        if full * size < rows:
            last = self.map(lambda a: _to_device(a[full * size :]))
        return (
            None if stacked is None else tuple(stacked),
            None if last is None else tuple(last),
        )

    def head(self, rows):
        """The first rows, as tensors on the device."""
        return self.map(lambda a: _to_device(a[:rows]))


def _even(rows, size):
    """The rows of chunks that are at most so large, and alike in size."""
    return -(-rows // -(-rows // min(size, rows)))


def _fast_rows(rows, width):
    """Rows of a chunk of so many numbers each."""
    numbers = backend.chunk_numbers()
    # Cutting costs time to compile: small data stay whole.
    if rows * width <= 4 * numbers:
        return rows
    most = max(256, int(numbers / width))
    fewest = -(-rows // most)
    # A last chunk of another size would be compiled for itself.
    counts = range(fewest, 2 * fewest + 1)
    return next((rows // n for n in counts if rows % n == 0), most)


def leaves(structure):
    """The arrays of a structure, in order."""
    return [a for a in tree.flatten(structure) if a is not None]


def _as_it_is(array):
    # Not told the dtype, JAX copies twice; told one that it does not have, as
    # int64 by default, it warns.
    dtype = ops.convert_to_tensor(array[:0]).dtype
    return ops.convert_to_tensor(array, dtype=dtype)


def _to_device(array):
    if array.dtype not in ("float64", "complex128"):
        return _as_it_is(array)
    # Or JAX would round it to float32.
    with backend.wide():
        return _as_it_is(array)
