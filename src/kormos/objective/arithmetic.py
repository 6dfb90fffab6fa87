"""The precision in which a function of Keras variables is evaluated.

Layers, losses and the inputs of functional models each compute in a dtype of
their own, whatever the dtype of the values that they are given. A float32
model is evaluated in float64 by giving them another dtype while they are
traced (JAX, TensorFlow) or run (PyTorch), so that the model itself stays as
it is, of any class.
"""

import contextlib

import keras
from keras import tree

from kormos import backend
from kormos.numerics.vectors import rounding
from kormos.objective.calls import recorded_calls
from kormos.objective.modules import Modules
from kormos.precision import is_true_float64
from kormos.precision import precision
from kormos.precision import turn
from kormos.warn import warn

PRECISIONS = (None, "float64", "auto")


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


class Arithmetic:
    """The precision of an evaluation.

    Args:
        dtype: `"float64"`, or `None` for that of layers and variables.
    """

    def __init__(self, dtype=None):
        self.dtype = dtype
        self._owners = {}
        self._modules = Modules()
        self.keeps_traces = False

    def widened(self):
        """The same layers and losses in float64.

        Raises:
            ValueError: if there are quantized layers.
        """
        quantized = [
            owner.name
            for owner in self._owners.values()
            if getattr(owner, "quantization_mode", None) is not None
        ]
        if quantized:
            raise ValueError(
                "Quantized layers compute in integers or float8 and have no "
                "float64 (`precision`): leave `precision` out. "
                f"Received: {', '.join(quantized)}, quantized"
            )
        other = Arithmetic("float64")
        other.include(self._owners.values())
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
        self._owners.update({id(o): o for o in owners})

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

    @contextlib.contextmanager
    def scope(self, stateless=None):
        """A scope in which the included layers and losses compute in `dtype`.

        Args:
            stateless: a `keras.StatelessScope` to enter, of the variables'
                values, if there is one.
        """
        with contextlib.ExitStack() as scopes:
            scopes.enter_context(turn(self.dtype))
            if self.dtype is not None:
                scopes.enter_context(precision(self.dtype))
                scopes.enter_context(self._widened())
            scopes.enter_context(self._own_trace())
            if stateless is not None:
                modules = self._modules.scope(stateless, self.dtype)
                scopes.enter_context(modules)
                scopes.enter_context(stateless)
            yield

    def check(self, fn, *args):
        """Refuses what does not compute in the precision.

        Args:
            fn: function that runs `fn(*args)` for the layers that it calls.

        Raises:
            ValueError: naming the first layer or loss that is narrower.
        """
        with self.scope(), recorded_calls() as calls:
            outputs = fn(*args)
        narrow = narrow_calls(calls)
        if not narrow and not _narrow_leaves(outputs):
            return
        raise ValueError(
            f"In {self.dtype} (`precision`), everything must compute in it: "
            "take casts to another dtype out of the code, or "
            "build the model after `kormos.enable_float64()`. Received: "
            + (narrow[0].owner.name if narrow else "a value")
            + ", in float32"
        )

    @contextlib.contextmanager
    def _widened(self):
        restore = []
        try:
            for owner in self._owners.values():
                for target, name in _targets(owner):
                    restore.append((target, name, getattr(target, name)))
                    setattr(target, name, self.dtype)
            yield
        finally:
            for target, name, value in reversed(restore):
                setattr(target, name, value)


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


def _narrow_leaves(outputs):
    return [
        leaf
        for leaf in tree.flatten(outputs)
        if keras.ops.is_tensor(leaf)
        and keras.backend.is_float_dtype(_dtype(leaf))
        and _dtype(leaf) != "float64"
    ]


def _dtype(tensor):
    return keras.backend.standardize_dtype(tensor.dtype)
