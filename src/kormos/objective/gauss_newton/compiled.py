"""The generalized Gauss-Newton matrix of a loss of outputs.

With outputs z = f(theta, row) and a loss l(z), the matrix is the sum over the
rows of J'HJ. J is dz/dtheta, and H is the Hessian of l in z, which automatic
differentiation of l computes. For a sum of squares it is the matrix of Gauss
and Newton. Where a loss is not convex in z, the negative part of H is left
out. A part of the loss that does not depend on the outputs, a regularizer say,
adds the diagonal of its Hessian.
"""

import functools
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple
from typing import TypeAlias

import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.arithmetic.vectors import gram
from kormos.data.memory import leaves
from kormos.objective.compiled import Chunk
from kormos.objective.compiled import Chunks
from kormos.objective.compiled import Compiler
from kormos.objective.compiled import leading_size
from kormos.objective.compiled import scalar_zero
from kormos.objective.compiled import sum_over_chunks
from kormos.objective.compiled import take
from kormos.objective.gauss_newton.directional import DirectionalDerivative
from kormos.objective.layout import Packing
from kormos.solvers.protocols import OutputTerm
from kormos.types import Array
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor
from kormos.types import Vector

# A function of a chunk, and of stacked chunks and the index of one of them.
_CompiledPair: TypeAlias = tuple[
    Callable[..., Structure], Callable[..., Structure]
]

# The weight of an output without curvature. It is nothing beside other weights,
# and still has a square root in float64 by which to divide.
_SMALLEST_WEIGHT = 2.0**-800


class Factor(NamedTuple):
    """A chunk's loss, gradient g + R's and Gauss-Newton matrix R'R + diag(d).

    Only the sum of d over all chunks is to be cut off at zero. Compiled
    functions return one of tensors, and `_on_host` makes it one of NumPy
    arrays, whose shapes are given here.

    Attributes:
        loss: the loss.
        grad: the vector g, of shape `(size,)`, or zero.
        diagonal: the vector d, of shape `(size,)`, or zero.
        roots: for each row of data, the square roots S of the Hessian in the
            outputs, H = S'S: of shape `(n, k)` where it is diagonal, or
            `(n, k, k)`.
        matrix: `[R, s]`, of shape `(n * k, size + 1)`, with a row for every
            output of every row of data.
    """

    loss: Scalar
    grad: Array
    diagonal: Array
    roots: Array
    matrix: Array

    def pulled_back(self, directional: Array) -> Vector:
        """J'H times a directional derivative of the outputs.

        Args:
            directional: the derivative, of shape `(n, k)`.

        Returns:
            A vector of shape `(size,)`.
        """
        if self.roots.ndim == 2:
            weighted = self.roots * directional
        else:
            weighted = np.einsum("nkl,nl->nk", self.roots, directional)
        return weighted.reshape(-1) @ self.matrix[:, :-1]


class _Linearization(NamedTuple):
    """A chunk's derivatives at a point.

    J is kept in blocks, because a backend fuses what is done to each block
    with joining the blocks, and passes over the memory only once.

    Attributes:
        loss: the loss, with its penalty.
        grad: the gradient of the penalty, of shape `(size,)`, or zero.
        diagonal: the diagonal of the Hessian of the penalty, as `grad`.
        slope: the derivative of the loss in the outputs, `(n, k)`.
        weights: the Hessian of the loss in the outputs, `(n, k)` where it is
            diagonal, or `(n, k, k)`.
        blocks: J, as a list with the columns of each variable, `(n, k, q)` for
            a variable of `q` entries.
    """

    loss: Scalar
    grad: Tensor
    diagonal: Tensor
    slope: Tensor
    weights: Tensor
    blocks: list[Tensor]


class GaussNewton:
    """Derivatives of the outputs of a program, compiled.

    All functions take `(theta, ..., frozen, term_factors, chunks)`, the
    arguments of `Program`.

    Args:
        packing: the `Packing` of the variables.
        terms: a term for each pair of chunks.
        compile: function that compiles a function.

    Attributes:
        terms: the terms.
        normal_equations: the loss, the gradient and the matrix at a point.
        product: the matrix times a vector.
        bend: J'H times the second derivative of the outputs along a vector.
    """

    def __init__(
        self, packing: Packing, terms: Sequence[OutputTerm], compile: Compiler
    ) -> None:
        self.terms = terms
        self._packing = packing
        self._derivative = DirectionalDerivative()
        self.normal_equations = compile(self._normal_equations)
        self.product = compile(functools.partial(self._pulled_back, 1))
        self.bend = compile(functools.partial(self._pulled_back, 2))
        self._factored, self._second = (
            [_by_chunk(compile, functools.partial(fn, term)) for term in terms]
            for fn in (self._with_roots, self._second_directional)
        )

    def _normal_equations(
        self,
        theta: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
        chunks: Chunks,
    ) -> tuple[Scalar, Tensor, Tensor]:
        """Loss, gradient and matrix, of which the upper triangle is right."""
        size = theta.shape[0]

        def add(term: OutputTerm, chunk: Chunk) -> tuple[Tensor, ...]:
            loss, grad, diagonal, slope, weights, blocks = self._linearize(
                term, theta, frozen, term_factors, chunk
            )
            grad = grad + _gradient(slope, blocks)
            weights = _convex(term, weights)
            jacobian = ops.concatenate(blocks, axis=2)
            columns = ops.reshape(jacobian, (-1, size))
            weighted = ops.reshape(_weigh(weights, jacobian), (-1, size))
            return loss, grad, gram(columns, weighted), diagonal

        zeros = (
            scalar_zero(theta),
            ops.zeros_like(theta),
            ops.zeros((size, size), dtype=theta.dtype),
            ops.zeros_like(theta),
        )
        loss, grad, matrix, diagonal = sum_over_chunks(
            add, self.terms, chunks, zeros
        )
        return loss, grad, matrix + ops.diag(ops.relu(diagonal))

    def factors(
        self,
        theta: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
        chunks: Chunks,
    ) -> Iterator[Factor]:
        """Yields the `Factor` of each chunk."""
        known = theta, frozen, term_factors
        for values in _each(self._factored, chunks, *known):
            yield _on_host(values)

    def second(
        self,
        theta: Tensor,
        vector: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
        chunks: Chunks,
    ) -> Iterator[Array]:
        """Yields each chunk's second derivative of the outputs along a vector.

        Each is a NumPy array `(n, k)`; their order is that of `factors`.
        """
        known = theta, vector, frozen, term_factors
        for values in _each(self._second, chunks, *known):
            yield backend.view(values)

    def _with_roots(
        self,
        term: OutputTerm,
        chunk: Chunk,
        theta: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
    ) -> Factor:
        """A `Factor` of tensors, but for Hessians that are not diagonal.

        Then its `roots` are these Hessians, and its `matrix` is `[J, 0]`:
        `_on_host` multiplies it by their square roots.

        For diagonal Hessians, the gradient is left in the column s, because
        one more column of a matrix product takes less time than its own sum.
        """
        loss, grad, diagonal, slope, weights, blocks = self._linearize(
            term, theta, frozen, term_factors, chunk
        )
        if len(weights.shape) == 2:
            weights = ops.where(
                weights > _SMALLEST_WEIGHT,
                weights,
                ops.full_like(weights, _SMALLEST_WEIGHT),
            )
            weights = ops.sqrt(weights)
            column = slope / weights
            blocks = [ops.expand_dims(weights, 2) * block for block in blocks]
        else:
            grad = grad + _gradient(slope, blocks)
            column = ops.zeros_like(slope)
        matrix = ops.concatenate([*blocks, ops.expand_dims(column, 2)], axis=2)
        return Factor(loss, grad, diagonal, weights, matrix)

    def _second_directional(
        self,
        term: OutputTerm,
        chunk: Chunk,
        theta: Tensor,
        vector: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
    ) -> Tensor:
        def outputs(parts: list[Tensor]) -> Tensor:
            return term.outputs(parts, frozen, term.rows(chunk))

        parts, tangents = map(self._packing.unpack, (theta, vector))
        _, second = self._derivative(2, outputs, parts, tangents)
        return ops.cast(second, theta.dtype)

    def _pulled_back(
        self,
        order: int,
        theta: Tensor,
        vector: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
        chunks: Chunks,
    ) -> Tensor:
        """J'H times a directional derivative of the outputs.

        For order 1 it is the Gauss-Newton matrix times the vector, and
        contains the diagonal of the penalties' Hessian.

        Args:
            order: 1 or 2, the order of the derivative.
            theta: the point.
            vector: the direction.
            frozen: as `Program` has it.
            term_factors: as `Program` has it.
            chunks: as `Program` has it.
        """
        parts = self._packing.unpack(theta)
        tangents = self._packing.unpack(vector)

        def add(term: OutputTerm, chunk: Chunk) -> tuple[Tensor, ...]:
            def outputs(parts: list[Tensor]) -> Tensor:
                return term.outputs(parts, frozen, term.rows(chunk))

            own, directional = self._derivative(order, outputs, parts, tangents)
            values, directional = (
                ops.cast(a, theta.dtype) for a in (own, directional)
            )
            fn = _loss(term, frozen, term_factors, chunk)
            weighted = self._weighted(term, fn, values, directional)
            # Small numbers would vanish in the products of a float32 model.
            size = ops.max(ops.abs(weighted))
            size = ops.where(size > 0, size, ops.ones_like(size))
            products = backend.vjp(outputs)(
                parts, ops.cast(weighted / size, own.dtype)
            )
            products = self._packing.pack(products, theta.dtype) * size
            diagonal = ops.zeros_like(theta)
            if order == 1 and term.has_penalty:
                _, _, diagonal = self._penalty(
                    term, parts, frozen, term_factors, chunk, theta.dtype
                )
            return products, diagonal

        zeros = ops.zeros_like(theta), ops.zeros_like(theta)
        products, diagonal = sum_over_chunks(add, self.terms, chunks, zeros)
        return products + ops.relu(diagonal) * vector

    def _linearize(
        self,
        term: OutputTerm,
        theta: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
        chunk: Chunk,
    ) -> _Linearization:
        """A chunk's derivatives at a point."""
        dtype, parts = theta.dtype, self._packing.unpack(theta)

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
        fn = _loss(term, frozen, term_factors, chunk)
        loss, (slope,) = backend.value_and_grad(fn)([values])
        weights = self._weights(term, fn, values, slope)
        penalty, grad, diagonal = self._penalty(
            term, parts, frozen, term_factors, chunk, dtype
        )
        return _Linearization(
            ops.cast(loss, dtype) + penalty,
            grad,
            diagonal,
            ops.cast(slope, dtype),
            ops.cast(weights, dtype),
            blocks,
        )

    def _weighted(
        self,
        term: OutputTerm,
        fn: Callable[[list[Tensor]], Scalar],
        values: Tensor,
        directional: Tensor,
    ) -> Tensor:
        """The Hessian in the outputs times a directional derivative of them.

        Args:
            term: the term.
            fn: the loss as a function of a list of the outputs.
            values: the outputs.
            directional: the derivative.
        """
        if term.is_convex and not term.is_diagonal:
            return backend.hvp(fn)([values], [directional])[0]
        _, (slope,) = backend.value_and_grad(fn)([values])
        weights = self._weights(term, fn, values, slope)
        if term.is_diagonal:
            return weights * directional
        return ops.einsum("nkl,nl->nk", _convex(term, weights), directional)

    def _weights(
        self,
        term: OutputTerm,
        fn: Callable[[list[Tensor]], Scalar],
        values: Tensor,
        slope: Tensor,
    ) -> Tensor:
        """The Hessian in the outputs.

        Args:
            term: the term.
            fn: the loss as a function of a list of the outputs.
            values: the outputs.
            slope: the derivative of the loss in the outputs.

        Returns:
            Its diagonal, of shape `(n, k)`, where the term says that it is
            diagonal, or else matrices, of shape `(n, k, k)`.
        """
        product = backend.hvp(fn)
        if term.is_diagonal:
            (weights,) = product([values], [ops.ones_like(values)])
            # A negative curvature has no square root. In its place is that of
            # the parabola with its minimum at a residual of zero, which
            # touches the loss at this residual from above.
            concave = ops.zeros_like(weights)
            if term.is_residual:
                safe = ops.where(values == 0, ops.ones_like(values), values)
                concave = slope / safe
            return ops.where(weights > 0, weights, concave)
        units = ops.eye(term.width, dtype=values.dtype)
        blocks = backend.map_rows(
            lambda unit: product([values], [ops.zeros_like(values) + unit])[0],
            units,
        )
        return ops.transpose(blocks, (1, 0, 2))

    def _penalty(
        self,
        term: OutputTerm,
        parts: list[Tensor],
        frozen: list[Tensor],
        term_factors: Tensor,
        chunk: Chunk,
        dtype: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, gradient and Hessian's diagonal of a term's penalty."""
        if not term.has_penalty:
            zero = ops.zeros((), dtype=dtype)
            return zero, zero, zero

        def fn(parts: list[Tensor]) -> Scalar:
            return term.penalty(parts, frozen, term_factors, chunk)

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


def _loss(
    term: OutputTerm, frozen: list[Tensor], term_factors: Tensor, chunk: Chunk
) -> Callable[[list[Tensor]], Scalar]:
    return lambda values: term.loss(values[0], frozen, term_factors, chunk)


def _gradient(slope: Tensor, blocks: list[Tensor]) -> Tensor:
    """The gradient J's, of the slopes s of the loss in the outputs."""
    return ops.concatenate(
        [ops.einsum("nk,nkq->q", slope, block) for block in blocks]
    )


def _convex(term: OutputTerm, weights: Tensor) -> Tensor:
    """Hessians in the outputs, without their negative part."""
    if term.is_diagonal or term.is_convex:
        return weights
    # Rounding may have made them asymmetric.
    symmetric = (weights + ops.transpose(weights, (0, 2, 1))) / 2
    values, vectors = ops.eigh(symmetric)
    scaled = vectors * ops.expand_dims(ops.relu(values), 1)
    return ops.matmul(scaled, ops.transpose(vectors, (0, 2, 1)))


def _weigh(weights: Tensor, jacobian: Tensor) -> Tensor:
    """The product HJ, of shape `(n, k, size)`."""
    if len(weights.shape) == 2:
        return ops.expand_dims(weights, 2) * jacobian
    return ops.einsum("nkl,nlp->nkp", weights, jacobian)


def _by_chunk(compile: Compiler, fn: Callable[..., Structure]) -> _CompiledPair:
    """Compiles a function of a chunk twice.

    Returns:
        The function of a chunk, and one of stacked chunks and the index of one
        of them.
    """

    def of_stacked(
        stacked: Structure, index: Scalar, *known: Structure
    ) -> Structure:
        # The chunk is taken inside of the compiled function: outside, JAX
        # takes as long for the slice as for the function.
        return fn(take(stacked, index), *known)

    return compile(fn), compile(of_stacked)


def _each(
    compiled: Sequence[_CompiledPair], chunks: Chunks, *known: Structure
) -> Iterator[Structure]:
    """Yields what functions return for each of the chunks.

    Args:
        compiled: for each pair of chunks, what `_by_chunk` returns.
        chunks: the pairs.
        *known: further arguments of the functions.
    """
    for functions, pair in zip(compiled, chunks, strict=True):
        of_chunk, of_stacked = functions
        stacked, last = pair
        if stacked is not None:
            for i in range(leading_size(stacked)):
                yield of_stacked(stacked, np.array(i, "int32"), *known)
        if last is not None:
            yield of_chunk(last, *known)


def _on_host(factor: Factor) -> Factor:
    """The `Factor` of NumPy arrays, from what `_with_roots` returns."""
    loss, grad, diagonal, roots, matrix = map(backend.view, factor)
    if roots.ndim > 2:
        roots = _block_roots(roots)
        matrix = roots @ matrix
    matrix = matrix.reshape(-1, matrix.shape[-1])
    return Factor(float(loss), grad, diagonal, roots, matrix)


def _block_roots(weights: Array) -> Array:
    """For each matrix H of a stack, a matrix S with S'S = H."""
    values, vectors = np.linalg.eigh((weights + weights.swapaxes(1, 2)) / 2)
    roots = np.sqrt(np.maximum(values, 0))[:, :, None]
    return roots * vectors.swapaxes(1, 2)
