"""The compiled functions of residuals, and their terms."""

import copy
import functools
import math
from collections.abc import Callable
from typing import Self

import numpy as np
from keras import ops

from kormos import backend
from kormos.objective.compiled import Chunk
from kormos.objective.compiled import Chunks
from kormos.objective.compiled import ChunkTerm
from kormos.objective.compiled import Program
from kormos.objective.compiled import sum_over_chunks
from kormos.objective.functions.residual_blocks import ResidualFunction
from kormos.objective.gauss_newton.compiled import GaussNewton
from kormos.objective.layout import Packing
from kormos.types import Matrix
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor


class ResidualTerm:
    """The residual blocks that depend on one group of data: an `OutputTerm`.

    Its outputs are the residuals of these blocks.

    Args:
        function: the function of all residuals.
        group: the number of the group, or `None` for the blocks that depend on
            no data.
        measure: function from residuals over their scale to the loss of each.

    Attributes:
        blocks: the places of its blocks in the function's `names`.
        width: the number of residuals in a row, of all its blocks together.
        observations: the number of observations in its one row, if its blocks
            depend on no data; else `None`. It is the size of a block's first
            dimension.
    """

    is_diagonal = True
    is_convex = False
    is_residual = True
    has_penalty = False

    def __init__(
        self,
        function: ResidualFunction,
        group: int | None,
        measure: Callable[[Tensor], Tensor],
    ) -> None:
        self._function = function
        self._group = group
        self._measure = measure
        self.blocks = [
            i for i, g in enumerate(function.block_groups) if g == group
        ]
        self._widths = [function.widths[i] for i in self.blocks]
        self.width = sum(self._widths)
        self.observations: int | None = None
        if group is None:
            shapes = [s for _, g, s in function.shapes() if g is None]
            is_one = len(shapes) == 1 and bool(shapes[0])
            self.observations = shapes[0][0] if is_one else self.width

    def moved(self, function: ResidualFunction) -> Self:
        """The same term of an equal function."""
        other = copy.copy(self)
        other._function = function
        return other

    def rows(self, chunk: Chunk) -> Structure:
        """All arrays of a chunk: the function needs them."""
        return chunk

    def outputs(
        self,
        parts: list[Tensor] | None,
        frozen: list[Tensor] | None,
        rows: Structure,
    ) -> Tensor:
        """The residuals of rows, of shape `(rows, width)`."""
        blocks = self._function(parts, frozen, self._group, rows)
        count = rows[0].shape[0]
        flat = [
            self._flat(i, blocks[i], (count, width))
            for i, width in zip(self.blocks, self._widths, strict=True)
        ]
        return ops.concatenate(flat, axis=1) if flat[1:] else flat[0]

    def _flat(self, i: int, block: Tensor, shape: tuple[int, int]) -> Tensor:
        """The block of number `i`, as a matrix with a row for each row."""
        # On TensorFlow, a block may have lost its shape, or even its rank.
        is_known = getattr(block.shape, "rank", 0) is not None
        known = tuple(block.shape) if is_known else (None,)
        if None not in known and math.prod(known) != math.prod(shape):
            raise ValueError(
                "Each block of residuals must have a row for each row of the "
                "data, whatever their number is. Received: block "
                f"'{self._function.names[i]}' of shape {known} for "
                f"{shape[0]} rows"
            )
        return ops.reshape(block, shape)

    def named(self, values: Matrix) -> dict[str, Matrix]:
        """Splits outputs into those of each block, by its name."""
        parts = np.split(values, np.cumsum(self._widths)[:-1], axis=1)
        names = [self._function.names[i] for i in self.blocks]
        return dict(zip(names, parts, strict=True))

    def sums(self, values: Tensor, term_factors: Tensor) -> Tensor:
        """The loss of each block, summed over its residuals.

        Args:
            values: the outputs.
            term_factors: see `ResidualProgram`.

        Returns:
            A vector with an entry for each block of the function, zero for
            those that are not in this term.
        """
        count = len(self._function.names)
        # In float32, squares of very small or large numbers would vanish or
        # overflow.
        values = ops.cast(values, term_factors.dtype)
        ends = np.cumsum(self._widths)[:-1].tolist()
        parts = ops.split(values, ends, axis=1) if ends else [values]
        sums = [ops.zeros((), dtype=term_factors.dtype)] * count
        for i, part in zip(self.blocks, parts, strict=True):
            f = term_factors[count + i]
            sums[i] = ops.sum(self._measure(part / f)) * f**2
        return ops.stack(sums)

    def loss(
        self,
        values: Tensor,
        frozen: list[Tensor] | None,
        term_factors: Tensor,
        chunk: Chunk,
    ) -> Scalar:
        """What a chunk adds to the loss by its residuals."""
        del frozen, chunk
        sums = self.sums(values, term_factors)
        return ops.sum(sums * term_factors[: len(self._function.names)])

    def penalty(
        self,
        parts: list[Tensor],
        frozen: list[Tensor],
        term_factors: Tensor,
        chunk: Chunk,
    ) -> Scalar:
        """Returns zero, because residuals have no penalty."""
        del parts, frozen, chunk
        return ops.zeros((), dtype=term_factors.dtype)

    def chunk_sums(
        self,
        parts: list[Tensor],
        frozen: list[Tensor],
        term_factors: Tensor,
        chunk: Chunk,
    ) -> Tensor:
        """What a chunk adds to `sums`."""
        return self.sums(self.outputs(parts, frozen, chunk), term_factors)

    def chunk_loss(
        self,
        parts: list[Tensor] | None,
        frozen: list[Tensor] | None,
        term_factors: Tensor,
        chunk: Chunk,
    ) -> Scalar:
        """What a chunk adds to the loss: a `ChunkLoss`."""
        values = self.outputs(parts, frozen, chunk)
        return self.loss(values, frozen, term_factors, chunk)


class ResidualProgram(Program):
    """The compiled functions of residuals.

    Its `term_factors` hold the factor of each block's sum in the loss, and then
    the `f_scale` of each block.

    Args:
        packing: the `Packing` of the variables.
        function: the function of all residuals.
        measure: see `ResidualTerm`.

    Attributes:
        terms: a term for each group that has blocks.
        sums: the losses of the blocks at a point, summed over all data.
        outputs: for each term, its outputs at a point and at rows of data.
    """

    def __init__(
        self,
        packing: Packing,
        function: ResidualFunction,
        measure: Callable[[Tensor], Tensor],
    ) -> None:
        self.terms = [
            ResidualTerm(function, g, measure) for g in function.groups
        ]
        super().__init__(
            packing,
            function.frozen_variables,
            [term.chunk_loss for term in self.terms],
            backend.compile,
        )
        self.sums = backend.compile(self._sums)
        self._chunk_sums = [
            self.graphs.recorded(self._chunk_sums_of(t)) for t in self.terms
        ]
        self.outputs = [
            backend.compile(self._outputs_of(term)) for term in self.terms
        ]

    def for_function(
        self, packing: Packing, function: ResidualFunction
    ) -> Self:
        """The same compiled functions, for an equal function.

        Args:
            packing: the `Packing` of its variables.
            function: the function.
        """
        # Otherwise, each of several functions would compile its own.
        _ = self.gauss_newton
        terms = [term.moved(function) for term in self.terms]
        other = self.moved(packing, [term.chunk_loss for term in terms])
        other.terms = terms
        return other

    @functools.cached_property
    def gauss_newton(self) -> GaussNewton:
        """Derivatives of the residuals."""
        return GaussNewton(
            self.packing, self.terms, backend.compile, self.graphs
        )

    def _sums(
        self,
        theta: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
        chunks: Chunks,
    ) -> Tensor:
        count = term_factors.shape[0] // 2
        return sum_over_chunks(
            self._chunk_sums,
            (theta, frozen, term_factors),
            chunks,
            (ops.zeros((count,), dtype=theta.dtype),),
        )[0]

    def _chunk_sums_of(self, term: ResidualTerm) -> ChunkTerm:
        def add(
            theta: Tensor, frozen: list[Tensor], factors: Tensor, chunk: Chunk
        ) -> tuple[Tensor, ...]:
            parts = self.packing.unpack(theta)
            sums = term.chunk_sums(parts, frozen, factors, chunk)
            return (ops.cast(sums, theta.dtype),)

        return add

    def _outputs_of(self, term: ResidualTerm) -> Callable[..., Tensor]:
        def outputs(
            theta: Tensor, frozen: list[Tensor], rows: Structure
        ) -> Tensor:
            return term.outputs(self.packing.unpack(theta), frozen, rows)

        return outputs
