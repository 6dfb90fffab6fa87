"""Variables that layers read, or assign, where no optimizer sees it."""

import contextlib

import keras
import numpy as np
from keras import ops
from keras import tree

from kormos import backend
from kormos.data.variables import ReadRecorder
from kormos.data.variables import to_float
from kormos.float64.settings import turn


class Modules:
    """The PyTorch modules that a function calls, in `TorchModuleWrapper`s.

    They read parameters of their own, which Keras' variables share, where no
    scope of Keras' reaches.
    """

    def __init__(self):
        self._wrappers = []
        self._met = {}

    @contextlib.contextmanager
    def learning(self):
        """A scope that notes which parameters operations are given."""
        with backend.parameters_met() as met:
            yield
        self._met.update(met)

    def include(self, owners):
        """Adds the wrappers among layers that were called."""
        self._wrappers += [
            owner
            for owner in owners
            if isinstance(owner, keras.layers.TorchModuleWrapper)
            and owner not in self._wrappers
        ]

    def reads(self):
        """The variables of the modules whose parameters operations met."""
        variables = [v for w in self._wrappers for v in w.variables]
        return [v for v in variables if id(v.value) in self._met]

    @contextlib.contextmanager
    def scope(self, stateless, dtype=None):
        """A scope in which modules compute with other values.

        Args:
            stateless: the `keras.StatelessScope` that has the values, not
                entered yet.
            dtype: of floating-point numbers. Defaults to their own.
        """
        if not self._wrappers:
            yield
            return
        pairs = []
        for variable in self.reads():
            own, value = variable.value, stateless.get_current_value(variable)
            value = own if value is None else value
            pairs.append((own, to_float(value, dtype or value.dtype)))
        for wrapper in self._wrappers:
            for buffer in wrapper.module.buffers():
                # Training updates averages in place.
                pairs.append(
                    (buffer, to_float(buffer.clone(), dtype or buffer.dtype))
                )
        with backend.standing_in(pairs):
            yield


def refuse_hidden_reads(variables, fn):
    """Refuses variables that change a function which never reads them.

    Such a function differentiates to zero, and a fit would call its start an
    optimum.

    Args:
        variables: the variables that no scope saw a read of.
        fn: the function, of no arguments, that returns tensors in any
            structure. It must find no trace of an earlier call.

    Raises:
        ValueError: naming the variables.
    """
    if not variables:
        return
    # Alone: they are changed for a moment.
    with turn("changed"):

        def outputs():
            with backend.repeatable(), ReadRecorder():
                leaves = tree.flatten(fn())
            return [ops.convert_to_numpy(leaf) for leaf in leaves]

        present = outputs()
        if not _changes(variables, present, outputs):
            return
        names = [v.path for v in variables if _changes([v], present, outputs)]
    raise ValueError(
        "Every variable to train must be read through Keras, or it cannot be "
        "differentiated: layers such as `TFSMLayer` and compiled PyTorch "
        "modules read their own. Freeze them (`layer.trainable = False`), or "
        "build them of Keras layers. Received: variables that change the "
        f"outputs without being read, {', '.join(names)}"
    )


def refuse_assigned(variables, values, scope):
    """Refuses variables that a layer assigns when it is called in training.

    Stock steps train what the layer leaves, a normalized kernel say. A full
    batch method would never call it so, and end where nothing is normalized.

    Args:
        variables: the variables to train.
        values: the tensors that they had in a scope of such a call.
        scope: the `keras.StatelessScope`.

    Raises:
        ValueError: naming the variables.
    """
    names = [
        variable.path
        for variable, value in zip(variables, values, strict=True)
        if scope.get_current_value(variable) is not value
    ]
    if names:
        raise ValueError(
            "A full-batch method cannot train variables that a layer assigns "
            "itself in each step, as `SpectralNormalization` does its kernel: "
            "the loss between two steps is another one. Use the layer within "
            "it and a regularizer, freeze it, or compile with a stochastic "
            f"optimizer such as 'adam'. Received: {', '.join(names)}, assigned "
            "by a call with training=True"
        )


def _changes(variables, present, outputs):
    """Whether other values of the variables change the outputs."""
    rng = np.random.default_rng(0)
    kept = [np.array(ops.convert_to_numpy(v.value)) for v in variables]
    try:
        for variable, value in zip(variables, kept, strict=True):
            noise = rng.uniform(0.1, 0.5, size=value.shape)
            variable.assign(value + noise * (1 + abs(value)))
        other = outputs()
    finally:
        for variable, value in zip(variables, kept, strict=True):
            variable.assign(value)
    return not all(
        np.array_equal(a, b, equal_nan=True)
        for a, b in zip(present, other, strict=True)
    )
