"""The generalized Gauss-Newton matrix of a loss of outputs.

With outputs z = f(theta, row) and a loss l(z), the matrix is the sum over the
rows of J'HJ, where J is dz/dtheta and H the Hessian of l in z, by automatic
differentiation of the loss alone: for a sum of squares it is that of Gauss and
Newton. What a loss has besides its outputs, regularizers say, enters by the
diagonal of its Hessian.
"""

import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.numerics.vectors import gram
from kormos.numerics.vectors import rounding
from kormos.objective.program import each_chunk
from kormos.objective.program import fold_chunks
from kormos.objective.program import leading_size
from kormos.objective.program import scalar_zero

# The longest part of a step at which second derivatives are differences.
_LONGEST = 0.1


class GaussNewton:
    """Derivatives of the outputs of a program, compiled.

    All functions take `(theta, ..., frozen, scales, chunks)`, the arguments of
    `Program`.

    Args:
        packing: the `Packing` of the variables.
        terms: a list of `OutputTerm`s, one for each pair of chunks.
        compile: function that compiles a function.
    """

    def __init__(self, packing, terms, compile):
        self.terms = terms
        self._packing = packing
        self.normal_equations = compile(self._normal_equations)
        self.product = compile(self._product)
        self.bend = compile(self._bend)
        self._rows = [compile(self._rows_of(term)) for term in terms]
        self._is_exact = True

    def _normal_equations(self, theta, frozen, scales, chunks):
        """Loss, gradient and matrix, whose upper triangle alone is right."""
        parts = self._packing.unpack(theta)
        size = theta.shape[0]
        state = (
            scalar_zero(theta),
            ops.zeros_like(theta),
            ops.zeros((size, size), dtype=theta.dtype),
        )
        for term, pair in zip(self.terms, chunks, strict=True):

            def add(state, chunk, term=term):
                loss, slope, weights, jacobian = self._linearize(
                    term, parts, frozen, scales, chunk, theta.dtype
                )
                columns = ops.reshape(jacobian, (-1, size))
                weighted = ops.reshape(_weigh(weights, jacobian), (-1, size))
                grad = ops.einsum("m,mp->p", ops.reshape(slope, (-1,)), columns)
                own, own_grad, own_diagonal = self._penalty(
                    term, parts, frozen, scales, chunk, theta
                )
                return (
                    state[0] + loss + own,
                    state[1] + grad + own_grad,
                    state[2] + gram(columns, weighted) + own_diagonal,
                )

            state = fold_chunks(add, pair, state)
        return state

    def rows(self, theta, frozen, scales, chunks):
        """Loss, gradient and a factor R of the matrix R'R, in NumPy.

        R has a row for every output of every row of data.
        """
        loss, grad, factors = 0.0, 0.0, []
        for compiled, pair in zip(self._rows, chunks, strict=True):
            for chunk in each_chunk(pair):
                values = compiled(theta, frozen, scales, chunk)
                own_loss, own_grad, weights, jacobian, diagonal = map(
                    ops.convert_to_numpy, values
                )
                loss, grad = loss + float(own_loss), grad + own_grad
                factors.append(_factor(weights, jacobian))
                if diagonal.any():
                    factors.append(np.diag(np.sqrt(diagonal)))
        return loss, grad, np.concatenate(factors)

    def _rows_of(self, term):
        def rows(theta, frozen, scales, chunk):
            parts = self._packing.unpack(theta)
            loss, slope, weights, jacobian = self._linearize(
                term, parts, frozen, scales, chunk, theta.dtype
            )
            own, own_grad, diagonal = self._penalty(
                term, parts, frozen, scales, chunk, theta
            )
            grad = ops.einsum("nk,nkp->p", slope, jacobian) + own_grad
            if len(diagonal.shape) == 2:
                diagonal = ops.diagonal(diagonal)
            return loss + own, grad, weights, jacobian, diagonal

        return rows

    def _product(self, theta, vector, frozen, scales, chunks):
        """The matrix times a vector."""
        parts = self._packing.unpack(theta)
        tangents = self._packing.unpack(vector)
        state = (ops.zeros_like(theta),)
        for term, pair in zip(self.terms, chunks, strict=True):

            def add(state, chunk, term=term):
                outputs = _outputs(term, frozen, chunk)
                values, first = self._along(1, outputs, parts, tangents)
                products = self._pull_back(
                    term, outputs, parts, values, first, frozen, scales, chunk
                )
                _, _, diagonal = self._penalty(
                    term, parts, frozen, scales, chunk, theta, dense=False
                )
                product = self._packing.pack(products, theta.dtype)
                return (state[0] + product + diagonal * vector,)

            state = fold_chunks(add, pair, state)
        return state[0]

    def _bend(self, theta, vector, frozen, scales, chunks):
        """J'H times the second derivative of the outputs along a vector."""
        parts = self._packing.unpack(theta)
        tangents = self._packing.unpack(vector)
        state = (ops.zeros_like(theta),)
        for term, pair in zip(self.terms, chunks, strict=True):

            def add(state, chunk, term=term):
                outputs = _outputs(term, frozen, chunk)
                values, second = self._along(2, outputs, parts, tangents)
                products = self._pull_back(
                    term, outputs, parts, values, second, frozen, scales, chunk
                )
                return (state[0] + self._packing.pack(products, theta.dtype),)

            state = fold_chunks(add, pair, state)
        return state[0]

    def _linearize(self, term, parts, frozen, scales, chunk, dtype):
        """Loss, slope `(n, k)`, curvature in the outputs, J `(n, k, p)`."""

        def row_outputs(p, row):
            batch = tree.map_structure(lambda a: a[None], row)
            return term.outputs(p, frozen, batch)[0]

        rows = term.rows(chunk)
        count = leading_size(rows)
        forward = term.width > self._packing.size
        values, derivatives = backend.row_jacobian(row_outputs, forward)(
            parts, rows
        )
        jacobian = ops.concatenate(
            [
                ops.reshape(ops.cast(d, dtype), (count, term.width, -1))
                for d in derivatives
            ],
            axis=2,
        )
        fn = _loss(term, frozen, scales, chunk)
        loss, (slope,) = backend.value_and_grad(fn)([values])
        weights = self._weights(term, fn, values, slope)
        return (
            ops.cast(loss, dtype),
            ops.cast(slope, dtype),
            ops.cast(weights, dtype),
            jacobian,
        )

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

    def _penalty(self, term, parts, frozen, scales, chunk, theta, dense=True):
        """What has no outputs: its loss, gradient and Hessian's diagonal."""
        if not term.has_penalty:
            zero = scalar_zero(theta)
            return zero, zero, zero

        def fn(parts):
            return term.penalty(parts, frozen, scales, chunk)

        loss, gradients = backend.value_and_grad(fn)(parts)
        # The product with signs, times the signs: the diagonal itself of a
        # diagonal Hessian, an estimate without bias of any other.
        rng = np.random.default_rng(0)
        signs = [
            ops.convert_to_tensor(
                rng.choice([-1.0, 1.0], size=tuple(p.shape)), dtype=p.dtype
            )
            for p in parts
        ]
        products = backend.hvp(fn)(parts, signs)
        products = [p * s for p, s in zip(products, signs, strict=True)]
        diagonal = self._packing.pack(products, theta.dtype)
        diagonal = ops.where(diagonal > 0, diagonal, ops.zeros_like(diagonal))
        return (
            ops.cast(loss, theta.dtype),
            self._packing.pack(gradients, theta.dtype),
            ops.diag(diagonal) if dense else diagonal,
        )

    def _along(self, order, outputs, parts, tangents):
        """The outputs, and a derivative of them along a line."""
        if self._is_exact:
            try:
                return _derivative_along(order, outputs, parts, tangents)
            except Exception:
                # A layer has no forward mode on this backend.
                self._is_exact = False
        h = _difference(order, parts, tangents)

        def at(distance):
            return outputs(
                [p + distance * t for p, t in zip(parts, tangents, strict=True)]
            )

        behind, values, ahead = at(-h), outputs(parts), at(h)
        if order == 1:
            return values, (ahead - behind) / (2 * h)
        return values, (ahead - 2 * values + behind) / h**2

    def _pull_back(
        self, term, outputs, parts, values, vector, frozen, scales, chunk
    ):
        """J'H times a vector of outputs."""
        fn = _loss(term, frozen, scales, chunk)
        (weighted,) = backend.hvp(fn)([values], [vector])
        return backend.vjp(outputs)(parts, weighted)


def _outputs(term, frozen, chunk):
    return lambda parts: term.outputs(parts, frozen, term.rows(chunk))


def _loss(term, frozen, scales, chunk):
    return lambda values: term.loss(values[0], frozen, scales, chunk)


def _derivative_along(order, outputs, parts, tangents):
    if order == 1:
        return backend.jvp(outputs)(parts, tangents)

    def slope(parts):
        values, first = backend.jvp(outputs)(parts, tangents)
        return values, first

    (values, _), (_, second) = backend.jvp(slope)(parts, tangents)
    return values, second


def _difference(order, parts, tangents):
    """The part of a step that balances rounding with what it leaves out."""
    epsilon = max(rounding(p.dtype) for p in parts)
    length, reach = (
        sum(ops.sum(ops.square(a)) for a in arrays) ** 0.5
        for arrays in (tangents, parts)
    )
    reach = ops.where(reach > 0, reach, ops.ones_like(reach))
    length = ops.where(length > 0, length, ops.ones_like(length))
    if order == 1:
        return epsilon ** (1 / 3) * reach / length
    h = epsilon ** (1 / 4) * reach / length
    return ops.where(h < _LONGEST, h, ops.full_like(h, _LONGEST))


def _weigh(weights, jacobian):
    if len(weights.shape) == 2:
        return ops.expand_dims(weights, 2) * jacobian
    return ops.einsum("nkl,nlp->nkp", weights, jacobian)


def _factor(weights, jacobian):
    """R with R'R = J'HJ, `(rows, size)`."""
    if weights.ndim == 2:
        factor = np.sqrt(weights)[..., None] * jacobian
    else:
        values, vectors = np.linalg.eigh((weights + weights.swapaxes(1, 2)) / 2)
        roots = np.sqrt(np.maximum(values, 0))[:, :, None]
        factor = roots * (vectors.swapaxes(1, 2) @ jacobian)
    return factor.reshape(-1, jacobian.shape[-1])
