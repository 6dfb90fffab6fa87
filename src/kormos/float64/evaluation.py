"""The precision in which a function of Keras variables is evaluated.

Layers, losses and the inputs of functional models each compute in a dtype of
their own, whatever the dtype of the values that they are given. A float32
model is evaluated in float64 by giving them another dtype while they are
traced (JAX, TensorFlow) or run (PyTorch), so that the model itself stays as
it is, of any class.
"""

import contextlib
import re

import keras
import numpy as np
from keras import tree

from kormos import backend
from kormos.arithmetic.vectors import rounding
from kormos.data.variables import to_float
from kormos.float64.layer_calls import recorded_calls
from kormos.float64.modules import Modules
from kormos.float64.settings import is_true_float64
from kormos.float64.settings import precision
from kormos.float64.settings import turn
from kormos.warn import warn

PRECISIONS = (None, "float64", "auto")


class Float64Error(ValueError):
    """A model or function cannot be evaluated in float64."""


def check_precision(value):
    """Refuses what is no precision of a fit."""
    if value not in PRECISIONS:
        raise ValueError(
            "Argument `precision` must be 'float64', 'auto' or None. "
            f"Received: precision={value!r}"
        )


def starts_wide(precision, dtypes):
    """Whether to evaluate in float64 from the start.

    Args:
        precision: one of `PRECISIONS`.
        dtypes: those of the variables.
    """
    is_wide = all(dtype == "float64" for dtype in dtypes)
    return precision == "float64" or (precision == "auto" and is_wide)


def decide(precision, prepare):
    """Whether float64 can follow, as it does where float32 ends.

    Args:
        precision: one of `PRECISIONS`.
        prepare: function that gets ready for float64, or refuses.

    Raises:
        ValueError: where it refuses what `precision` insists on.
    """
    if precision is None:
        return False
    try:
        prepare()
    except Float64Error as error:
        if precision == "float64":
            raise
        warn(f"This fit (precision='auto') will not go on in float64. {error}")
        return False
    return True


class Arithmetic:
    """The precision of an evaluation.

    Args:
        dtype: `"float64"`, or `None` for that of layers and variables.
    """

    def __init__(self, dtype=None):
        self.dtype = dtype
        self._owners = {}
        self._constants = []
        self._modules = Modules()
        self.keeps_traces = False

    def widened(self):
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
                "Quantized layers compute in integers or float8 and have no "
                "float64 (`precision`): leave `precision` out. "
                f"Received: {', '.join(quantized)}, quantized"
            )
        other = Arithmetic("float64")
        other.include(self._owners.values())
        other._constants = [
            c for o in self._owners.values() for c in _constants(o)
        ]
        other._modules = self._modules
        other.keeps_traces = self.keeps_traces
        return other

    @property
    def epsilon(self):
        """The coarsest rounding of layers with weights to train."""
        layers = [
            owner
            for owner in self._owners.values()
            if getattr(owner, "trainable_variables", None)
        ]
        dtypes = [layer.compute_dtype for layer in layers]
        return max(
            (rounding(d) for d in dtypes if keras.backend.is_float_dtype(d)),
            default=0.0,
        )

    def include(self, owners):
        """Adds layers and losses, to be given the dtype."""
        for owner in owners:
            # Recurrent layers take from their cells what is never called.
            is_layer = isinstance(owner, keras.Layer)
            parts = owner._flatten_layers() if is_layer else [owner]
            self._owners.update({id(part): part for part in parts})

    @property
    def owners(self):
        """The included layers and losses."""
        return list(self._owners.values())

    def reads(self):
        """The variables that were read, but not through Keras."""
        return self._modules.reads()

    @contextlib.contextmanager
    def learning(self):
        """A scope, outside of the precision, that includes what is called."""
        with (
            turn(None),
            recorded_calls() as calls,
            self._modules.learning(),
        ):
            yield
        self.include(call.owner for call in calls)
        self._modules.include(call.owner for call in calls)

    def first_call(self, run, fn, *args):
        """`run(fn, *args)`; finds out whether `fn` is always to be traced anew.

        Args:
            run: function that calls `fn`.
            fn: function that reads variables.
            *args: structures of tensors.
        """
        self.keeps_traces |= backend.keeps_traces(fn, *args)
        return self.call(run, fn, *args)

    def call(self, run, fn, *args):
        """`run(fn, *args)`, which finds no trace of an earlier call."""
        with self._own_trace():
            return run(fn, *args)

    def _own_trace(self):
        if self.keeps_traces:
            return backend.own_trace()
        return contextlib.nullcontext()

    def present(self, variables):
        """Pairs for a `scope`, of the variables as they are."""
        return [(v, v.value) for v in variables] if self.dtype else []

    @contextlib.contextmanager
    def scope(self, stateless=None, pairs=()):
        """A scope in which the included layers and losses compute in `dtype`.

        Args:
            stateless: a `keras.StatelessScope` to enter, if there is one.
            pairs: list of variables and the values that they have in it.
        """
        with contextlib.ExitStack() as scopes:
            scopes.enter_context(turn(self.dtype))
            if self.dtype is not None:
                scopes.enter_context(precision(self.dtype))
                scopes.enter_context(self._widened([v for v, _ in pairs]))
            scopes.enter_context(self._own_trace())
            if stateless is not None:
                for variable, value in pairs:
                    # In the dtype that it has, unless another one is set.
                    if self.dtype is not None:
                        value = to_float(value, self.dtype)
                    stateless.add_update((variable, value))
                modules = self._modules.scope(stateless, self.dtype)
                scopes.enter_context(modules)
                scopes.enter_context(stateless)
            yield

    def check(self, run, fn, loss, parts, *args):
        """Refuses values or gradients that are not computed in the precision.

        Args:
            run: function that runs `fn(*args)` for the layers that it calls.
            fn: function of `parts` and `args`, in which all must be as wide.
            loss: function of the same, which may return a structure.
            parts: values of the variables to differentiate by.
            *args: what else the functions take.

        Raises:
            Float64Error: naming the first layer or loss that is narrower.
        """

        def total(parts, *args):
            leaves = tree.flatten(loss(parts, *args))
            return sum(keras.ops.sum(leaf) for leaf in leaves)

        with self.scope(), recorded_calls() as calls:
            outputs = _or_refuse(calls, run, fn, parts, *args)
            narrow = narrow_calls(calls)
            if narrow or _narrow_leaves(outputs):
                raise Float64Error(
                    f"In {self.dtype} (`precision`), everything must compute "
                    "in it: take casts to another dtype out of the code, or "
                    "build the model after `kormos.enable_float64()`. "
                    "Received: "
                    + (_name(narrow[0].owner) if narrow else "a value")
                    + ", in float32"
                )
            calls.clear()
            slopes = backend.value_and_grad(total)
            _or_refuse(calls, run, slopes, parts, *args)

    @contextlib.contextmanager
    def _widened(self, variables):
        restore = []

        def set_for_now(target, name, value):
            restore.append((target, name, getattr(target, name)))
            setattr(target, name, value)

        try:
            for owner in self._owners.values():
                for target, name in _targets(owner):
                    set_for_now(target, name, self.dtype)
            for variable in variables:
                # Operations ask a variable, not its value.
                if keras.backend.is_float_dtype(variable.dtype):
                    set_for_now(variable, "_dtype", self.dtype)
            for owner, name in self._constants:
                value = getattr(owner, name)
                if isinstance(value, np.ndarray):
                    set_for_now(owner, name, value.astype(self.dtype))
                else:
                    set_for_now(owner, name, to_float(value, self.dtype))
            yield
        finally:
            for target, name, value in reversed(restore):
                setattr(target, name, value)


def _or_refuse(calls, run, *args):
    """Calls `run(*args)`, and refuses a model that raises only in float64."""
    try:
        return run(*args)
    except Exception as error:
        failed = [_name(call.owner) for call in calls if call.error is error]
        raise Float64Error(
            "In float64 (`precision`), everything must compute in it: cast "
            "constants to the dtype of what they meet, and leave `precision` "
            f"out where {keras.backend.backend()} has no float64. Received: "
            + (failed[0] if failed else "code or gradients outside of layers")
            + f", which raises {type(error).__name__}: {_first_line(error)}"
        ) from error


def _name(owner):
    # Of the loss that Keras makes of a function.
    return getattr(getattr(owner, "fn", None), "__name__", owner.name)


def _first_line(error):
    # Keras sets what a layer raises, in bold, between words of its own.
    found = re.search("\x1b\\[1m(.*)", str(error))
    lines = (found[1] if found else str(error)).splitlines()
    return lines[0].removesuffix("\x1b[0m") if lines else ""


def narrow_calls(calls):
    """The `Call`s with results in float32 or narrower."""
    return [call for call in calls if _narrow_leaves(call.outputs)]


def warn_of_rounding(name, dtype):
    """Says so where Keras would compute float64 in float32."""
    if dtype == "float64" and not is_true_float64():
        warn(
            f"{name} is float64, and Keras computes a part of it in float32: "
            "call `kormos.enable_float64()` before it is built, or fit with "
            "`precision='float64'`.",
        )


def _targets(owner):
    """The attributes by which a layer or a loss casts to floating point."""
    if isinstance(owner, keras.losses.Loss):
        yield owner, "_dtype"
    elif keras.backend.is_float_dtype(owner.compute_dtype):
        yield owner, "dtype_policy"
        for tensor in tree.flatten(getattr(owner, "inputs", None)):
            # Of a functional model; but indices stay what they are.
            if isinstance(
                tensor, keras.KerasTensor
            ) and keras.backend.is_float_dtype(tensor.dtype):
                yield tensor, "_dtype"
                yield tensor._keras_history.operation, "_dtype"


def _constants(owner):
    """A layer's or a loss's own attributes that are arrays in float32."""
    return [
        (owner, name)
        for name, value in vars(owner).items()
        # TensorFlow takes a variable for a tensor.
        if not isinstance(value, keras.Variable)
        and (_is_narrow(value) or _is_narrow_array(value))
    ]


def _narrow_leaves(outputs):
    return [leaf for leaf in tree.flatten(outputs) if _is_narrow(leaf)]


def _is_narrow_array(value):
    if not isinstance(value, np.ndarray):
        return False
    return value.dtype.kind == "f" and value.dtype != "float64"


def _is_narrow(value):
    if not keras.ops.is_tensor(value):
        return False
    dtype = keras.backend.standardize_dtype(value.dtype)
    return keras.backend.is_float_dtype(dtype) and dtype != "float64"
