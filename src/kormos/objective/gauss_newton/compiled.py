"""The generalized Gauss-Newton matrix of a loss of outputs.

With outputs z = f(theta, row) and a loss l(z), the matrix is the sum over the
rows of J'HJ. J is dz/dtheta, and H is the Hessian of l in z, which automatic
differentiation of l computes. For a sum of squares it is the matrix of Gauss
and Newton. Where a loss is not convex in z, the negative part of H is left out.
A part of the loss that does not depend on the outputs, such as a regularizer,
adds the diagonal of its Hessian.
"""

import functools
from collections.abc import Iterator
from collections.abc import Sequence

from keras import ops
from keras import tree

from kormos import backend
from kormos.arithmetic.vectors import gram
from kormos.objective.compiled import Chunk
from kormos.objective.compiled import Chunks
from kormos.objective.compiled import Compiler
from kormos.objective.compiled import scalar_zero
from kormos.objective.compiled import sum_over_chunks
from kormos.objective.gauss_newton.by_chunk import ByChunk
from kormos.objective.gauss_newton.directional import DirectionalDerivative
from kormos.objective.gauss_newton.factors import Factor
from kormos.objective.gauss_newton.factors import factor_of
from kormos.objective.gauss_newton.factors import on_host
from kormos.objective.gauss_newton.linearization import Linearization
from kormos.objective.gauss_newton.linearization import TermDerivatives
from kormos.objective.layout import Packing
from kormos.solvers.protocols import OutputTerm
from kormos.types import Array
from kormos.types import Scalar
from kormos.types import Tensor


class GaussNewton:
    """Derivatives of the outputs of a program, compiled.

    All functions take `(theta, ..., frozen, term_factors, chunks)`, the
    arguments of `Program`.

    Args:
        packing: the `Packing` of the variables.
        terms: a term for each pair of chunks.
        compile: function that compiles a function.
        graphs: what an eager backend records of the functions of a chunk.

    Attributes:
        terms: the terms.
        normal_equations: the loss, the gradient and the matrix at a point.
        product: the matrix times a vector.
        trace_product: the same, for use inside a compiled function.
        bend: J'H times the second derivative of the outputs along a vector.
    """

    def __init__(
        self,
        packing: Packing,
        terms: Sequence[OutputTerm],
        compile: Compiler,
        graphs: backend.Graphs,
    ) -> None:
        self.terms = terms
        self._packing = packing
        self._directional = DirectionalDerivative()
        self._derivatives = [TermDerivatives(packing, term) for term in terms]
        self._chunk_equations = [
            graphs.recorded(functools.partial(_equations, derivatives))
            for derivatives in self._derivatives
        ]
        self._pulled = {
            order: [
                graphs.recorded(
                    functools.partial(self._chunk_pulled, order, derivatives)
                )
                for derivatives in self._derivatives
            ]
            for order in (1, 2)
        }
        self.normal_equations = compile(self._normal_equations)
        self.trace_product = functools.partial(self._pulled_back, 1)
        self.product = compile(self.trace_product)
        self.bend = compile(functools.partial(self._pulled_back, 2))
        self._factored, self._second, self._linearized = (
            [
                ByChunk(functools.partial(fn, derivatives), compile, graphs)
                for derivatives in self._derivatives
            ]
            for fn in (factor_of, self._second_directional, _linearized)
        )

    def _normal_equations(
        self,
        theta: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
        chunks: Chunks,
    ) -> tuple[Scalar, Tensor, Tensor, Tensor]:
        """Loss, gradient, matrix, and the diagonal that is to be added.

        Only the upper triangle of the matrix is right. The negative part of the
        diagonal, summed over all rows, must be left out.
        """
        size = theta.shape[0]
        zeros = (
            scalar_zero(theta),
            ops.zeros_like(theta),
            ops.zeros((size, size), dtype=theta.dtype),
            ops.zeros_like(theta),
        )
        known = theta, frozen, term_factors
        sums = sum_over_chunks(self._chunk_equations, known, chunks, zeros)
        loss, grad, matrix, diagonal = sums
        return loss, grad, matrix, diagonal

    def factors(
        self,
        theta: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
        chunks: Chunks,
    ) -> Iterator[Factor]:
        """Yields the `Factor` of each chunk."""
        for factored, pair in zip(self._factored, chunks, strict=True):
            for factor in factored(pair, theta, frozen, term_factors):
                yield on_host(factor)

    def linearized(
        self,
        theta: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
        chunks: Chunks,
    ) -> Iterator[tuple[int, Linearization]]:
        """Yields each chunk's derivatives, as NumPy arrays.

        Their one block holds the columns of all variables. With each comes the
        place of its term in `terms`.
        """
        for i, pair in enumerate(chunks):
            known = theta, frozen, term_factors
            for found in self._linearized[i](pair, *known):
                yield i, tree.map_structure(backend.view, found)

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
        for second, pair in zip(self._second, chunks, strict=True):
            for values in second(pair, theta, vector, frozen):
                yield backend.view(values)

    def _second_directional(
        self,
        term: TermDerivatives,
        chunk: Chunk,
        theta: Tensor,
        vector: Tensor,
        frozen: list[Tensor],
    ) -> Tensor:
        outputs = term.outputs(frozen, chunk)
        parts, tangents = map(self._packing.unpack, (theta, vector))
        _, second = self._directional(2, outputs, parts, tangents)
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
            frozen: see `Program`.
            term_factors: see `Program`.
            chunks: see `Program`.
        """
        known = theta, vector, frozen, term_factors
        zeros = ops.zeros_like(theta), ops.zeros_like(theta)
        products, diagonal = sum_over_chunks(
            self._pulled[order], known, chunks, zeros
        )
        return products + ops.relu(diagonal) * vector

    def _chunk_pulled(
        self,
        order: int,
        term: TermDerivatives,
        theta: Tensor,
        vector: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
        chunk: Chunk,
    ) -> tuple[Tensor, ...]:
        """What a chunk adds to J'H times a derivative, and to the diagonal."""
        parts, tangents = map(self._packing.unpack, (theta, vector))
        outputs = term.outputs(frozen, chunk)
        own, directional = self._directional(order, outputs, parts, tangents)
        values, directional = (
            ops.cast(a, theta.dtype) for a in (own, directional)
        )
        weighted = term.weighted(
            values, directional, frozen, term_factors, chunk
        )
        # Small numbers would vanish in the products of a float32 model.
        size = ops.max(ops.abs(weighted))
        size = ops.where(size > 0, size, ops.ones_like(size))
        products = backend.vjp(outputs)(
            parts, ops.cast(weighted / size, own.dtype)
        )
        products = self._packing.pack(products, theta.dtype) * size
        diagonal = ops.zeros_like(theta)
        if order == 1:
            _, _, diagonal = term.penalty(
                parts, frozen, term_factors, chunk, theta.dtype
            )
        return products, diagonal


def _equations(
    term: TermDerivatives,
    theta: Tensor,
    frozen: list[Tensor],
    term_factors: Tensor,
    chunk: Chunk,
) -> tuple[Tensor, ...]:
    """What a chunk adds to the normal equations."""
    size = theta.shape[0]
    at = term.linearize(theta, frozen, term_factors, chunk)
    weights = term.convex(at.weights)
    jacobian = ops.concatenate(at.blocks, axis=2)
    columns = ops.reshape(jacobian, (-1, size))
    weighted = ops.reshape(_weigh(weights, jacobian), (-1, size))
    matrix = gram(columns, weighted)
    return at.loss, at.grad + at.gradient(), matrix, at.diagonal


def _linearized(
    derivatives: TermDerivatives,
    chunk: Chunk,
    theta: Tensor,
    frozen: list[Tensor],
    term_factors: Tensor,
) -> Linearization:
    at = derivatives.linearize(theta, frozen, term_factors, chunk)
    return at._replace(blocks=[ops.concatenate(at.blocks, axis=2)])


def _weigh(weights: Tensor, jacobian: Tensor) -> Tensor:
    """The product HJ, of shape `(n, k, size)`."""
    if len(weights.shape) == 2:
        return ops.expand_dims(weights, 2) * jacobian
    return ops.einsum("nkl,nlp->nkp", weights, jacobian)
