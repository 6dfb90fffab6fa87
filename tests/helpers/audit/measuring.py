"""A case, and the deviation of Keras from its formula."""

import contextlib
import zlib
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import keras
import numpy as np
from keras import layers
from keras import ops

from kormos import backend

STEP = 1e-30

# Functions that TensorFlow cannot compute in float64, or whose dtypes it cannot
# mix.
UNSUPPORTED = {
    "tensorflow": {
        "MaxPooling3D",
        "AveragePooling3D",
        "AdaptiveMaxPooling3D",
        "AdaptiveAveragePooling3D",
        "OrthogonalRegularizer",
    }
}.get(keras.backend.backend(), set())


class Case(NamedTuple):
    """A computation by Keras and by NumPy.

    Attributes:
        make: function that returns a layer or another function of tensors.
        formula: the function in NumPy, of the inputs and then the weights.
        inputs: arrays; those of integers are not differentiated.
        call: `(made, *inputs) -> outputs`, if it is more than a call.
        keep: whether the layer and the formula keep the initial weights.
    """

    make: Callable
    formula: Callable
    inputs: tuple
    call: Callable = lambda made, *inputs: made(*inputs)
    keep: bool = False


def _zeros(self, shape, dtype=None, **kwargs):
    return np.zeros(shape, dtype or keras.config.floatx())


@contextlib.contextmanager
def undrawn():
    """Layers begin at zeros, because JAX would compile random draws."""
    with contextlib.ExitStack() as stack:
        for kind in (
            keras.initializers.Zeros,
            keras.initializers.Ones,
            keras.initializers.Orthogonal,
            keras.initializers.RandomUniform,
            keras.initializers.TruncatedNormal,
            keras.initializers.VarianceScaling,
        ):
            stack.enter_context(mock.patch.object(kind, "__call__", _zeros))
        yield


class _Run:
    """A case with its layer built, its weights drawn, and a cotangent."""

    def __init__(self, name, case):
        random = np.random.RandomState(zlib.crc32(name.encode()))
        self.case, self.made = case, case.make()
        self.floats = [a for a in case.inputs if a.dtype.kind == "f"]
        self.variables = []
        if isinstance(self.made, layers.Layer):
            case.call(
                self.made,
                *(keras.KerasTensor(a.shape, a.dtype) for a in case.inputs),
            )
            self.variables = [
                v
                for v in self.made.variables
                if "float" in v.dtype and not case.keep
            ]
        self.weights = [_weight(random, v) for v in self.variables]
        self.parts = [*self.floats, *self.weights]
        self.output = self.reference(self.parts)
        self.cotangent = random.uniform(0.5, 1.5, self.output.shape)

    def _arguments(self, parts, convert):
        parts = iter(parts)
        return [
            next(parts) if a.dtype.kind == "f" else convert(a)
            for a in self.case.inputs
        ]

    def reference(self, parts):
        inputs = self._arguments(parts, np.asarray)
        outputs = self.case.formula(*inputs, *parts[len(self.floats) :])
        if not isinstance(outputs, (tuple, list)):
            outputs = [outputs]
        return np.concatenate([np.reshape(o, -1) for o in outputs])

    def reference_gradients(self):
        return complex_steps(
            lambda parts: self.cotangent @ self.reference(parts), self.parts
        )

    def keras(self, parts):
        inputs = self._arguments(parts, ops.convert_to_tensor)
        pairs = zip(self.variables, parts[len(self.floats) :], strict=True)
        with keras.StatelessScope(
            state_mapping=list(pairs), collect_losses=True
        ):
            outputs = self.case.call(self.made, *inputs)
        outputs = keras.tree.flatten(outputs)
        dtypes = {keras.backend.standardize_dtype(o.dtype) for o in outputs}
        assert dtypes == {"float64"}, dtypes
        return ops.concatenate([ops.reshape(o, (-1,)) for o in outputs])


def complex_steps(fn, parts):
    """The gradients of a scalar function of NumPy arrays."""
    gradients = []
    for i, part in enumerate(parts):
        gradient = np.zeros(part.shape)
        for index in np.ndindex(part.shape):
            moved = part.astype(complex)
            moved[index] += 1j * STEP
            value = fn([*parts[:i], moved, *parts[i + 1 :]])
            gradient[index] = value.imag / STEP
        gradients.append(gradient)
    return gradients


def _weight(random, variable):
    if "variance" in variable.name:
        return random.uniform(0.5, 2.0, variable.shape)
    return random.normal(0.0, 0.7, variable.shape)


def deviations(cases):
    """`{name: (of the values, of the gradients)}`, relative to the largest.

    All cases are compiled as one function: the sum of the outputs times
    cotangents. These are arguments too, so their gradients are the outputs.
    """
    with undrawn():
        runs = {name: _Run(name, case) for name, case in cases.items()}
    parts, spans = [], {}
    for name, run in runs.items():
        begin = len(parts)
        parts += [run.cotangent, *run.parts]
        spans[name] = slice(begin, len(parts))

    def total(parts):
        terms = []
        for name, run in runs.items():
            cotangent, *own = parts[spans[name]]
            terms.append(ops.sum(cotangent * run.keras(own)))
        return sum(terms)

    gradients = value_and_gradients(total, parts)[1]
    measured = {}
    for name, run in runs.items():
        output, *own = gradients[spans[name]]
        expected = run.reference_gradients()
        # The scale is that of all weights, because the gradient of attention's
        # key bias is 0.
        largest = max([np.max(np.abs(g)) for g in expected], default=0.0)
        distances = [
            _distance(g, e, largest) for g, e in zip(own, expected, strict=True)
        ]
        measured[name] = (
            _distance(output, run.output, np.max(np.abs(run.output))),
            max(distances, default=0.0),
        )
    return measured


def value_and_gradients(fn, parts, dtype="float64"):
    """`fn(parts)` and its gradients as arrays, of one compiled function."""
    with backend.float64():
        compiled = backend.compile(backend.value_and_grad(fn))
        value, gradients = compiled(
            [ops.convert_to_tensor(p, dtype) for p in parts]
        )
        return (
            ops.convert_to_numpy(value),
            [ops.convert_to_numpy(g) for g in gradients],
        )


def _distance(actual, expected, scale):
    assert actual.shape == expected.shape
    assert np.all(np.isfinite(expected)) and np.all(np.isfinite(actual))
    return float(np.max(np.abs(actual - expected)) / (scale or 1.0))


def supported(cases):
    """The cases that the backend in use can compute."""
    return {n: case for n, case in cases.items() if n not in UNSUPPORTED}
