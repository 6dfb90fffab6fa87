"""The methods that kormos compiles itself, and how tests run them."""

import keras
import numpy as np
import pytest

import kormos
from conftest import BACKEND

METHODS = ["lbfgs", "dense-bfgs", "ssbfgs", "ssbroyden"]


eager_only = pytest.mark.skipif(
    BACKEND != "torch", reason="a variant, seconds to compile elsewhere"
)


def methods(*compiled):
    """The methods to test; only a few where compiling is slow."""
    return METHODS if BACKEND == "torch" else list(compiled)


def compilations(program):
    """The number of times that each function of a program was compiled.

    It is empty on PyTorch, which runs functions eagerly and counts every call.
    """
    return {} if BACKEND == "torch" else dict(program.traces)


def minimize(loss, x0, method, **kwargs):
    """Minimizes a function of a float64 vector: the result and the vector.

    Args:
        loss: function of a tensor.
        x0: the start, of any sequence of numbers.
        method: name of a method.
        **kwargs: other arguments of `kormos.minimize`.
    """
    v = keras.Variable(np.array(x0, dtype="float64"), dtype="float64")
    result = kormos.minimize(
        lambda: loss(keras.ops.convert_to_tensor(v)),
        [v],
        method=method,
        **{"max_iterations": 5000, **kwargs},
    )
    return result, np.array(keras.ops.convert_to_numpy(v))
