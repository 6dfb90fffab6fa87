"""Derivatives of a term's outputs, and of its loss in the outputs."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.data.memory import leaves
from kormos.objective.compiled import Chunk
from kormos.objective.compiled import leading_size
from kormos.objective.layout import Packing
from kormos.solvers.protocols import OutputTerm
from kormos.types import Scalar
from kormos.types import Tensor


class Linearization(NamedTuple):
    """A chunk's derivatives at a point.

    J is kept in blocks, because a backend can fuse operations on the blocks
    with their concatenation, and then passes over the memory only once.

    Attributes:
        loss: the loss, with its penalty.
        penalty: the penalty.
        grad: the gradient of the penalty, of shape `(size,)`, or zero.
        diagonal: the diagonal of the Hessian of the penalty, shaped like
            `grad`.
        slope: the derivative of the loss in the outputs, `(n, k)`.
        weights: the Hessian of the loss in the outputs, `(n, k)` where it is
            diagonal, or `(n, k, k)`.
        blocks: J, as a list with the columns of each variable, `(n, k, q)` for
            a variable of `q` entries.
    """

    loss: Scalar
    penalty: Scalar
    grad: Tensor
    diagonal: Tensor
    slope: Tensor
    weights: Tensor
    blocks: list[Tensor]

    def gradient(self) -> Tensor:
        """The gradient J's, of the slopes s of the loss in the outputs."""
        return ops.concatenate(
            [
                ops.einsum("nk,nkq->q", self.slope, block)
                for block in self.blocks
            ]
        )


class TermDerivatives:
    """The derivatives of an `OutputTerm` on a chunk of data.

    Args:
        packing: the `Packing` of the variables.
        term: the term.
    """

    def __init__(self, packing: Packing, term: OutputTerm) -> None:
        self._packing = packing
        self._term = term

    def linearize(
        self,
        theta: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
        chunk: Chunk,
    ) -> Linearization:
        """A chunk's derivatives at a point."""
        term, dtype = self._term, theta.dtype
        parts = self._packing.unpack(theta)
        rows = term.rows(chunk)
        count = leading_size(rows)
        # Backends cannot map a function over the rows of `None`.
        present = leaves(rows)

        def row_outputs(p: list[Tensor], row: list[Tensor]) -> Tensor:
            given = iter(row)
            batch = [
                None if a is None else next(given)[None]
                for a in tree.flatten(rows)
            ]
            batch = tree.pack_sequence_as(rows, batch)
            return term.outputs(p, frozen, batch)[0]

        forward = term.width > self._packing.size
        values, derivatives = backend.row_jacobian(row_outputs, forward)(
            parts, present
        )
        blocks = [
            ops.reshape(ops.cast(d, dtype), (count, term.width, -1))
            for d in derivatives
        ]
        # The loss is computed in the solver's dtype, not in the outputs' own.
        values = ops.cast(values, dtype)
        fn = self._loss(frozen, term_factors, chunk)
        loss, (slope,) = backend.value_and_grad(fn)([values])
        weights = self._weights(fn, values, slope)
        penalty, grad, diagonal = self.penalty(
            parts, frozen, term_factors, chunk, dtype
        )
        return Linearization(
            ops.cast(loss, dtype) + penalty,
            penalty,
            grad,
            diagonal,
            ops.cast(slope, dtype),
            ops.cast(weights, dtype),
            blocks,
        )

    def weighted(
        self,
        values: Tensor,
        directional: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
        chunk: Chunk,
    ) -> Tensor:
        """The Hessian in the outputs times a directional derivative of them.

        Args:
            values: the outputs.
            directional: the derivative.
            frozen: see `Program`.
            term_factors: see `Program`.
            chunk: the chunk.
        """
        fn = self._loss(frozen, term_factors, chunk)
        if self._term.is_convex and not self._term.is_diagonal:
            return backend.hvp(fn)([values], [directional])[0]
        _, (slope,) = backend.value_and_grad(fn)([values])
        weights = self._weights(fn, values, slope)
        if self._term.is_diagonal:
            return weights * directional
        return ops.einsum("nkl,nl->nk", self.convex(weights), directional)

    def _weights(
        self,
        fn: Callable[[list[Tensor]], Scalar],
        values: Tensor,
        slope: Tensor,
    ) -> Tensor:
        """The Hessian in the outputs.

        Args:
            fn: the loss as a function of a list of the outputs.
            values: the outputs.
            slope: the derivative of the loss in the outputs.

        Returns:
            Its diagonal, of shape `(n, k)`, where the term says that it is
            diagonal, or else matrices, of shape `(n, k, k)`.
        """
        product = backend.hvp(fn)
        if self._term.is_diagonal:
            (weights,) = product([values], [ops.ones_like(values)])
            # A negative curvature has no square root. It is replaced by that of
            # a parabola with its minimum at a residual of zero, which touches
            # the loss at this residual from above.
            concave = ops.zeros_like(weights)
            if self._term.is_residual:
                safe = ops.where(values == 0, ops.ones_like(values), values)
                concave = slope / safe
            return ops.where(weights > 0, weights, concave)
        units = ops.eye(self._term.width, dtype=values.dtype)
        blocks = backend.map_rows(
            lambda unit: product([values], [ops.zeros_like(values) + unit])[0],
            units,
        )
        return ops.transpose(blocks, (1, 0, 2))

    def convex(self, weights: Tensor) -> Tensor:
        """Hessians in the outputs, without their negative part."""
        if self._term.is_diagonal or self._term.is_convex:
            return weights
        # Rounding may have made them asymmetric.
        symmetric = (weights + ops.transpose(weights, (0, 2, 1))) / 2
        values, vectors = ops.eigh(symmetric)
        scaled = vectors * ops.expand_dims(ops.relu(values), 1)
        return ops.matmul(scaled, ops.transpose(vectors, (0, 2, 1)))

    def penalty(
        self,
        parts: list[Tensor],
        frozen: list[Tensor],
        term_factors: Tensor,
        chunk: Chunk,
        dtype: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, gradient and Hessian's diagonal of the penalty."""
        if not self._term.has_penalty:
            zero = ops.zeros((), dtype=dtype)
            return zero, zero, zero

        def fn(parts: list[Tensor]) -> Scalar:
            return self._term.penalty(parts, frozen, term_factors, chunk)

        loss, gradients = backend.value_and_grad(fn)(parts)
        # A Hessian times random signs, times the signs again, is its diagonal
        # if it is diagonal, and an unbiased estimate of that otherwise. All
        # chunks have the same signs, so that the result does not depend on
        # how the data are cut into chunks.
        rng = np.random.default_rng(0)
        signs = [
            ops.convert_to_tensor(
                rng.choice([-1.0, 1.0], size=tuple(p.shape)), dtype=p.dtype
            )
            for p in parts
        ]
        products = backend.hvp(fn)(parts, signs)
        products = [p * s for p, s in zip(products, signs, strict=True)]
        return (
            ops.cast(loss, dtype),
            self._packing.pack(gradients, dtype),
            self._packing.pack(products, dtype),
        )

    def outputs(
        self, frozen: list[Tensor], chunk: Chunk
    ) -> Callable[[list[Tensor]], Tensor]:
        """The outputs on a chunk, as a function of the variables' values."""
        rows = self._term.rows(chunk)
        return lambda parts: self._term.outputs(parts, frozen, rows)

    def _loss(
        self, frozen: list[Tensor], term_factors: Tensor, chunk: Chunk
    ) -> Callable[[list[Tensor]], Scalar]:
        """The loss on a chunk, as a function of a list of the outputs."""

        def loss(values: list[Tensor]) -> Scalar:
            return self._term.loss(values[0], frozen, term_factors, chunk)

        return loss
