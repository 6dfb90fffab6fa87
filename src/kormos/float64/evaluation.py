"""The precision in which a function of Keras variables is evaluated.

Layers, losses and the inputs of functional models each compute in their own
dtype, whatever the dtype of the values that they receive. To evaluate a float32
model in float64, they get that dtype while they are traced (JAX, TensorFlow) or
run (PyTorch). The model itself does not change, and may be of any class.
"""

import contextlib
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import TypeVar

import keras
import numpy as np
from keras import tree

from kormos import backend
from kormos.arithmetic.vectors import rounding
from kormos.data.variables import ReadRecorder
from kormos.data.variables import to_float
from kormos.float64.choice import Float64Error
from kormos.float64.layer_calls import Call
from kormos.float64.layer_calls import Owner
from kormos.float64.layer_calls import recorded_calls
from kormos.float64.modules import Modules
from kormos.float64.narrow import constants
from kormos.float64.narrow import narrow_calls
from kormos.float64.narrow import narrow_leaves
from kormos.float64.narrow import targets
from kormos.float64.settings import is_true_float64
from kormos.float64.settings import precision
from kormos.float64.settings import turn
from kormos.types import Scalar
from kormos.types import Structure
from kormos.types import Tensor
from kormos.warn import warn

_Result = TypeVar("_Result")
# A variable and the value that it has in a scope.
_Pair = tuple[keras.Variable, Tensor]


class Arithmetic:
    """The precision of an evaluation.

    Args:
        dtype: `"float64"`, or `None` for the dtypes of layers and variables.

    Attributes:
        dtype: the argument.
        keeps_traces: whether the backend may keep traces that contain values of
            variables. Then every evaluation must have its own trace.
    """

    def __init__(self, dtype: str | None = None) -> None:
        self.dtype = dtype
        self._owners: dict[int, Owner] = {}
        self._constants: list[tuple[Owner, str]] = []
        self._modules = Modules()
        self.keeps_traces = False

    def in_float64(self) -> "Arithmetic":
        """The same layers and losses in float64.

        Raises:
            Float64Error: if there are quantized layers.
        """
        quantized = [
            owner.name
            for owner in self._owners.values()
            if getattr(owner, "quantization_mode", None) is not None
        ]
        if quantized:
            raise Float64Error(
                "Quantized layers compute in integers or float8, and cannot "
                "compute in float64 (`precision`): leave `precision` out. "
                f"Received: {', '.join(quantized)}, quantized"
            )
        other = Arithmetic("float64")
        other.include(self._owners.values())
        other._constants = [
            c for o in self._owners.values() for c in constants(o)
        ]
        other._modules = self._modules
        other.keeps_traces = self.keeps_traces
        return other

    @property
    def evaluation_eps(self) -> float:
        """The coarsest rounding of the layers that have weights to train."""
        dtypes = {
            owner.compute_dtype
            for owner in self._owners.values()
            if getattr(owner, "trainable_variables", None)
        }
        floats = filter(keras.backend.is_float_dtype, dtypes)
        return max(map(rounding, floats), default=0.0)

    def include(self, owners: Iterable[Owner]) -> None:
        """Adds layers and losses that must compute in the dtype."""
        for owner in owners:
            # A layer may use the weights of a layer that it never calls, as
            # recurrent layers do with their cells.
            is_layer = isinstance(owner, keras.Layer)
            parts = owner._flatten_layers() if is_layer else [owner]
            self._owners.update({id(part): part for part in parts})

    @property
    def owners(self) -> list[Owner]:
        """The included layers and losses."""
        return list(self._owners.values())

    def reads(self) -> list[keras.Variable]:
        """The variables that were read without Keras noticing it."""
        return self._modules.reads()

    @contextlib.contextmanager
    def learning(self) -> Iterator[None]:
        """A scope that includes every layer and loss that is called in it.

        They still compute in their own dtypes.
        """
        with (
            turn(None),
            recorded_calls() as calls,
            self._modules.learning(),
        ):
            yield
        self.include(call.owner for call in calls)
        self._modules.include(call.owner for call in calls)

    def first_call(
        self,
        run: Callable[..., _Result],
        fn: Callable[..., Structure],
        *args: Structure,
    ) -> _Result:
        """Calls `run(fn, *args)`, and determines `keeps_traces`.

        Args:
            run: function that calls `fn`.
            fn: function that reads variables.
            *args: structures of tensors.
        """
        # A tensor that the trace assigns to a variable, such as a seed, has no
        # value.
        with ReadRecorder():
            self.keeps_traces |= backend.keeps_traces(fn, *args)
        return self.call(run, fn, *args)

    def call(
        self,
        run: Callable[..., _Result],
        fn: Callable[..., Structure],
        *args: Structure,
    ) -> _Result:
        """Calls `run(fn, *args)` without a trace of an earlier call."""
        with self._own_trace():
            return run(fn, *args)

    def _own_trace(self) -> contextlib.AbstractContextManager[Any]:
        if self.keeps_traces:
            return backend.own_trace()
        return contextlib.nullcontext()

    def present(self, variables: Iterable[keras.Variable]) -> list[_Pair]:
        """Pairs of variables and their present values, for a `scope`."""
        return [(v, v.value) for v in variables] if self.dtype else []

    @contextlib.contextmanager
    def scope(
        self,
        stateless: keras.StatelessScope | None = None,
        pairs: Sequence[_Pair] = (),
    ) -> Iterator[None]:
        """A scope in which the included layers and losses compute in `dtype`.

        Args:
            stateless: a `keras.StatelessScope` to enter, or `None`.
            pairs: pairs of a variable and the value that it has in the scope.
        """
        with contextlib.ExitStack() as scopes:
            scopes.enter_context(turn(self.dtype))
            if self.dtype is not None:
                scopes.enter_context(precision(self.dtype))
                variables = [variable for variable, _ in pairs]
                scopes.enter_context(self._in_float64(self.dtype, variables))
            scopes.enter_context(self._own_trace())
            if stateless is not None:
                for variable, value in pairs:
                    if self.dtype is not None:
                        value = to_float(value, self.dtype)
                    stateless.add_update((variable, value))
                modules = self._modules.scope(stateless, self.dtype)
                scopes.enter_context(modules)
                scopes.enter_context(stateless)
            yield

    def check(
        self,
        run: Callable[..., Structure],
        fn: Callable[..., Structure],
        loss: Callable[..., Structure],
        parts: Sequence[Tensor],
        *args: Structure,
    ) -> None:
        """Refuses values or gradients that are not computed in the precision.

        Args:
            run: function `(fn, *args)` that calls `fn(*args)`.
            fn: function of `parts` and `args` that must be computed entirely in
                the precision.
            loss: function of the same arguments, which is differentiated. It
                may return a structure.
            parts: values of the variables to differentiate by.
            *args: the other arguments of both functions.

        Raises:
            Float64Error: naming the first layer or loss that computes in a
                lower precision.
        """

        def total(parts: Sequence[Tensor], *args: Structure) -> Scalar:
            leaves = tree.flatten(loss(parts, *args))
            return sum(keras.ops.sum(leaf) for leaf in leaves)

        with self.scope(), recorded_calls() as calls:
            outputs = _or_refuse(calls, run, fn, parts, *args)
            narrow = narrow_calls(calls)
            if narrow or narrow_leaves(outputs):
                raise Float64Error(
                    f"With {self.dtype} (`precision`), everything must compute "
                    "in this dtype: remove casts to another dtype from the "
                    "code, or build the model after `kormos.enable_float64()`. "
                    "Received: "
                    + (_name(narrow[0].owner) if narrow else "a value")
                    + ", in float32"
                )
            calls.clear()
            slopes = backend.value_and_grad(total)
            _or_refuse(calls, run, slopes, parts, *args)

    @contextlib.contextmanager
    def _in_float64(
        self, dtype: str, variables: Iterable[keras.Variable]
    ) -> Iterator[None]:
        """A scope in which the owners and these variables have a dtype."""
        restore: list[tuple[Any, str, Any]] = []

        def set_for_now(target: Any, name: str, value: Any) -> None:
            restore.append((target, name, getattr(target, name)))
            setattr(target, name, value)

        try:
            for owner in self._owners.values():
                for target, name in targets(owner):
                    set_for_now(target, name, dtype)
            for variable in variables:
                # Keras' operations ask the variable for its dtype, not its
                # value.
                if keras.backend.is_float_dtype(variable.dtype):
                    set_for_now(variable, "_dtype", dtype)
            for owner, name in self._constants:
                value = getattr(owner, name)
                if isinstance(value, np.ndarray):
                    set_for_now(owner, name, value.astype(dtype))
                else:
                    set_for_now(owner, name, to_float(value, dtype))
            yield
        finally:
            for target, name, value in reversed(restore):
                setattr(target, name, value)


def _or_refuse(
    calls: Sequence[Call], run: Callable[..., _Result], *args: Any
) -> _Result:
    """Calls `run(*args)`, and refuses a model that raises only in float64."""
    try:
        return run(*args)
    except Exception as error:
        failed = [_name(call.owner) for call in calls if call.error is error]
        raise Float64Error(
            "With float64 (`precision`), everything must compute in it: cast "
            "constants to the dtype of the tensors that they are combined "
            "with, or leave `precision` out if an operation does not support "
            f"float64 on {keras.backend.backend()}. Received: "
            + (failed[0] if failed else "code or gradients outside of layers")
            + f", which raises {type(error).__name__}: {_first_line(error)}"
        ) from error


def _name(owner: Owner) -> str:
    # Keras wraps a loss that is a function in a `Loss`, as its `fn`.
    return getattr(getattr(owner, "fn", None), "__name__", owner.name)


def _first_line(error: Exception) -> str:
    # Keras prints the message of an error in a layer in bold, surrounded by its
    # own text.
    found = re.search("\x1b\\[1m(.*)", str(error))
    lines = (found[1] if found else str(error)).splitlines()
    return lines[0].removesuffix("\x1b[0m") if lines else ""


def warn_of_rounding(name: str, dtype: str | None) -> None:
    """Warns if Keras would compute something in float64 in float32."""
    if dtype == "float64" and not is_true_float64():
        warn(
            f"{name} is float64, and Keras computes a part of it in float32: "
            "call `kormos.enable_float64()` before it is built, or fit with "
            "`precision='float64'`.",
        )
