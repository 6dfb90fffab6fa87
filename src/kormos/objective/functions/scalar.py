"""Functions of Keras variables: losses to minimize and constraints."""

import contextlib
import copy
import inspect
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import Self

import keras
import numpy as np
from keras import ops

from kormos import backend
from kormos.arithmetic.vectors import rounding
from kormos.arithmetic.vectors import to_array
from kormos.data.variables import ReadRecorder
from kormos.data.variables import have_changed
from kormos.data.variables import reads_seeds
from kormos.data.variables import snapshot
from kormos.data.variables import wide_values
from kormos.float64.evaluation import Arithmetic
from kormos.float64.evaluation import check_precision
from kormos.float64.evaluation import decide
from kormos.float64.evaluation import starts_wide
from kormos.float64.modules import refuse_hidden_reads
from kormos.objective.base import FlatObjective
from kormos.objective.compiled import Chunk
from kormos.objective.compiled import Program
from kormos.objective.functions.conversions import naming_conversions
from kormos.objective.layout import Packing
from kormos.types import Matrix
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor
from kormos.types import Vector


class VariableReader:
    """A function that reads Keras variables, and which of them it reads.

    Args:
        variables: the variables whose values become arguments.
        scope: the `ReadRecorder` of a call of the function.
        arithmetic: the `Arithmetic` of that call.

    Attributes:
        variables: the variables whose values become arguments.
        frozen_variables: the other variables that were read.
        unused_variables: those of `variables` that were not read.
    """

    def __init__(
        self,
        variables: Sequence[keras.Variable],
        scope: ReadRecorder,
        arithmetic: Arithmetic,
    ) -> None:
        self.variables = list(variables)
        self.frozen_variables = scope.reads_but(variables)
        read = {id(v) for v in [*scope.reads(), *arithmetic.reads()]}
        self.unused_variables = [v for v in variables if id(v) not in read]
        self._arithmetic = arithmetic

    @contextlib.contextmanager
    def scope(
        self, parts: list[Tensor] | None, frozen: list[Tensor] | None
    ) -> Iterator[keras.StatelessScope]:
        """A scope in which the variables have other values.

        Args:
            parts: values of `variables`, or `None` for their present ones.
            frozen: values of `frozen_variables`, or `None` with `parts`.
        """
        known = [*self.frozen_variables, *self.variables]
        if parts is None or frozen is None:
            scope = ReadRecorder()
            pairs = self._arithmetic.present(known)
        else:
            # Without `collect_losses`, `model.losses` would lack the losses
            # that layers add.
            scope = keras.StatelessScope(collect_losses=True)
            pairs = list(zip(known, [*frozen, *parts], strict=True))
        with self._arithmetic.scope(scope, pairs):
            yield scope

    @property
    def draws(self) -> bool:
        """Whether Keras draws random numbers in the function."""
        return reads_seeds(self.frozen_variables)

    @property
    def keeps_traces(self) -> bool:
        """Whether the backend may keep traces of what the function calls."""
        return self._arithmetic.keeps_traces

    def widened(self) -> Self:
        """A copy that is evaluated in float64."""
        other = copy.copy(self)
        other._arithmetic = self._arithmetic.widened()
        return other

    def _check_width(
        self, call: Callable[[list[Tensor], list[Tensor]], Structure]
    ) -> None:
        """Refuses a function that does not compute in its precision.

        Args:
            call: the function, of the values of `variables` and of
                `frozen_variables`.
        """
        parts = wide_values(self.variables)
        frozen = snapshot(self.frozen_variables)
        self._arithmetic.check(backend.dry_run, call, call, parts, frozen)


class StatelessFunction(VariableReader):
    """A function that reads Keras variables, as a function of their values.

    It is called with `(parts, frozen)`, the values of `variables` and of
    `frozen_variables`, and assigns nothing.

    Args:
        fn: backend-neutral function of no arguments that reads variables.
        variables: the variables whose values become arguments.
        name: what errors call `fn`.

    Attributes:
        fn: the function.
        shape: the shape of the tensor that it returns.
        dtype: the dtype of that tensor.
    """

    def __init__(
        self,
        fn: Callable[[], Tensor],
        variables: Sequence[keras.Variable],
        name: str,
    ) -> None:
        if not takes(fn, 0):
            raise ValueError(
                f"Argument `{name}` must be a function of no arguments that "
                "reads the variables themselves, `lambda: 1 - v[0]` say, not "
                f"a function of a vector. Received: {fn!r}"
            )
        arithmetic = Arithmetic()
        with (
            naming_conversions(name, variables),
            arithmetic.learning(),
            ReadRecorder() as scope,
        ):
            value = read(arithmetic.first_call(backend.attempt, fn))
        if not keras.ops.is_tensor(value):
            raise ValueError(
                f"Function `{name}` must return a tensor computed from "
                f"variables. Received: {value!r}"
            )
        if not keras.backend.is_float_dtype(value.dtype):
            raise ValueError(
                f"Function `{name}` must return floating-point numbers. "
                f"Received: a tensor of dtype {value.dtype}"
            )
        super().__init__(variables, scope, arithmetic)
        refuse_hidden_reads(
            self.unused_variables,
            lambda: arithmetic.call(backend.attempt, fn),
        )
        self.fn, self._name = fn, name
        self.shape = tuple(value.shape)
        self.dtype = keras.backend.standardize_dtype(value.dtype)

    def __call__(
        self, parts: list[Tensor] | None, frozen: list[Tensor] | None
    ) -> Tensor:
        with (
            naming_conversions(self._name, self.variables),
            self.scope(parts, frozen),
        ):
            return read(self.fn())

    def check_width(self) -> None:
        """Refuses a function that does not compute in its precision."""
        self._check_width(self)

    def frozen_values(self) -> list[Tensor]:
        """Copies of the present values of `frozen_variables`."""
        return snapshot(self.frozen_variables)


def read(value: Any) -> Any:
    """The value of a variable in the present scope; anything else as it is."""
    # TensorFlow treats a variable as a tensor, and would read its value only
    # outside of the scope.
    return value.value if isinstance(value, keras.Variable) else value


def takes(fn: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with this number of arguments."""
    try:
        inspect.signature(fn).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # A builtin function may have no signature.
        pass
    return True


class FunctionObjective(FlatObjective):
    """The loss that a function computes from variables.

    Args:
        loss_fn: backend-neutral function of no arguments that reads
            `keras.Variable`s and returns a scalar tensor.
        variables: list of the `keras.Variable`s to optimize.
        precision: `None`, `"float64"` or `"auto"`, as in `kormos.minimize`.
    """

    def __init__(
        self,
        loss_fn: Callable[[], Scalar],
        variables: list[keras.Variable],
        precision: str | None = None,
    ) -> None:
        check_precision(precision)
        packing = Packing(variables)
        function = StatelessFunction(loss_fn, packing.variables, "loss_fn")
        if function.shape != ():
            raise ValueError(
                "Function `loss_fn` must return a scalar; use a sum or a mean "
                f"of its terms. Received: a tensor of shape {function.shape}"
            )
        self.unused_variables = function.unused_variables
        self._function = function
        self._compile(packing)
        self.can_widen = decide(precision, self._prepare_wide)
        if self.can_widen and starts_wide(precision, packing.dtypes):
            self.widen()

    @property
    def epsilon(self) -> float:
        """The spacing of numbers near one in the arithmetic of the loss."""
        packing = self.program.packing
        if packing.dtype is not None:
            return rounding(packing.dtype)
        # Keras' operations may return a narrower dtype for float64.
        return max(super().epsilon, rounding(self._function.dtype))

    def _prepare_wide(self) -> None:
        # A function that fails in float64 is refused now, not during the fit.
        self._wide = self._function.widened()
        self._wide.check_width()

    def _once(self, fn: Callable[..., Structure]) -> Callable[..., Structure]:
        # The first call of the function has compiled each of its operations,
        # so that a direct call is fastest, unless it calls functions that are
        # traced anew each time.
        return super()._once(fn) if self._function.keeps_traces else fn

    def _widen(self) -> None:
        self._function = self._wide
        self._compile(Packing(self.variables, "float64"))

    def _compile(self, packing: Packing) -> None:
        function = self._function

        def chunk_loss(
            parts: list[Tensor] | None,
            frozen: list[Tensor] | None,
            term_factors: Tensor,
            chunk: Chunk,
        ) -> Scalar:
            del term_factors, chunk
            return function(parts, frozen)

        self.program = Program(
            packing, function.frozen_variables, [chunk_loss], backend.compile
        )
        self.refresh()


class VectorFunction:
    """A vector-valued function of variables, with its Jacobian.

    Args:
        fn: backend-neutral function of no arguments that reads variables and
            returns a tensor of any shape.
        packing: the `Packing` of the variables of the flat vector.
        name: what errors call `fn`.
    """

    def __init__(
        self, fn: Callable[[], Tensor], packing: Packing, name: str
    ) -> None:
        function = StatelessFunction(fn, packing.variables, name)
        if packing.dtype is not None:
            function = function.widened()
            function.check_width()
        self.size = int(np.prod(function.shape))
        self._function = function
        self._frozen = function.frozen_values()

        def vector(parts: list[Tensor], frozen: list[Tensor]) -> Tensor:
            return ops.reshape(function(parts, frozen), (-1,))

        derivatives = backend.jacobian(vector)

        def value_at(theta: Tensor, frozen: list[Tensor]) -> Tensor:
            return vector(packing.unpack(theta), frozen)

        def jacobian_at(theta: Tensor, frozen: list[Tensor]) -> Tensor:
            columns = [
                ops.reshape(ops.cast(c, theta.dtype), (self.size, -1))
                for c in derivatives(packing.unpack(theta), frozen)
            ]
            return ops.concatenate(columns, axis=1)

        self._value = backend.compile(value_at)
        self._jacobian = backend.compile(jacobian_at)

    def refresh(self) -> bool:
        """Reads the variables that it keeps fixed.

        Returns:
            Whether they have changed.
        """
        variables = self._function.frozen_variables
        is_other = have_changed(variables, self._frozen)
        if is_other:
            self._frozen = self._function.frozen_values()
        return is_other

    def value(self, theta: Vector) -> Vector:
        """The function's values at `theta`: float64 of shape `(size,)`."""
        with backend.wide():
            return to_array(self._value(theta, self._frozen))

    def jacobian(self, theta: Vector) -> Matrix:
        """Derivatives at `theta`: float64, `(size, number of parameters)`."""
        with backend.wide():
            return to_array(self._jacobian(theta, self._frozen))
