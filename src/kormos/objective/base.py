"""Objectives: losses as functions of one flat vector."""

import copy
import dataclasses
import functools
import types
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Mapping
from typing import Self

import keras
import numpy as np
import numpy.typing as npt

from kormos import backend
from kormos.arithmetic.vectors import number
from kormos.arithmetic.vectors import rounding
from kormos.arithmetic.vectors import to_array
from kormos.data.variables import assign
from kormos.data.variables import is_seed
from kormos.data.variables import restored
from kormos.data.watched import Copies
from kormos.data.watched import Watched
from kormos.float64.settings import turn
from kormos.objective.arguments import ProgramArguments
from kormos.objective.arguments import is_host
from kormos.objective.arguments import to_tensor
from kormos.objective.compiled import Program
from kormos.objective.gauss_newton.host import HostGaussNewton
from kormos.objective.units import size_of
from kormos.processes import Processes
from kormos.solvers.protocols import GaussNewtonMatrix
from kormos.solvers.protocols import PartsObjective
from kormos.types import Matrix
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor
from kormos.types import Vector


class FlatObjective:
    """A loss as a function of one flat vector.

    A vector that is a NumPy array (or a list) is evaluated in float64, except
    for the model, which computes in its own dtype, and the results are NumPy
    arrays, as SciPy needs them. If the vector is a tensor of the backend, the
    results are tensors of its dtype and can be traced: inside `tf.function` or
    `jax.jit`, by TensorFlow Probability, optax or optimistix.

    An evaluation assigns nothing to any variable.

    Subclasses set `program` and `arguments`.

    Attributes:
        program: the compiled functions.
        arguments: their arguments, besides vectors.
        has_float64: whether `go_on_in_float64` can be called.
        unused_variables: the variables that the loss never reads.
    """

    program: Program
    arguments = ProgramArguments([])
    # Whether the user computes the derivatives, rather than the backend.
    has_own_derivatives = False
    has_float64 = False
    unused_variables: list[keras.Variable]
    # The values that `assign` gave to variables that the loss keeps fixed, by
    # the `id` of the variable. The loss still uses their earlier values.
    _assigned: Mapping[int, Tensor] = types.MappingProxyType({})

    @functools.cached_property
    def _watched(self) -> Watched:
        """The trained variables, before callbacks and after them."""
        return Watched(self.variables)

    @functools.cached_property
    def _copies(self) -> Copies:
        """Whether other variables differ from their copies in `arguments`."""
        return Copies()

    @functools.cached_property
    def _loss_unit(self) -> float:
        """The power of two by which a loss is multiplied to differentiate it.

        See `units.py`.
        """
        return 1.0

    @property
    def is_streamed(self) -> bool:
        """Whether data are read again at every evaluation."""
        return self.arguments.chunks is None

    @property
    def is_read_alike(self) -> bool:
        """Whether data that are read again begin with the same rows."""
        return True

    @property
    def is_hosted(self) -> bool:
        """Whether sums over data are made in Python, at every evaluation.

        The loss then cannot be part of a compiled function.
        """
        return self.arguments.is_hosted

    @property
    def readings(self) -> int:
        """The number of values in `traceable` besides loss and gradient."""
        return 0

    @property
    def processes(self) -> Processes:
        """The processes, each with a part of the data."""
        return self.arguments.processes

    @property
    def row_counts(self) -> list[int]:
        """The rows of data, for each of the program's functions."""
        return self.arguments.row_counts()

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables that the flat vector holds, in order."""
        return list(self.program.packing.variables)

    @property
    def size(self) -> int:
        """The number of parameters."""
        return self.program.packing.size

    def name_of(self, index: int) -> str:
        """The name of an entry of the flat vector."""
        return self.program.packing.name_of(index)

    @property
    def evaluation_eps(self) -> float:
        """The machine epsilon of the coarsest dtype in use."""
        return max(map(rounding, set(self.program.packing.dtypes)))

    @property
    def storage_eps(self) -> float:
        """The machine epsilon of the coarsest variable."""
        return self.program.packing.storage_eps

    def go_on_in_float64(self) -> None:
        """Evaluates in float64 from now on."""
        self.has_float64 = False
        self._go_on_in_float64()

    def in_float64(self) -> Self:
        """A copy that evaluates in float64.

        Raises:
            Float64Error: if a part of the loss cannot be computed in float64.
        """
        other = copy.copy(self)
        other._prepare_float64()
        other.go_on_in_float64()
        return other

    def _prepare_float64(self) -> None:
        """Refuses a loss that cannot be computed in float64."""

    def _go_on_in_float64(self) -> None:
        raise NotImplementedError

    def refresh(self) -> None:
        """Reads the values of the variables that the loss keeps fixed."""
        frozen = self.program.frozen_values()
        self.arguments = dataclasses.replace(self.arguments, frozen=frozen)
        self._assigned = {}

    def note(self) -> None:
        """Notes the variables' values, before other code may assign some."""
        self._watched.note()

    def followed(self, theta: Vector) -> Vector | None:
        """Adopts values that other code, such as a callback, has assigned.

        Args:
            theta: the point that was assigned before the latest `note`. The
                variables round it.

        Returns:
            The point to continue from, if the loss or the variables have
            changed, or `None`.
        """
        is_moved = (
            self._watched.may_have_changed()
            # Keras' own steps on JAX delete what was noted.
            and not self.program.packing.holds(theta)
        )
        frozen = self.program.frozen_variables
        values = [
            self._assigned.get(id(v), value)
            for v, value in zip(frozen, self.arguments.frozen, strict=True)
        ]
        if not (is_moved or self._copies.differ(frozen, values)):
            return None
        self.refresh()
        return self.initial_position() if is_moved else theta

    def initial_position(self) -> Vector:
        """Returns the present values of the variables.

        Returns:
            A float64 NumPy array of shape `(size,)`, of all variables in order.
        """
        return self.program.packing.read()

    def assign(self, theta: Vector | Tensor) -> None:
        """Assigns a flat vector to the variables.

        Args:
            theta: Array or tensor of shape `(size,)`, of all variables.

        Raises:
            ValueError: If the shape is not `(size,)`.
        """
        if not isinstance(theta, (np.ndarray, list, tuple)):
            theta = backend.to_numpy(theta)
        self.program.packing.write(self._checked(theta, "theta"))

    def in_memory(self) -> Self:
        """The same loss; of the first rows only if data are streamed."""
        return self

    def reference(self, theta: Vector) -> tuple[Vector, float]:
        """The loss without compilation, with a point in the variables.

        It assigns the point during the evaluation, and the values that the loss
        keeps fixed, so that it draws the same random numbers as a compiled
        loss.

        Returns:
            The point as the variables round it, and the loss there, or NaN
            if computing it raises an error.
        """
        chunk_losses = self.program.chunk_losses
        frozen = self.program.frozen_variables
        others = [
            (variable, value)
            for variable, value in zip(
                frozen, self.arguments.frozen, strict=True
            )
            if is_seed(variable) or self._copies.differ([variable], [value])
        ]
        changed = [*self.variables, *(variable for variable, _ in others)]
        with turn("changed"), restored(changed):
            self.program.packing.write(self._checked(theta, "theta"))
            point = self.initial_position()
            for variable, value in others:
                assign(variable, value)
            with backend.float64():
                loss = self.arguments.uncompiled(chunk_losses, self._once)
        return point, loss

    def _once(self, fn: Callable[..., Structure]) -> Callable[..., Structure]:
        """The function in the form that is fastest for one or two calls."""
        return self.program.once(fn)

    def value(self, theta: Tensor) -> Scalar:
        """Computes the loss at a point.

        Args:
            theta: Array or tensor of shape `(size,)`.

        Returns:
            A float for an array, a scalar tensor for a tensor.

        Raises:
            ValueError: If the shape is not `(size,)`.
        """
        total = functools.partial(self.arguments.total, shapes=[()])
        if is_host(theta):
            with backend.float64():
                theta = self._checked(theta, "theta")
                return number(total(self.program.value, theta))
        return total(self.program.value, theta)

    def value_and_grad(self, theta: Tensor) -> tuple[Scalar, Tensor]:
        """Computes the loss and its gradient at a point.

        Args:
            theta: Array or tensor of shape `(size,)`.

        Returns:
            A tuple `(loss, gradient)`: a float and a float64 NumPy array of
            shape `(size,)` for an array, tensors for a tensor.

        Raises:
            ValueError: If the shape is not `(size,)`.
        """
        derivatives = functools.partial(
            self.arguments.derivatives,
            self.program.value_and_grad,
            shapes=[(), (self.size,)],
            unit=self._loss_unit,
        )
        if not is_host(theta):
            return derivatives(theta)
        with backend.float64():
            loss, grad = derivatives(self._checked(theta, "theta"))
            return number(loss), to_array(grad)

    __call__ = value_and_grad

    def hvp(self, theta: Tensor, vector: Tensor) -> Tensor:
        """Computes the product of the Hessian at a point and a vector.

        Args:
            theta: Array or tensor of shape `(size,)`, the point.
            vector: Array or tensor of shape `(size,)`.

        Returns:
            An array or a tensor of shape `(size,)`, as `theta`.

        Raises:
            ValueError: If a shape is not `(size,)`.
        """
        derivatives = functools.partial(
            self.arguments.derivatives,
            self.program.hvp,
            shapes=[(self.size,)],
            unit=self._loss_unit,
        )
        if not is_host(theta):
            return derivatives(theta, vector)
        theta = self._checked(theta, "theta")
        vector = self._checked(vector, "vector")
        size = size_of(vector)
        with backend.float64():
            return to_array(derivatives(theta, vector / size)) * size

    def hessian(self, theta: Vector) -> Matrix:
        """The dense Hessian at `theta`, by `size` products.

        Args:
            theta: a NumPy array.
        """
        rows = [self.hvp(theta, row) for row in np.eye(self.size)]
        hessian = np.stack(rows)
        return (hessian + hessian.T) / 2

    def cut_for_jacobians(self) -> None:
        """Makes chunks so small that the derivatives of their rows fit."""

    def gauss_newton(self) -> GaussNewtonMatrix:
        """The Gauss-Newton matrix of the loss.

        Raises:
            ValueError: if the loss is not one of outputs with curvature.
        """
        return HostGaussNewton(self.program.gauss_newton, self)

    def in_parts(
        self, lower: Vector | None, upper: Vector | None
    ) -> PartsObjective | None:
        """The loss without the kinks of L1 regularizers, if it has any.

        Args:
            lower, upper: the bounds, `(size,)`, or `None`.
        """
        del lower, upper
        return None

    def traceable(
        self,
    ) -> tuple[Callable[..., tuple[Tensor, ...]], tuple[Structure, ...]]:
        """Loss and gradient for use inside a compiled function.

        Returns:
            A function `(theta, *arguments) -> (loss, gradient)` of tensors,
            and the arguments to call it with. Where there are `readings`, the
            function returns them too.
        """

        trace = self._traced()

        def value_and_grad(
            theta: Tensor, unit: Tensor, *arguments: Structure
        ) -> tuple[Tensor, ...]:
            loss, grad, *readings = trace(theta, *arguments)
            return loss / unit, grad / unit, *readings

        unit = to_tensor(np.array(self._loss_unit))
        pieces = self.arguments.pieces(self._loss_unit)
        return value_and_grad, (unit, *next(pieces))

    def _traced(self) -> Callable[..., tuple[Tensor, ...]]:
        """The function for `traceable`, whose loss is still in the unit."""
        return self.program.trace_value_and_grad

    def traceable_hvp(self) -> Callable[..., Tensor]:
        """The Hessian times a vector, for use inside a compiled function.

        Returns:
            A function `(theta, vector, *arguments) -> product` of tensors,
            with the arguments that `traceable` returns.
        """

        def hvp(
            theta: Tensor, vector: Tensor, unit: Tensor, *arguments: Structure
        ) -> Tensor:
            return self.program.trace_hvp(theta, vector, *arguments) / unit

        return hvp

    def traceable_gauss_newton(self) -> Callable[..., Tensor]:
        """Like `traceable_hvp`, with the Gauss-Newton matrix.

        Raises:
            ValueError: if the loss is not one of outputs with curvature.
        """
        trace = self.program.gauss_newton.trace_product

        def product(
            theta: Tensor, vector: Tensor, unit: Tensor, *arguments: Structure
        ) -> Tensor:
            return trace(theta, vector, *arguments) / unit

        return product

    def compiled_loop(
        self, key: Hashable, fn: Callable[..., Structure]
    ) -> Callable[..., Structure]:
        """The function `fn(state, *args) -> state`, compiled once for a key."""
        return self.program.compiled_loop(key, fn)

    def _checked(self, vector: npt.ArrayLike, name: str) -> Vector:
        vector = np.asarray(vector, dtype="float64")
        if vector.shape != (self.size,):
            raise ValueError(
                f"Argument `{name}` must be a vector of the {self.size} "
                f"parameters. Received: shape {vector.shape}"
            )
        return vector
