"""All rows of a data set, and their division into chunks."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple
from typing import TypeAlias

from keras import ops
from keras import tree

from kormos import backend
from kormos.types import Array
from kormos.types import Structure
from kormos.types import Tensor

# The numbers that are computed for a chunk's rows if each row's derivatives are
# kept (8 MB in float64), and the fewest rows of such a chunk. Both are our
# choices: larger ones take memory, smaller ones more calls.
_WIDE_CHUNK_NUMBERS = 2**20
_FEWEST_WIDE_ROWS = 16
# The fewest rows of a chunk whose size is chosen for speed. Our choice: a
# smaller value would make many small chunks of wide rows.
_FEWEST_ROWS = 256

# For each device, by its name, the chunks of its rows.
ByDevice: TypeAlias = dict[str, tuple[Structure, Structure]]


class Data(NamedTuple):
    """All rows of a data set, as NumPy arrays in the user's structures.

    Attributes:
        x: arrays of shape `(rows, ...)`, in any structure.
        y: targets of shape `(rows, ...)`, in any structure, or `None`.
        sample_weight: weights of shape `(rows, ...)`, in any structure, or
            `None`.
    """

    x: Structure
    y: Structure
    sample_weight: Structure

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(leaves(self.x)[0])

    def map(self, fn: Callable[[Array], Any]) -> "Data":
        """The same structures, with `fn` applied to every array."""
        return Data(
            *(tree.map_structure(fn, p, none_is_leaf=False) for p in self)
        )

    def split(self, share: float) -> tuple["Data", "Data"]:
        """Cuts a share of the rows off the end, as Keras does.

        Returns:
            Two `Data`, of which the second holds the last rows.
        """
        cut = int(self.rows * (1 - share))
        if not 0 < cut < self.rows:
            raise ValueError(
                "Argument `validation_split` must leave rows on both sides. "
                f"Received: validation_split={share} of {self.rows} rows"
            )
        return self.map(lambda a: a[:cut]), self.map(lambda a: a[cut:])

    @property
    def first(self) -> "Data":
        """All of the data. In a `Stream`, it is the first batch."""
        return self

    def chunk_rows(
        self,
        batch_size: int | None = None,
        width: int | None = None,
        widest: int = 0,
        devices: tuple[str, ...] = (),
    ) -> int:
        """The number of rows of a chunk; the last chunk may have fewer.

        Args:
            batch_size: this number of rows, or all rows if there are fewer. A
                loss may couple the rows of a batch and need a certain number of
                them. Defaults to a number that the backend computes fast, in
                little memory.
            width: the number of values that are computed and kept for each row.
                A chunk then has about a million of these, or up to one and a
                half million if one chunk is enough for all rows. Defaults to no
                such limit.
            widest: the number of values that the widest layer returns for a
                row, or 0 if this is unknown.
            devices: the devices that each receive whole chunks. Without
                `batch_size`, each receives the same number.
        """
        rows, parts = self.rows, backend.row_devices()
        if batch_size is None:
            inputs = sum(a.size for a in leaves(self.x)) / rows
            size = _fast_rows(rows, max(inputs, widest, 1), parts)
        else:
            size = batch_size
        most = _WIDE_CHUNK_NUMBERS * parts
        if width is not None and (2 * width * rows > 3 * most):
            size = min(size, max(_FEWEST_WIDE_ROWS * parts, most // width))
        if size == batch_size:
            return min(size, rows)
        size = _even(rows, size, len(devices) or 1)
        return min(-(-size // parts) * parts, rows)

    def chunks(
        self,
        batch_size: int | None = None,
        width: int | None = None,
        widest: int = 0,
        devices: tuple[str, ...] = (),
        is_even: bool = False,
    ) -> tuple[Structure, Structure] | ByDevice:
        """Tensors on the device, cut into chunks for a compiled `Program`.

        Args:
            batch_size: see `chunk_rows`.
            width: see `chunk_rows`.
            widest: see `chunk_rows`.
            devices: see `chunk_rows`.
            is_even: whether to make the chunks smaller, so that all of them
                have nearly the same size.

        Returns:
            A pair: the chunks of equal size, stacked along a new first axis, or
            `None`; and one more chunk, or `None`. Each of them is a tuple `(x,
            y, sample_weight)`. The rows of each chunk are spread over the
            devices of this process, if it has several. With `devices`, a pair
            for each device that has chunks.
        """
        size = self.chunk_rows(batch_size, width, widest, devices)
        if is_even:
            size = _even(self.rows, size)
        if not devices:
            return self._cut(size, batch_size is None)
        count, pairs = -(-self.rows // size), {}
        for i, device in enumerate(devices):
            begin, end = (
                size * (count * j // len(devices)) for j in (i, i + 1)
            )
            if begin < end:
                with backend.on_device(device):
                    own = self._of(slice(begin, end))
                    pairs[device] = own._cut(size)
        return pairs

    def _of(self, rows: slice) -> "Data":
        return self.map(lambda a: a[rows])

    def _cut(
        self, size: int, is_divisible: bool = False
    ) -> tuple[Structure, Structure]:
        """Chunks with a number of rows: see `chunks`.

        Args:
            size: the number of rows of a chunk.
            is_divisible: whether devices may each sum up a part of a chunk.
                With `batch_size`, a loss may depend on all rows of a batch.
        """
        rows = self.rows
        full = rows // size if rows > size else 0
        stacked = last = None
        if full:
            # These slices and reshapes copy nothing.
            stacked = self.map(
                lambda a: backend.spread_rows(
                    a[: full * size].reshape(full, size, *a.shape[1:]),
                    1,
                    _to_device,
                    is_divisible,
                )
            )
        if full * size < rows:
            last = self.map(
                lambda a: backend.spread_rows(a[full * size :], 0, _to_device)
            )
        return (
            None if stacked is None else tuple(stacked),
            None if last is None else tuple(last),
        )

    def head(self, rows: int) -> "Data":
        """The first rows, as tensors on the device."""
        return self.map(lambda a: _to_device(a[:rows]))


def _even(rows: int, size: int, parts: int = 1) -> int:
    """The size of chunks of equal size, which is at most `size`.

    The last chunk may have fewer rows, if the rows cannot be divided equally.

    Args:
        rows: the number of all rows.
        size: the most rows of a chunk.
        parts: a divisor of the number of chunks.
    """
    fewest = -(-rows // min(size, rows))
    fewest = -(-fewest // parts) * parts
    # A last chunk of another size would have to be compiled separately.
    counts = range(fewest, 2 * fewest + 1, parts)
    return -(-rows // next((n for n in counts if rows % n == 0), fewest))


def _fast_rows(rows: int, width: float, parts: int) -> int:
    """The rows of a chunk that the backend computes fast.

    Args:
        rows: the number of all rows.
        width: the number of values for a row.
        parts: the number of devices over which the chunk is spread.
    """
    numbers = backend.chunk_numbers() * parts
    # Chunks take time to compile, so small data are not divided.
    if rows * width <= 4 * numbers:
        return rows
    most = max(_FEWEST_ROWS * parts, int(numbers / width) // parts * parts)
    fewest = -(-rows // most)
    # A last chunk of another size would have to be compiled separately.
    counts = range(fewest, 2 * fewest + 1)
    return next((rows // n for n in counts if rows % (n * parts) == 0), most)


def leaves(structure: Structure) -> list[Any]:
    """The arrays of a structure, in order."""
    return [a for a in tree.flatten(structure) if a is not None]


def _as_it_is(array: Array) -> Tensor:
    # Without a dtype, JAX copies the array twice. With a dtype that is turned
    # off (int64 by default), it warns.
    dtype = ops.convert_to_tensor(array[:0]).dtype
    return ops.convert_to_tensor(array, dtype=dtype)


def _to_device(array: Array) -> Tensor:
    if array.dtype not in ("float64", "complex128", "int64", "uint64"):
        return _as_it_is(array)
    # Without this scope, JAX would make it narrower: round it to float32, or
    # let large integers overflow.
    with backend.float64():
        return _as_it_is(array)
