"""Functions that read Keras variables, as functions of their values."""

import contextlib
import copy
import inspect
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import Self

import keras

from kormos import backend
from kormos.data.variables import ReadRecorder
from kormos.data.variables import float64_values
from kormos.data.variables import reads_seeds
from kormos.data.variables import snapshot
from kormos.float64.evaluation import Arithmetic
from kormos.float64.modules import refuse_hidden_reads
from kormos.objective.functions.conversions import naming_conversions
from kormos.types import Structure
from kormos.types import Tensor


class VariableReader:
    """A function that reads Keras variables, and which of them it reads.

    Args:
        fn: the function.
        variables: the variables whose values become arguments.
        scope: the `ReadRecorder` of a call of the function.
        arithmetic: the `Arithmetic` of that call.

    Attributes:
        fn: the function.
        variables: the variables whose values become arguments.
        frozen_variables: the other variables that were read.
        unused_variables: those of `variables` that were not read.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        variables: Sequence[keras.Variable],
        scope: ReadRecorder,
        arithmetic: Arithmetic,
    ) -> None:
        self.fn = fn
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

    @property
    def is_plain(self) -> bool:
        """Whether the function calls no layers and draws no random numbers.

        Only then may an equal function of other variables use what was compiled
        for this one.
        """
        return not (self._arithmetic.owners or self.draws)

    def moved(
        self, fn: Callable[..., Any], variables: Sequence[keras.Variable]
    ) -> Self:
        """The same for an equal function of other variables.

        Args:
            fn: the function.
            variables: the variables whose values become arguments.
        """
        other = copy.copy(self)
        other.fn, other.variables = fn, list(variables)
        own = dict(zip(map(id, self.variables), variables, strict=True))
        other.unused_variables = [own[id(v)] for v in self.unused_variables]
        return other

    def become(self, other: Self) -> None:
        """Takes the function and the variables of an equal one."""
        # At once, because another thread may call this.
        self.__dict__.update(
            fn=other.fn,
            variables=other.variables,
            unused_variables=other.unused_variables,
        )

    def in_float64(self) -> Self:
        """A copy that is evaluated in float64."""
        other = copy.copy(self)
        other._arithmetic = self._arithmetic.in_float64()
        return other

    def check_width(self) -> None:
        """Refuses a function that does not compute in its precision."""
        raise NotImplementedError

    def _check_width(
        self, call: Callable[[list[Tensor], list[Tensor]], Structure]
    ) -> None:
        """Refuses a function that does not compute in its precision.

        Args:
            call: the function, of the values of `variables` and of
                `frozen_variables`.
        """
        parts = float64_values(self.variables)
        frozen = snapshot(self.frozen_variables)
        self._arithmetic.check(backend.dry_run, call, call, parts, frozen)


class StatelessFunction(VariableReader):
    """A function that reads Keras variables, as a function of their values.

    It is called with `(parts, frozen)`, the values of `variables` and of
    `frozen_variables`, and assigns nothing.

    Args:
        fn: backend-neutral function of no arguments that reads variables.
        variables: the variables whose values become arguments.
        name: the name of `fn` in errors.

    Attributes:
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
                "reads the variables themselves, such as `lambda: 1 - v[0]`, "
                f"not a function of a vector. Received: {fn!r}"
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
        if 0 in value.shape:
            raise ValueError(
                f"Function `{name}` must return at least one number. "
                f"Received: a tensor of shape {tuple(value.shape)}"
            )
        super().__init__(fn, variables, scope, arithmetic)
        refuse_hidden_reads(
            self.unused_variables,
            lambda: arithmetic.call(backend.attempt, fn),
        )
        self._name = name
        self.shape = tuple(value.shape)
        self.dtype = keras.backend.standardize_dtype(value.dtype)

    def __call__(
        self, parts: list[Tensor] | None, frozen: list[Tensor] | None
    ) -> Tensor:
        # Another thread may put an equal function in its place meanwhile.
        now = copy.copy(self)
        with (
            naming_conversions(now._name, now.variables),
            now.scope(parts, frozen),
        ):
            return read(now.fn())

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
