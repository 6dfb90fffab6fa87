"""The arguments of a program's functions, and sums of their values."""

import dataclasses
import functools
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import TypeAlias

import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.arithmetic.vectors import number
from kormos.objective.compiled import Chunk
from kormos.objective.compiled import ChunkLoss
from kormos.objective.compiled import Chunks
from kormos.objective.compiled import SpreadPair
from kormos.objective.compiled import count_rows
from kormos.objective.compiled import each_chunk
from kormos.processes import ALONE
from kormos.processes import Processes
from kormos.types import Array
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor
from kormos.types import Vector

# Shapes of arrays.
Shapes: TypeAlias = Sequence[tuple[int, ...]]
# The arguments `(frozen, term_factors, chunks)` of a program's functions.
Piece: TypeAlias = tuple[list[Tensor], Tensor, Chunks]


@dataclasses.dataclass(frozen=True, eq=False)
class ProgramArguments:
    """What the functions of a `Program` take besides a point.

    The values of a function are added up over pieces of the data, and over the
    data of several processes.

    Several methods take a `unit`, by which the loss is multiplied. See
    `units.py`.

    Attributes:
        frozen: the values of the variables that the loss keeps fixed.
        term_factors: the factors of the loss's terms, which may be followed by
            other numbers.
        multipliers: the number of `term_factors` that multiply terms. Defaults
            to all.
        chunks: the data, or `None` if they are streamed.
        read: function that reads the chunks of streamed data, or `None`.
        processes: the processes, each with a part of the data.
    """

    frozen: list[Tensor]
    term_factors: Vector = dataclasses.field(default_factory=lambda: np.ones(1))
    multipliers: int | None = None
    chunks: Chunks | None = ((None, ()),)
    read: Callable[[], Iterable[SpreadPair]] | None = None
    processes: Processes = ALONE
    _tensors: dict[float, Tensor] = dataclasses.field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def is_hosted(self) -> bool:
        """Whether sums over the data are made in Python."""
        return self.chunks is None or not self.processes.is_alone

    def pieces(self, unit: float = 1.0) -> Iterator[Piece]:
        """Yields the arguments for one piece of the data after the other."""
        if unit not in self._tensors:
            self._tensors[unit] = to_tensor(self._factors(unit))
        factors = self._tensors[unit]
        if self.chunks is not None:
            yield self.frozen, factors, self.chunks
            return
        for pair in self._pairs():
            yield self.frozen, factors, (pair,)

    def each_chunk(self) -> Iterator[Chunk]:
        """Yields all chunks of the data."""
        for pair in self._pairs():
            yield from each_chunk(pair)

    def total(
        self,
        fn: Callable[..., Structure],
        *vectors: Tensor,
        shapes: Shapes,
        unit: float = 1.0,
    ) -> Structure:
        """The sum of a compiled function's values over all the data.

        Args:
            fn: a function of the program.
            *vectors: its first arguments: NumPy arrays, or tensors.
            shapes: the shapes of the arrays that it returns, in order.
            unit: a number by which to multiply the loss.
        """
        if not is_host(vectors[0]):
            return fn(*vectors, *self._traced(unit, vectors[0]))

        def own() -> Structure:
            pieces = self.pieces(unit)
            total = fn(*vectors, *next(pieces))
            for piece in pieces:
                total = tree.map_structure(_add, total, fn(*vectors, *piece))
            return total

        return self.processes.total(own, shapes, vectors)

    def row_counts(self) -> list[int]:
        """The rows of all processes, for each of the functions of the loss."""
        assert self.chunks is not None  # A stream counts its rows itself.
        counts = [count_rows(pair) for pair in self.chunks]
        return [int(n) for n in self.processes.sum(counts, "rows of data")]

    def derivatives(
        self,
        fn: Callable[..., Structure],
        *vectors: Tensor,
        shapes: Shapes,
        unit: float,
    ) -> Structure:
        """Like `total`, for a function that differentiates the loss.

        The loss is multiplied by the unit, so that derivatives are in the range
        of float32, and the result is divided by it.
        """
        total = self.total(fn, *vectors, shapes=shapes, unit=unit)
        if unit == 1:
            return total
        view = backend.view if is_host(vectors[0]) else lambda value: value
        return tree.map_structure(lambda value: view(value) / unit, total)

    def uncompiled(
        self,
        chunk_losses: list[ChunkLoss],
        once: Callable[[Callable[..., Structure]], Callable[..., Scalar]],
    ) -> float:
        """The loss at the values of the variables, without compilation.

        It is NaN if computing it raises an error.

        Args:
            chunk_losses: the functions that make up the loss.
            once: function that returns a function in the form that is fastest
                for one or two calls.
        """

        def own() -> Array:
            try:
                losses = list(self._losses(chunk_losses, once))
                return np.array(np.sum(losses))
            except Exception:
                # The evaluations of the fit will raise the error again.
                return np.array(np.nan)

        return float(self.processes.total(own, [()]))

    def _losses(
        self,
        chunk_losses: list[ChunkLoss],
        once: Callable[[Callable[..., Structure]], Callable[..., Scalar]],
    ) -> Iterator[float]:
        """Yields what `uncompiled` sums up."""
        for _, term_factors, pairs in self.pieces():
            for fn, pair in zip(chunk_losses, pairs, strict=True):
                call = once(functools.partial(fn, None, None))
                for chunk in each_chunk(pair):
                    yield number(call(term_factors, chunk))

    def _factors(self, unit: float) -> Vector:
        """The term factors, those of terms multiplied by the unit."""
        factors = self.term_factors.copy()
        factors[: self.multipliers] *= unit
        return factors

    def _pairs(self) -> Iterable[SpreadPair]:
        """All pairs of chunks of the data, read again if they are streamed."""
        if self.chunks is not None:
            return self.chunks
        assert self.read is not None  # Streamed data always have it.
        return self.read()

    def _traced(self, unit: float, vector: Tensor) -> tuple[Any, ...]:
        """The arguments for a call inside a compiled function."""
        if self.is_hosted:
            raise ValueError(
                "An objective that streams its data, or adds up sums of "
                "several processes, does so in Python, and not in a compiled "
                "function: pass vectors as NumPy arrays. Received: a "
                f"{type(vector).__name__}"
            )
        assert self.chunks is not None
        return self.frozen, self._factors(unit), self.chunks


def to_tensor(array: Array) -> Tensor:
    """An array as a float64 tensor."""
    with backend.float64():
        return ops.convert_to_tensor(array, dtype="float64")


def is_host(vector: Any) -> bool:
    """Whether a vector is a NumPy array or a list, rather than a tensor."""
    return isinstance(vector, (np.ndarray, list, tuple))


def _add(total: Tensor, value: Tensor) -> Array:
    # Conversion to NumPy waits for the values. A backend that computes
    # asynchronously would otherwise have many pieces in memory at once.
    return backend.view(total) + backend.view(value)
