"""A loss over variables as compiled functions of one flat vector."""

import collections
import copy
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import NoReturn
from typing import Self
from typing import TypeAlias
from typing import TypeVar

import keras
from keras import tree

from kormos import backend
from kormos.backend import ops
from kormos.data.memory import ByDevice
from kormos.data.variables import reads_seeds
from kormos.data.variables import snapshot
from kormos.objective.layout import Packing
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor

if TYPE_CHECKING:
    from kormos.objective.gauss_newton.compiled import GaussNewton

# Rows of data as tensors, in the structure that a function of them takes.
Chunk: TypeAlias = Structure
# A pair `(stacked, last)`: chunks of equal size along a new leading axis, or
# `None`, and one more chunk of any size, or `None`.
ChunkPair: TypeAlias = tuple[Chunk | None, Chunk | None]
# A pair, or one for each of the devices that share the rows.
SpreadPair: TypeAlias = ChunkPair | ByDevice
# A pair for each of the functions that make up a loss.
Chunks: TypeAlias = tuple[SpreadPair, ...]
# A function `(parts, frozen, term_factors, chunk) -> scalar`. Without `parts`
# and `frozen`, both `None`, it computes with the variables as they are.
ChunkLoss: TypeAlias = Callable[
    [list[Tensor] | None, list[Tensor] | None, Tensor, Chunk], Scalar
]
# A function `(..., chunk) -> tensors` of what a chunk adds to sums.
ChunkTerm: TypeAlias = Callable[..., tuple[Tensor, ...]]
# A function that compiles a function.
Compiler: TypeAlias = Callable[
    [Callable[..., Structure]], Callable[..., Structure]
]

_State = TypeVar("_State")


class Program:
    """Loss, gradient and Hessian product, compiled.

    Everything that may change between two calls is an argument, so that a
    program serves every fit of the same model and shapes:

    - `theta`: flat vector, in the dtype of the solver's arithmetic;
    - `frozen`: values of `frozen_variables`;
    - `term_factors`: vector of the factors by which terms enter the loss;
    - `chunks`: the data, a `ChunkPair` for each of the functions that make
      up the loss.

    Args:
        packing: the `Packing` of the variables.
        frozen_variables: the other variables that the loss reads.
        chunk_losses: the functions that make up the loss, which is the sum of
            each of them over all of its chunks.
        compile: function that compiles a function.
        compile_loop: function that compiles a function of a solver's state.
            Defaults to that of the backend.

    Attributes:
        is_verified: whether the compiled loss was compared with the loss
            without compilation.
        once: function that returns a function in the form that is fastest for
            one or two calls.
        traces: how often each function was traced; tests of the caches read it.
        graphs: what an eager backend records of the functions of a chunk.
    """

    def __init__(
        self,
        packing: Packing,
        frozen_variables: list[keras.Variable],
        chunk_losses: list[ChunkLoss],
        compile: Compiler,
        compile_loop: Compiler | None = None,
    ) -> None:
        self.packing = packing
        self.frozen_variables = frozen_variables
        self.is_verified = False
        self.traces: collections.Counter[str] = collections.Counter()
        self.chunk_losses = chunk_losses
        self.graphs = backend.Graphs()
        self._values, self._gradients, self._hessians = (
            [self.graphs.recorded(of_chunk(fn)) for fn in chunk_losses]
            for of_chunk in (
                self._value_of,
                self._value_and_grad_of,
                self._hvp_of,
            )
        )
        self.value = compile(self._value)
        self.value_and_grad = compile(self.trace_value_and_grad)
        self.hvp = compile(self.trace_hvp)

        # Code that XLA compiled draws other random numbers on TensorFlow, and
        # all functions of a fit must draw the same.
        draws = reads_seeds(frozen_variables)
        draws = draws and keras.backend.backend() == "tensorflow"
        self.once: Compiler = compile if draws else backend.once
        if compile_loop is None:
            compile_loop = compile if draws else backend.compile_loop
        self._compile_loop = compile_loop
        self._loops: dict[Hashable, Callable[..., Structure]] = {}

    @property
    def gauss_newton(self) -> "GaussNewton":
        """Derivatives of the outputs, if the loss is a function of outputs.

        Raises:
            ValueError: if it is not.
        """
        refuse_gauss_newton("a function that returns a scalar")

    def moved(self, packing: Packing, chunk_losses: list[ChunkLoss]) -> Self:
        """The same compiled functions, for other variables of these shapes.

        Args:
            packing: the `Packing` of these variables.
            chunk_losses: equal functions of these variables.
        """
        other = copy.copy(self)
        other.packing, other.chunk_losses = packing, chunk_losses
        return other

    def frozen_values(self) -> list[Tensor]:
        """Copies of the present values of `frozen_variables`."""
        return snapshot(self.frozen_variables)

    def compiled_loop(
        self, key: Hashable, fn: Callable[..., Structure]
    ) -> Callable[..., Structure]:
        """The function `fn(state, *args) -> state`, compiled once for a key.

        Args:
            key: a key that distinguishes this function from others of the
                program.
            fn: the function.
        """
        if key not in self._loops:
            self._loops[key] = self._compile_loop(fn)
        return self._loops[key]

    def _value(
        self,
        theta: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
        chunks: Chunks,
    ) -> Scalar:
        self.traces["value"] += 1
        known = theta, frozen, term_factors
        zeros = (scalar_zero(theta),)
        return sum_over_chunks(self._values, known, chunks, zeros)[0]

    def trace_value_and_grad(
        self,
        theta: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
        chunks: Chunks,
    ) -> tuple[Scalar, Tensor]:
        """Loss and gradient, for use inside a compiled function."""
        self.traces["value_and_grad"] += 1
        known = theta, frozen, term_factors
        zeros = scalar_zero(theta), ops.zeros_like(theta)
        return sum_over_chunks(self._gradients, known, chunks, zeros)

    def trace_hvp(
        self,
        theta: Tensor,
        vector: Tensor,
        frozen: list[Tensor],
        term_factors: Tensor,
        chunks: Chunks,
    ) -> Tensor:
        """The Hessian times a vector, for use inside a compiled function."""
        self.traces["hvp"] += 1
        known = theta, vector, frozen, term_factors
        zeros = (ops.zeros_like(theta),)
        return sum_over_chunks(self._hessians, known, chunks, zeros)[0]

    def _value_of(self, fn: ChunkLoss) -> ChunkTerm:
        """What a chunk adds to `value`."""

        def term(
            theta: Tensor, frozen: list[Tensor], factors: Tensor, chunk: Chunk
        ) -> tuple[Tensor, ...]:
            loss = fn(self.packing.unpack(theta), frozen, factors, chunk)
            return (ops.cast(loss, theta.dtype),)

        return term

    def _value_and_grad_of(self, fn: ChunkLoss) -> ChunkTerm:
        """What a chunk adds to `value_and_grad`."""
        differentiated = backend.value_and_grad(fn)

        def term(
            theta: Tensor, frozen: list[Tensor], factors: Tensor, chunk: Chunk
        ) -> tuple[Tensor, ...]:
            loss, gradients = differentiated(
                self.packing.unpack(theta), frozen, factors, chunk
            )
            return (
                ops.cast(loss, theta.dtype),
                self.packing.pack(gradients, theta.dtype),
            )

        return term

    def _hvp_of(self, fn: ChunkLoss) -> ChunkTerm:
        """What a chunk adds to `hvp`."""
        product = backend.hvp(fn)

        def term(
            theta: Tensor,
            vector: Tensor,
            frozen: list[Tensor],
            factors: Tensor,
            chunk: Chunk,
        ) -> tuple[Tensor, ...]:
            parts, tangents = map(self.packing.unpack, (theta, vector))
            products = product(parts, tangents, frozen, factors, chunk)
            return (self.packing.pack(products, theta.dtype),)

        return term


def refuse_gauss_newton(received: str) -> NoReturn:
    """Refuses a loss that is not a function of outputs.

    Args:
        received: a description of the loss.
    """
    raise ValueError(
        "Gauss-Newton methods need residuals, not only a loss: use "
        "`kormos.least_squares`, or a method such as 'lbfgs'. "
        f"Received: {received}"
    )


def scalar_zero(theta: Tensor) -> Scalar:
    """A zero in the dtype of a tensor."""
    return ops.zeros((), dtype=theta.dtype)


def sum_over_chunks(
    fns: Sequence[ChunkTerm],
    known: Sequence[Structure],
    chunks: Chunks,
    total: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Sums of tensors over the chunks of every function.

    Args:
        fns: functions `(*known, chunk) -> tensors`, whose values are added up.
        known: their first arguments.
        chunks: a pair for each of them.
        total: the initial sums: zeros.
    """
    zeros = total
    for fn, pair in zip(fns, chunks, strict=True):

        def add(
            total: tuple[Tensor, ...], chunk: Chunk, fn: ChunkTerm = fn
        ) -> tuple[Tensor, ...]:
            pairs = zip(total, fn(*known, chunk), strict=True)
            return tuple(a + b for a, b in pairs)

        total = fold_chunks(add, pair, total, zeros, is_sum=True)
    return total


def fold_chunks(
    step: Callable[[_State, Chunk], _State],
    pair: SpreadPair,
    state: _State,
    start: _State,
    is_sum: bool = False,
) -> _State:
    """Applies `state = step(state, chunk)` over a pair's chunks.

    Devices that share the rows do so at the same time. What each of them adds
    to its state is added up.

    Args:
        step: the function.
        pair: the pair.
        state: the state before.
        start: the state with which all devices but the first begin.
        is_sum: whether the function adds a sum over rows to the state.
    """
    ends: list[_State] = []
    for device, own in by_device(pair):
        with backend.on_device(device):
            first = start if ends else state
            ends.append(_fold(step, own, first, is_sum))
    state = ends[0]
    for end in ends[1:]:
        state = tree.map_structure(
            lambda a, b, before: a + (b - before), state, end, start
        )
    return state


def by_device(pair: SpreadPair) -> list[tuple[str | None, ChunkPair]]:
    """Each device that has a part of the rows, with its chunks.

    The device is `None` if one device has all rows.
    """
    return [*pair.items()] if isinstance(pair, dict) else [(None, pair)]


def _fold(
    step: Callable[[_State, Chunk], _State],
    pair: ChunkPair,
    state: _State,
    is_sum: bool,
) -> _State:
    """Applies `state = step(state, chunk)` over chunks, in order."""

    def through(stacked: Chunk, state: _State) -> _State:
        return ops.fori_loop(
            0,
            leading_size(stacked),
            lambda i, s: step(s, take(stacked, i)),
            state,
        )

    stacked, last = pair
    if stacked is not None:
        if is_sum:
            state = backend.sum_by_device(through, stacked, state)
        else:
            state = through(stacked, state)
    if last is not None:
        state = step(state, last)
    return state


def each_chunk(pair: SpreadPair) -> Iterator[Chunk]:
    """Yields a pair's chunks, one after the other."""
    for _, (stacked, last) in by_device(pair):
        if stacked is not None:
            for i in range(leading_size(stacked)):
                yield take(stacked, i)
        if last is not None:
            yield last


def count_rows(pair: SpreadPair) -> int:
    """The rows in all of a pair's chunks."""
    rows = 0
    for _, (stacked, last) in by_device(pair):
        rows += 0 if last is None else leading_size(last)
        if stacked is not None:
            chunks, size = _shape(stacked)[:2]
            rows += chunks * size
    return rows


def leading_size(structure: Structure) -> int:
    """The size of the first dimension of the arrays in a structure."""
    return _shape(structure)[0]


def _shape(structure: Structure) -> tuple[int, ...]:
    """The shape of the first array in a structure."""
    return next(a for a in tree.flatten(structure) if a is not None).shape


def take(stacked: Structure, index: Scalar) -> Chunk:
    """One of the stacked chunks."""
    return tree.map_structure(
        lambda a: None if a is None else a[index], stacked
    )
