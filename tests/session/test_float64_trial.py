"""A noise floor in float32 is verified in float64 before it is claimed."""

import re

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from conftest import BACKEND
from conftest import lindata
from conftest import linear
from native import METHODS

# JAX and TensorFlow take seconds to compile each.
UNITS = [1e-7, 1e-8, 1e-12] if BACKEND == "torch" else [1e-8]


@pytest.mark.slow
@pytest.mark.parametrize("method", [*METHODS, "lm", "l-bfgs-b", "bfgs"])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
def test_no_success_where_outputs_are_lost_in_their_rounding(unit, method):
    x = np.random.RandomState(0).uniform(-1, 1, (300, 1)).astype("float32")
    y = (unit * np.sin(3 * x)).astype("float32")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((1,)), layers.Dense(8, "tanh"), layers.Dense(1)]
    )
    model.compile(method, loss="mse")
    result = model.fit(x, y, epochs=500, verbose=0).result
    error = model.predict(x, verbose=0).astype("float64") - y
    determination = 1 - np.mean(error**2) / np.var(y.astype("float64"))
    assert not result.success or determination > 0.99, result


def test_what_float64_gains_is_within_rounding():
    x, y = lindata(200, noise=0.1)
    x, y = x.astype("float32"), y.astype("float32")
    model = linear()
    model.compile("ssbroyden", loss="mse")
    result = model.fit(x, y, epochs=200, verbose=0).result
    assert result.success
    gains = re.findall(r"In float64 \d+ evalu.* by (.*) of itself", str(result))
    assert gains or result.status != "noise floor"
    assert all(abs(float(gain)) < 1e-4 for gain in gains)


def regression(seen=lambda dtype: None):
    """A loss in float32, which notes its dtype in `seen`, and its optimum."""
    x, y = lindata(200, noise=0.1)
    v = keras.Variable(np.zeros((x.shape[1], 1), "float32"))

    def loss():
        theta = ops.convert_to_tensor(v)
        dtype = keras.backend.standardize_dtype(theta.dtype)
        seen(dtype)
        predicted = ops.matmul(ops.convert_to_tensor(x, dtype), theta)
        return ops.mean((predicted - ops.convert_to_tensor(y, dtype)) ** 2)

    return v, loss, np.linalg.lstsq(x, y, rcond=None)[0]


def test_an_error_in_float64_leaves_the_end_as_it_is():
    def refuse(dtype):
        if dtype == "float64":
            raise RuntimeError("only in float32")

    v, loss, optimum = regression(refuse)
    result = kormos.minimize(loss, [v], "lbfgs")
    assert result.success
    np.testing.assert_allclose(ops.convert_to_numpy(v), optimum, atol=1e-4)
    words = "Float64 could not be tried: .* only in float32"
    is_said = re.search(words, str(result))
    assert is_said or result.status != "noise floor"


def test_an_end_in_float64_needs_no_trial():
    v, loss, _ = regression()
    result = kormos.minimize(loss, [v], "lbfgs", precision="float64")
    assert result.success
    assert "In float64 " not in str(result)
