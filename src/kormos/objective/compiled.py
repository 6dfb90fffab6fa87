"""A loss over variables as compiled functions of one flat vector."""

import collections

import keras
from keras import ops
from keras import tree

from kormos import backend
from kormos.data.variables import reads_seeds
from kormos.data.variables import snapshot


class Program:
    """Loss, gradient and Hessian product, compiled.

    Everything that may change between two calls is an argument, so that a
    program serves every fit of the same model and shapes:

    - `theta`: flat vector, in the dtype of the solver's arithmetic;
    - `frozen`: values of `frozen_variables`;
    - `term_factors`: vector of the factors by which terms enter the loss;
    - `chunks`: a tuple of pairs `(stacked, last)`, one for each of the
      functions that make up the loss. `stacked` holds chunks of equal size
      along a new leading axis, or is `None`; `last` is one more chunk, of
      any size, or is `None`.

    Args:
        packing: the `Packing` of the variables.
        frozen_variables: the other variables that the loss reads.
        chunk_losses: list of functions `(parts, frozen, term_factors, chunk) ->
            scalar`. The loss is the sum of each over all of its chunks.
        compile: function that compiles a function.
        compile_loop: function that compiles a function of a solver's state.
            Defaults to that of the backend.
    """

    def __init__(
        self,
        packing,
        frozen_variables,
        chunk_losses,
        compile,
        compile_loop=None,
    ):
        self.packing = packing
        self.frozen_variables = frozen_variables
        # Whether it was compared with the loss as it is.
        self.is_verified = False
        # How often each function was traced, for tests of the caches.
        self.traces = collections.Counter()
        self.chunk_losses = chunk_losses
        self._gradients = [backend.value_and_grad(fn) for fn in chunk_losses]
        self._hessians = [backend.hvp(fn) for fn in chunk_losses]
        self.value = compile(self._value)
        self.value_and_grad = compile(self.trace_value_and_grad)
        self.hvp = compile(self._hvp)

        if compile_loop is None:
            compile_loop = backend.compile_loop
            if keras.backend.backend() == "tensorflow":
                # XLA draws other random numbers; a fit must see the same.
                draws = reads_seeds(frozen_variables)
                compile_loop = compile if draws else compile_loop
        self._compile_loop = compile_loop
        self._loops = {}

    @property
    def gauss_newton(self):
        raise ValueError(
            "Gauss-Newton methods need residuals, not a loss alone: use "
            "`kormos.least_squares`, or a method such as 'lbfgs'. "
            "Received: a function that returns a scalar"
        )

    def frozen_values(self):
        return snapshot(self.frozen_variables)

    def compiled_loop(self, key, fn):
        """`fn(state, *args) -> state`, compiled once for a key."""
        if key not in self._loops:
            self._loops[key] = self._compile_loop(fn)
        return self._loops[key]

    def _value(self, theta, frozen, term_factors, chunks):
        self.traces["value"] += 1
        parts = self.packing.unpack(theta)

        def term(fn, chunk):
            loss = fn(parts, frozen, term_factors, chunk)
            return (ops.cast(loss, theta.dtype),)

        zeros = (scalar_zero(theta),)
        return sum_over_chunks(term, self.chunk_losses, chunks, zeros)[0]

    def trace_value_and_grad(self, theta, frozen, term_factors, chunks):
        self.traces["value_and_grad"] += 1
        parts = self.packing.unpack(theta)

        def term(fn, chunk):
            loss, gradients = fn(parts, frozen, term_factors, chunk)
            return (
                ops.cast(loss, theta.dtype),
                self.packing.pack(gradients, theta.dtype),
            )

        zeros = (scalar_zero(theta), ops.zeros_like(theta))
        return sum_over_chunks(term, self._gradients, chunks, zeros)

    def _hvp(self, theta, vector, frozen, term_factors, chunks):
        self.traces["hvp"] += 1
        parts = self.packing.unpack(theta)
        tangents = self.packing.unpack(vector)

        def term(fn, chunk):
            products = fn(parts, tangents, frozen, term_factors, chunk)
            return (self.packing.pack(products, theta.dtype),)

        zeros = (ops.zeros_like(theta),)
        return sum_over_chunks(term, self._hessians, chunks, zeros)[0]


def scalar_zero(theta):
    return ops.zeros((), dtype=theta.dtype)


def sum_over_chunks(term, fns, chunks, total):
    """Adds `term(fn, chunk)`, a tuple, of every function and its chunks."""
    for fn, pair in zip(fns, chunks, strict=True):

        def add(total, chunk, fn=fn):
            pairs = zip(total, term(fn, chunk), strict=True)
            return tuple(a + b for a, b in pairs)

        total = fold_chunks(add, pair, total)
    return total


def fold_chunks(step, pair, state):
    """Applies `state = step(state, chunk)` over a pair's chunks, in order."""
    stacked, last = pair
    if stacked is not None:
        state = ops.fori_loop(
            0,
            leading_size(stacked),
            lambda i, s: step(s, take(stacked, i)),
            state,
        )
    if last is not None:
        state = step(state, last)
    return state


def each_chunk(pair):
    """Yields a pair's chunks, one after the other."""
    stacked, last = pair
    if stacked is not None:
        for i in range(leading_size(stacked)):
            yield take(stacked, i)
    if last is not None:
        yield last


def count_rows(pair):
    """The rows in all of a pair's chunks."""
    stacked, last = pair
    rows = 0 if last is None else leading_size(last)
    if stacked is not None:
        chunks, size = _shape(stacked)[:2]
        rows += chunks * size
    return rows


def leading_size(structure):
    """The size of the first dimension of the arrays in a structure."""
    return _shape(structure)[0]


def _shape(structure):
    return next(a for a in tree.flatten(structure) if a is not None).shape


def take(stacked, index):
    """One of the stacked chunks."""
    return tree.map_structure(
        lambda a: None if a is None else a[index], stacked
    )
