"""The error for a variable that becomes a NumPy array names the line."""

import keras
import numpy as np
import pytest
from keras import ops

import kormos
from conftest import BACKEND

X = np.arange(3.0) + 1


def array_first(v):
    return X * v - 6.0


def numpy_function(v):
    return np.exp(v[0] * ops.convert_to_tensor(X, dtype="float32"))


@pytest.mark.parametrize("fn", [array_first, numpy_function])
@pytest.mark.parametrize("door", ["minimize", "least_squares"])
def test_the_line_is_named(fn, door):
    v = keras.Variable([1.0, 2.0, 3.0])
    # Eagerly an array comes out, which is named as what the function returns,
    # or as what has no gradient.
    match = "test_conversions.py|Received: residuals=array|gradient of zero"
    with pytest.raises(ValueError, match=match):
        if door == "minimize":
            kormos.minimize(lambda: ops.sum(fn(v) ** 2), [v])
        else:
            kormos.least_squares(lambda: fn(v), [v])
    np.testing.assert_array_equal(ops.convert_to_numpy(v), [1.0, 2.0, 3.0])


@pytest.mark.skipif(BACKEND != "torch", reason="works elsewhere")
def test_a_tensor_times_an_array():
    v = keras.Variable([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"line \d+ of .*v\[0\] \* X"):
        kormos.minimize(lambda: ops.sum(v[0] * X), [v])
