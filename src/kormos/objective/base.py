"""Objectives: losses as functions of one flat vector."""

import copy
import functools
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterator
from typing import Any
from typing import Self

import keras
import numpy as np
import numpy.typing as npt
from keras import ops
from keras import tree

from kormos import backend
from kormos.arithmetic.vectors import number
from kormos.arithmetic.vectors import rounding
from kormos.arithmetic.vectors import to_array
from kormos.data.variables import have_changed
from kormos.data.variables import reads_seeds
from kormos.float64.settings import turn
from kormos.objective.compiled import Chunks
from kormos.objective.compiled import Program
from kormos.objective.compiled import count_rows
from kormos.objective.compiled import each_chunk
from kormos.objective.gauss_newton.host import HostGaussNewton
from kormos.objective.units import size_of
from kormos.solvers.protocols import GaussNewtonMatrix
from kormos.types import Array
from kormos.types import Matrix
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor
from kormos.types import Vector


class FlatObjective:
    """A loss as a function of one flat vector.

    A vector given as a NumPy array (or a list) is evaluated with float64
    arithmetic around the model's own, and the results are NumPy arrays, as
    SciPy needs them. For a vector given as a tensor of the backend, the
    results are tensors of its dtype and can be traced: inside `tf.function`
    or `jax.jit`, by TensorFlow Probability, optax or optimistix.

    Evaluating assigns nothing to any variable.

    Subclasses set `program`, and its arguments `_frozen`, `_term_factors` and
    `_chunks`. For data that are not in memory, `_chunks` is `None` and they
    override `pieces`.

    Attributes:
        program: the compiled functions.
        can_widen: whether `widen` can be called.
        unused_variables: the variables that the loss never reads.
    """

    program: Program
    # Whether the derivatives are the user's, and not made from the loss.
    has_own_derivatives = False
    can_widen = False
    unused_variables: list[keras.Variable]
    _chunks: Chunks | None = ((None, ()),)
    _frozen: list[Tensor]
    _term_factors: Vector = np.ones(1)

    def _factors(self, is_steep: bool) -> Tensor:
        """The term factors, as an argument of `program`.

        Args:
            is_steep: as `pieces` takes it.
        """
        return self._steep_factor_tensor if is_steep else self._factor_tensor

    @functools.cached_property
    def _factor_tensor(self) -> Tensor:
        return _tensor(self._term_factors)

    @functools.cached_property
    def _steep_factor_tensor(self) -> Tensor:
        return _tensor(self._steep_factors)

    @property
    def _steep_factors(self) -> Vector:
        """The term factors of a loss that is differentiated."""
        return self._term_factors * self._loss_unit

    @functools.cached_property
    def _loss_unit(self) -> float:
        """The power of two by which a loss is multiplied to differentiate it.

        See `units.py`.
        """
        return 1.0

    def _set_term_factors(self, term_factors: Vector) -> None:
        self._term_factors = term_factors
        self.__dict__.pop("_factor_tensor", None)
        self.__dict__.pop("_steep_factor_tensor", None)

    @property
    def is_streamed(self) -> bool:
        """Whether data are read again at every evaluation."""
        return self._chunks is None

    @property
    def row_counts(self) -> list[int]:
        """The rows of data that each of the program's functions is given."""
        assert self._chunks is not None  # Streams override this.
        return [count_rows(pair) for pair in self._chunks]

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables that the flat vector holds, in order."""
        return list(self.program.packing.variables)

    @property
    def size(self) -> int:
        """The number of parameters."""
        return self.program.packing.size

    def name_of(self, index: int) -> str:
        """What to call an entry of the flat vector.

        Args:
            index: its place in the vector.

        Returns:
            The path of its variable, with the entry's place in that.
        """
        for variable in self.variables:
            count = int(np.prod(variable.shape))
            if index < count:
                place = np.unravel_index(index, variable.shape or (1,))
                inside = ", ".join(str(int(i)) for i in place)
                return f"{variable.path}[{inside}]"
            index -= count
        raise IndexError(index)

    @property
    def epsilon(self) -> float:
        """The spacing of numbers near one in the coarsest dtype in use."""
        return max(rounding(d) for d in self.program.packing.dtypes)

    @property
    def rounding(self) -> float:
        """The spacing of numbers near one in the coarsest variable."""
        return self.program.packing.rounding

    def widen(self) -> None:
        """Evaluates in float64 from now on."""
        self.can_widen = False
        self._widen()

    def widened(self) -> Self:
        """A copy that evaluates in float64.

        Raises:
            Float64Error: if a part of the loss cannot be computed in float64.
        """
        other = copy.copy(self)
        other._prepare_wide()
        other.widen()
        return other

    def _prepare_wide(self) -> None:
        """Refuses a loss that cannot be computed in float64."""

    def _widen(self) -> None:
        raise NotImplementedError

    def refresh(self) -> None:
        """Reads the values of the variables that the loss keeps fixed."""
        self._frozen = self.program.frozen_values()

    def followed(self, before: Vector, theta: Vector) -> Vector | None:
        """Takes over values that other code, a callback say, has assigned.

        Args:
            before: what `initial_position` returned before that code ran.
            theta: the point that was assigned then. The variables round it.

        Returns:
            The point to continue from, if the loss or the variables have
            changed, or `None`.
        """
        present = self.initial_position()
        is_moved = not np.array_equal(before, present, equal_nan=True)
        frozen = self.program.frozen_variables
        if not (is_moved or have_changed(frozen, self._frozen)):
            return None
        self.refresh()
        return present if is_moved else theta

    def initial_position(self) -> Vector:
        """The variables' present values: float64 array of shape `(size,)`."""
        return self.program.packing.read()

    def assign(self, theta: Vector | Tensor) -> None:
        """Writes a flat vector, array or tensor, into the variables."""
        if not isinstance(theta, (np.ndarray, list, tuple)):
            theta = ops.convert_to_numpy(theta)
        self.program.packing.write(self._checked(theta, "theta"))

    @property
    def draws(self) -> bool:
        """Whether the loss may draw random numbers."""
        return reads_seeds(self.program.frozen_variables)

    def reference(self, theta: Vector) -> tuple[Vector, float]:
        """The loss without compilation, with a point in the variables.

        It assigns the point for the time of the evaluation.

        Returns:
            The point as the variables round it, and the loss there, or NaN
            if computing it raises an error.
        """
        variables = self.variables
        with turn("changed"):
            kept = [np.array(ops.convert_to_numpy(v.value)) for v in variables]
            try:
                self.assign(theta)
                point = self.initial_position()
                with backend.wide():
                    return point, self._uncompiled()
            except Exception:
                # The evaluations of the fit will raise the error again.
                return point, np.nan
            finally:
                for variable, value in zip(variables, kept, strict=True):
                    variable.assign(value)

    def _uncompiled(self) -> float:
        """The loss at the values of the variables, without compilation."""
        losses = []
        for _, term_factors, pairs in self.pieces():
            for fn, pair in zip(self.program.chunk_losses, pairs, strict=True):
                call = self._once(functools.partial(fn, None, None))
                chunks = each_chunk(pair) if any(pair) else [()]
                losses += [
                    number(call(term_factors, chunk)) for chunk in chunks
                ]
        return float(np.sum(losses))

    def _once(self, fn: Callable[..., Structure]) -> Callable[..., Structure]:
        """The fastest way to call a function once or twice."""
        return backend.once(fn)

    def value(self, theta: Tensor) -> Scalar:
        """The loss at `theta`."""
        if is_host(theta):
            with backend.wide():
                theta = self._checked(theta, "theta")
                return number(self.total(self.program.value, theta))
        return self.total(self.program.value, theta)

    def value_and_grad(self, theta: Tensor) -> tuple[Scalar, Tensor]:
        """The loss at `theta`, and its gradient of shape `(size,)`."""
        if is_host(theta):
            with backend.wide():
                theta = self._checked(theta, "theta")
                loss, grad = self._steep(self.program.value_and_grad, theta)
                return number(loss), to_array(grad)
        return self._steep(self.program.value_and_grad, theta)

    __call__ = value_and_grad

    def hvp(self, theta: Tensor, vector: Tensor) -> Tensor:
        """The Hessian at `theta` times `vector`, of shape `(size,)`."""
        if is_host(theta):
            theta = self._checked(theta, "theta")
            vector = self._checked(vector, "vector")
            size = size_of(vector)
            with backend.wide():
                product = self._steep(self.program.hvp, theta, vector / size)
                return to_array(product) * size
        return self._steep(self.program.hvp, theta, vector)

    def hessian(self, theta: Vector) -> Matrix:
        """The dense Hessian at `theta`, by `size` products.

        Args:
            theta: a NumPy array.
        """
        rows = [self.hvp(theta, row) for row in np.eye(self.size)]
        hessian = np.stack(rows)
        return (hessian + hessian.T) / 2

    def gauss_newton(self) -> GaussNewtonMatrix:
        """The Gauss-Newton matrix of the loss.

        Raises:
            ValueError: if the loss is not one of outputs with curvature.
        """
        return HostGaussNewton(self.program.gauss_newton, self)

    def traceable(
        self,
    ) -> tuple[Callable[..., tuple[Scalar, Tensor]], tuple[Structure, ...]]:
        """Loss and gradient for use inside a compiled function.

        Returns:
            A function `(theta, *arguments) -> (loss, gradient)` of tensors,
            and the arguments to call it with.
        """

        def value_and_grad(
            theta: Tensor, unit: Tensor, *arguments: Structure
        ) -> tuple[Scalar, Tensor]:
            loss, grad = self.program.trace_value_and_grad(theta, *arguments)
            return loss / unit, grad / unit

        unit = _tensor(np.array(self._loss_unit))
        return value_and_grad, (unit, *next(self.pieces(is_steep=True)))

    def compiled_loop(
        self, key: Hashable, fn: Callable[..., Structure]
    ) -> Callable[..., Structure]:
        """The function `fn(state, *args) -> state`, compiled once for a key."""
        return self.program.compiled_loop(key, fn)

    def pieces(
        self, is_steep: bool = False
    ) -> Iterator[tuple[list[Tensor], Tensor, Chunks]]:
        """Yields the arguments `(frozen, term_factors, chunks)` of `program`.

        Each time with another part of the data: the values of the functions
        are to be added up.

        Args:
            is_steep: whether to multiply the loss by `_loss_unit`, because it
                is differentiated.
        """
        assert self._chunks is not None  # Streams override this.
        yield self._frozen, self._factors(is_steep), self._chunks

    def _steep(
        self, fn: Callable[..., Structure], *vectors: Tensor
    ) -> Structure:
        """As `total`, for a function that differentiates the loss.

        It multiplies the loss by `_loss_unit`, so that derivatives are in the
        range of float32, and divides the result by that.
        """
        total = self.total(fn, *vectors, is_steep=True)
        if self._loss_unit == 1:
            return total
        return tree.map_structure(
            lambda value: (
                backend.view(value) / self._loss_unit
                if is_host(vectors[0])
                else value / self._loss_unit
            ),
            total,
        )

    def total(
        self,
        fn: Callable[..., Structure],
        *vectors: Tensor,
        is_steep: bool = False,
    ) -> Structure:
        """The sum of a compiled function's values over all the data.

        Args:
            fn: a function of `program`.
            *vectors: its first arguments: NumPy arrays, or tensors.
            is_steep: whether to multiply the loss by `_loss_unit`.
        """
        if not is_host(vectors[0]):
            return self._traced(fn, is_steep, *vectors)
        pieces = self.pieces(is_steep)
        total = fn(*vectors, *next(pieces))
        for piece in pieces:
            total = tree.map_structure(_add, total, fn(*vectors, *piece))
        return total

    def _traced(
        self, fn: Callable[..., Structure], is_steep: bool, *vectors: Tensor
    ) -> Structure:
        if self._chunks is None:
            raise ValueError(
                "An objective that streams its data reads them in Python, "
                "which no compiled function can: give vectors as NumPy "
                f"arrays. Received: a {type(vectors[0]).__name__}"
            )
        factors = self._steep_factors if is_steep else self._term_factors
        return fn(*vectors, self._frozen, factors, self._chunks)

    def _checked(self, vector: npt.ArrayLike, name: str) -> Vector:
        vector = np.asarray(vector, dtype="float64")
        if vector.shape != (self.size,):
            raise ValueError(
                f"Argument `{name}` must be a vector of the {self.size} "
                f"parameters. Received: shape {vector.shape}"
            )
        return vector


def _tensor(array: Array) -> Tensor:
    with backend.wide():
        return ops.convert_to_tensor(array, dtype="float64")


def _add(total: Tensor, value: Tensor) -> Array:
    # NumPy waits for the values. A backend that computes asynchronously would
    # otherwise have many pieces in memory at once.
    return backend.view(total) + backend.view(value)


def is_host(vector: Any) -> bool:
    """Whether a vector is one of NumPy, or a list, rather than a tensor."""
    return isinstance(vector, (np.ndarray, list, tuple))
