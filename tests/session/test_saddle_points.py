"""A run does not end at a saddle point from which no gradient leads away."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos

METHODS = ["lbfgs", "dense-bfgs", "ssbroyden", "newton", "l-bfgs-b", "tnc"]
METHODS += ["newton-cg", "trust-krylov", "bfgs"]


@pytest.fixture(autouse=True)
def in_float64(float64):
    pass


def product(v):
    """A saddle point at zero, of loss 1, and minima where the product is 1."""
    return (v[0] * v[1] - 1.0) ** 2


def valleys(v):
    """Its gradient along the first axis stays there; minima at (1, +-1)."""
    return (v[0] - 1.0) ** 2 + v[1] ** 4 / 4 - v[1] ** 2 / 2


@pytest.mark.parametrize("method", METHODS)
def test_a_start_with_a_gradient_of_zero(method):
    v = keras.Variable(np.zeros(2), dtype="float64")
    result = kormos.minimize(lambda: product(v), [v], method, verbose=0)
    assert result.success, result
    assert result.initial_loss == 1.0
    assert np.prod(ops.convert_to_numpy(v)) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_along_an_axis_of_symmetry(method):
    v = keras.Variable(np.array([3.0, 0.0]), dtype="float64")
    result = kormos.minimize(lambda: valleys(v), [v], method, verbose=0)
    assert result.success, result
    assert result.loss == pytest.approx(-0.25, abs=1e-10)
    np.testing.assert_allclose(abs(ops.convert_to_numpy(v)), 1.0, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-6, 1e3])
def test_the_size_of_the_way_down_is_found(scale):
    v = keras.Variable(np.zeros(2), dtype="float64")
    result = kormos.minimize(
        lambda: product(v / scale), [v], "lbfgs", verbose=0
    )
    assert result.success, result
    assert np.prod(ops.convert_to_numpy(v)) == pytest.approx(scale**2, rel=1e-6)


def test_within_bounds():
    v = keras.Variable(np.zeros(2), dtype="float64")
    result = kormos.minimize(
        lambda: product(v),
        [v],
        "lbfgs",
        bounds=[(-0.5, 2.0), (-0.5, 2.0)],
        verbose=0,
    )
    assert result.success, result
    # There is another minimum, on the bounds at (-0.5, -0.5).
    assert result.loss < 1e-10 or result.loss == pytest.approx(0.5625)


def test_the_iterations_are_counted_on():
    """The first run ends at its start, and the next has what is left."""
    v = keras.Variable(np.zeros(2), dtype="float64")
    result = kormos.minimize(
        lambda: product(v), [v], "lbfgs", max_iterations=2, verbose=0
    )
    assert result.status == "iteration limit"
    assert result.iterations == len(result.history["loss"]) == 2
    assert result.loss == result.history["loss"][-1] < 0.999


def test_a_minimum_at_which_parameters_have_no_effect():
    """Entries of the gradient are zero there, but nothing is lower."""
    v = keras.Variable(np.array([3.0, 0.5, -0.5]), dtype="float64")
    result = kormos.minimize(
        lambda: (v[0] - 1.0) ** 2 + 0.5, [v], "lbfgs", verbose=0
    )
    assert result.success, result
    assert result.loss == pytest.approx(0.5, rel=1e-14)
    np.testing.assert_array_equal(ops.convert_to_numpy(v)[1:], [0.5, -0.5])


@pytest.mark.parametrize("optimizer", ["lbfgs", "newton", "l-bfgs-b"])
def test_a_network_from_zero(optimizer, unconverged):
    """With kernels of zero, only the last bias has a gradient."""
    x = np.linspace(-1, 1, 40)[:, None]
    y = np.tanh(2 * x) + 0.5
    model = keras.Sequential(
        [
            keras.Input((1,)),
            layers.Dense(3, "tanh", kernel_initializer="zeros"),
            layers.Dense(1, kernel_initializer="zeros"),
        ]
    )
    model.compile(optimizer, loss="mse")
    history = model.fit(x, y, epochs=200, verbose=0)
    # Its variance is the loss of the best constant.
    assert history.history["loss"][-1] < 1e-3 * np.var(y)
    assert history.epoch == list(range(len(history.epoch)))
    assert model.evaluate(x, y, verbose=0) == pytest.approx(
        history.result.loss, rel=1e-9
    )
