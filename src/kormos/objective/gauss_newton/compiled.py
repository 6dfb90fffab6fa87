"""The generalized Gauss-Newton matrix of a loss of outputs.

With outputs z = f(theta, row) and a loss l(z), the matrix is the sum over the
rows of J'HJ, where J is dz/dtheta and H the Hessian of l in z, by automatic
differentiation of the loss alone: for a sum of squares it is that of Gauss and
Newton. Where a loss is not convex in z, H is without its negative part. What a
loss has besides its outputs, regularizers say, enters by the
diagonal of its Hessian.
"""

import functools
from typing import NamedTuple

import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.arithmetic.vectors import gram
from kormos.data.memory import leaves
from kormos.objective.compiled import leading_size
from kormos.objective.compiled import scalar_zero
from kormos.objective.compiled import sum_over_chunks
from kormos.objective.compiled import take
from kormos.objective.gauss_newton.directional import DirectionalDerivative

# What stands for a weight of zero: nothing beside others, and it has a root by
# which to divide.
_NO_WEIGHT = 2.0**-800


class Factor(NamedTuple):
    """What is known of a chunk, in NumPy.

    The gradient is g + R's, the Gauss-Newton matrix R'R + diag(d), where d is
    positive in the sum of all chunks.

    Attributes:
        loss: the loss.
        grad: the vector g, or zero.
        diagonal: the vector d, or zero.
        roots: the square root of the curvature in the outputs, of each row of
            data: `(n, k)`, or `(n, k, k)`.
        matrix: `[R, s]`, with a row for every output of every row of data.
    """

    loss: float
    grad: np.ndarray
    diagonal: np.ndarray
    roots: np.ndarray
    matrix: np.ndarray

    def pulled_back(self, directional):
        """J'H times a derivative of the outputs, `(n, k)`."""
        if self.roots.ndim == 2:
            weighted = self.roots * directional
        else:
            weighted = np.einsum("nkl,nl->nk", self.roots, directional)
        return weighted.reshape(-1) @ self.matrix[:, :-1]


class GaussNewton:
    """Derivatives of the outputs of a program, compiled.

    All functions take `(theta, ..., frozen, term_factors, chunks)`, the
    arguments of `Program`.

    Args:
        packing: the `Packing` of the variables.
        terms: a list, for each pair of chunks a `ModelOutputs` or something
            that has the same methods and attributes.
        compile: function that compiles a function.
    """

    def __init__(self, packing, terms, compile):
        self.terms = terms
        self._packing = packing
        self._derivative = DirectionalDerivative()
        self.normal_equations = compile(self._normal_equations)
        # The matrix times a vector.
        self.product = compile(functools.partial(self._pulled_back, 1))
        # J'H times the second derivative of the outputs along a vector.
        self.bend = compile(functools.partial(self._pulled_back, 2))
        self._factored, self._second = (
            [_by_chunk(compile, functools.partial(fn, term)) for term in terms]
            for fn in (self._with_roots, self._second_directional)
        )

    def _normal_equations(self, theta, frozen, term_factors, chunks):
        """Loss, gradient and matrix, whose upper triangle alone is right."""
        size = theta.shape[0]

        def add(term, chunk):
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

    def factors(self, theta, frozen, term_factors, chunks):
        """Yields the `Factor` of each chunk."""
        known = theta, frozen, term_factors
        for values in _each(self._factored, chunks, *known):
            yield _on_host(values)

    def second(self, theta, vector, frozen, term_factors, chunks):
        """Yields each chunk's second derivative of the outputs along a vector.

        Each is a NumPy array `(n, k)`; their order is that of `factors`.
        """
        known = theta, vector, frozen, term_factors
        for values in _each(self._second, chunks, *known):
            yield backend.view(values)

    def _with_roots(self, term, chunk, theta, frozen, term_factors):
        """A `Factor`; of curvatures that are matrices, what has yet no root.

        A column of R is as fast to multiply as a gradient is slow to sum.
        """
        loss, grad, diagonal, slope, weights, blocks = self._linearize(
            term, theta, frozen, term_factors, chunk
        )
        if len(weights.shape) == 2:
            weights = ops.where(
                weights > _NO_WEIGHT,
                weights,
                ops.full_like(weights, _NO_WEIGHT),
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
        self, term, chunk, theta, vector, frozen, term_factors
    ):
        def outputs(parts):
            return term.outputs(parts, frozen, term.rows(chunk))

        parts, tangents = map(self._packing.unpack, (theta, vector))
        _, second = self._derivative(2, outputs, parts, tangents)
        return ops.cast(second, theta.dtype)

    def _pulled_back(self, order, theta, vector, frozen, term_factors, chunks):
        """J'H times a derivative of the outputs along a vector."""
        parts = self._packing.unpack(theta)
        tangents = self._packing.unpack(vector)

        def add(term, chunk):
            def outputs(parts):
                return term.outputs(parts, frozen, term.rows(chunk))

            own, directional = self._derivative(order, outputs, parts, tangents)
            values, directional = (
                ops.cast(a, theta.dtype) for a in (own, directional)
            )
            fn = _loss(term, frozen, term_factors, chunk)
            weighted = self._weighted(term, fn, values, directional)
            # Products of small numbers would vanish in float32.
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

    def _linearize(self, term, theta, frozen, term_factors, chunk):
        """Loss, and what makes the gradient and the matrix.

        Returns:
            The loss; the gradient, and the Hessian's diagonal, of what has no
            outputs; the slope of the loss in the outputs, `(n, k)`, and its
            curvature there; and J, as a list of the columns of each variable,
            `(n, k, q)`: what is done to these before they are joined takes
            no pass over memory of its own.
        """
        dtype, parts = theta.dtype, self._packing.unpack(theta)

        rows = term.rows(chunk)
        count = leading_size(rows)
        # No backend takes rows of what is not there.
        present = leaves(rows)

        def row_outputs(p, row):
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
        # The loss itself is not to be rounded to the outputs' dtype.
        values = ops.cast(values, dtype)
        fn = _loss(term, frozen, term_factors, chunk)
        loss, (slope,) = backend.value_and_grad(fn)([values])
        weights = self._weights(term, fn, values, slope)
        own, grad, diagonal = self._penalty(
            term, parts, frozen, term_factors, chunk, dtype
        )
        return (
            ops.cast(loss, dtype) + own,
            grad,
            diagonal,
            ops.cast(slope, dtype),
            ops.cast(weights, dtype),
            blocks,
        )

    def _weighted(self, term, fn, values, directional):
        """The curvature in the outputs times a derivative of them."""
        if term.is_convex and not term.is_diagonal:
            return backend.hvp(fn)([values], [directional])[0]
        _, (slope,) = backend.value_and_grad(fn)([values])
        weights = self._weights(term, fn, values, slope)
        if term.is_diagonal:
            return weights * directional
        return ops.einsum("nkl,nl->nk", _convex(term, weights), directional)

    def _weights(self, term, fn, values, slope):
        """The Hessian in the outputs: `(n, k)`, or `(n, k, k)`."""
        product = backend.hvp(fn)
        if term.is_diagonal:
            (weights,) = product([values], [ops.ones_like(values)])
            # Where a loss is not convex, it has no square root: a parabola
            # around a residual of zero touches it from above there.
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

    def _penalty(self, term, parts, frozen, term_factors, chunk, dtype):
        """What has no outputs: its loss, gradient and Hessian's diagonal."""
        if not term.has_penalty:
            zero = ops.zeros((), dtype=dtype)
            return zero, zero, zero

        def fn(parts):
            return term.penalty(parts, frozen, term_factors, chunk)

        loss, gradients = backend.value_and_grad(fn)(parts)
        # The product with signs, times the signs: the diagonal itself of a
        # diagonal Hessian, an estimate without bias of any other. The signs
        # are those of all chunks, so that it is the same however they are cut.
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


def _loss(term, frozen, term_factors, chunk):
    return lambda values: term.loss(values[0], frozen, term_factors, chunk)


def _gradient(slope, blocks):
    return ops.concatenate(
        [ops.einsum("nk,nkq->q", slope, block) for block in blocks]
    )


def _convex(term, weights):
    """Of matrices, symmetric but for rounding, what is not negative."""
    if term.is_diagonal or term.is_convex:
        return weights
    symmetric = (weights + ops.transpose(weights, (0, 2, 1))) / 2
    values, vectors = ops.eigh(symmetric)
    scaled = vectors * ops.expand_dims(ops.relu(values), 1)
    return ops.matmul(scaled, ops.transpose(vectors, (0, 2, 1)))


def _weigh(weights, jacobian):
    if len(weights.shape) == 2:
        return ops.expand_dims(weights, 2) * jacobian
    return ops.einsum("nkl,nlp->nkp", weights, jacobian)


def _by_chunk(compile, fn):
    """Compiles a function of a chunk: for one, and for one of a stack."""

    def of_stacked(stacked, index, *known):
        # Cut out inside: a slice outside takes JAX as long again.
        return fn(take(stacked, index), *known)

    return compile(fn), compile(of_stacked)


def _each(compiled, chunks, *known):
    """Yields the values of functions `_by_chunk` at each of the chunks."""
    for functions, pair in zip(compiled, chunks, strict=True):
        of_chunk, of_stacked = functions
        stacked, last = pair
        if stacked is not None:
            for i in range(leading_size(stacked)):
                yield of_stacked(stacked, np.array(i, "int32"), *known)
        if last is not None:
            yield of_chunk(last, *known)


def _on_host(factor):
    """The `Factor` that `_with_roots` began."""
    loss, grad, diagonal, roots, matrix = map(backend.view, factor)
    if roots.ndim > 2:
        roots = _block_roots(roots)
        matrix = roots @ matrix
    matrix = matrix.reshape(-1, matrix.shape[-1])
    return Factor(float(loss), grad, diagonal, roots, matrix)


def _block_roots(weights):
    """Of each matrix H of a stack a matrix S with S'S = H."""
    values, vectors = np.linalg.eigh((weights + weights.swapaxes(1, 2)) / 2)
    roots = np.sqrt(np.maximum(values, 0))[:, :, None]
    return roots * vectors.swapaxes(1, 2)
