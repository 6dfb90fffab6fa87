"""The checks of derivatives at a start refuse wrong ones, and only those."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from conftest import BACKEND

ROWS = np.random.default_rng(0).normal(size=(64, 4))


def network(activation, seed, dtype="float32"):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((4,), dtype=dtype),
            layers.Dense(8, activation, dtype=dtype),
            layers.Dense(8, activation, dtype=dtype),
            layers.Dense(1, dtype=dtype),
        ]
    )


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_networks_on_inputs_of_any_size(unconverged, activation, size):
    for seed in range(3):
        model = network(activation, seed)
        y = np.sin(ROWS[:, :1] + seed)
        model.compile(optimizer="lm", loss="mse")
        before = model.evaluate(size * ROWS, y, verbose=0)
        history = model.fit(size * ROWS, y, epochs=2, verbose=0)
        assert history.result.loss <= before * (1 + 1e-6)


@pytest.mark.parametrize("bias", [5.0, 7.0])
def test_a_unit_near_saturation(unconverged, bias):
    model = keras.Sequential(
        [
            keras.Input((1,)),
            layers.Dense(
                1,
                "sigmoid",
                bias_initializer=keras.initializers.Constant(bias),
            ),
        ]
    )
    x = np.linspace(-4, 4, 50)[:, None]
    y = 1 / (1 + np.exp(-2 * x + 1))
    model.compile(optimizer="lm", loss="mse")
    history = model.fit(x, y, epochs=200, verbose=0)
    assert history.result.loss < 1e-6


def test_decay_from_a_start_that_is_far():
    x = np.linspace(0, 4, 30)
    a, b = (keras.Variable(v, dtype="float64") for v in (0.5, 30.0))

    def residuals():
        t = ops.convert_to_tensor(x)
        return a * ops.exp(-b * t) - ops.exp(-t)

    result = kormos.least_squares(residuals, [a, b])
    assert result.success
    assert result.loss < 1e-20


def test_a_fit_from_where_terms_cancel(unconverged):
    # Residuals of 1e-6 among terms of size one: the loss is all rounding.
    model = network("tanh", 0)
    y = model.predict(ROWS, verbose=0) + 1e-6 * np.sin(7 * ROWS[:, :1])
    model.compile(optimizer="lm", loss="mse")
    history = model.fit(ROWS, y, epochs=5, verbose=0)
    assert history.result.loss <= 1e-12


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu"])
def test_hessian_products_of_networks_with_kinks(unconverged, activation):
    for seed in range(3):
        model = network(activation, seed)
        y = np.sin(ROWS[:, :1] + seed)
        model.compile(optimizer="newton-cg", loss="mse")
        before = model.evaluate(ROWS, y, verbose=0)
        history = model.fit(ROWS, y, epochs=2, verbose=0)
        assert history.result.loss < before


def test_hessian_products_at_a_good_fit_of_a_network_with_kinks(unconverged):
    # There are many kinks nearby, so that differences never agree with
    # derivatives.
    model = network("relu", 0)
    y = np.sin(ROWS[:, :1])
    model.compile(optimizer="l-bfgs-b", loss="mse")
    model.fit(ROWS, y, epochs=100, verbose=0)
    for method in ("newton-cg", "trust-krylov"):
        model.compile(optimizer=method, loss="mse")
        before = model.evaluate(ROWS, y, verbose=0)
        history = model.fit(ROWS, y, epochs=2, verbose=0)
        assert history.result.loss <= before * (1 + 1e-6)


class Detached(layers.Layer):
    """A layer whose second derivatives are wrong: it stops a gradient."""

    def call(self, inputs):
        mean = ops.stop_gradient(ops.mean(inputs, axis=-1, keepdims=True))
        # Its gradient by the mean is zero, and the second one is not.
        return ops.mean((inputs - mean) ** 2, axis=-1, keepdims=True)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow alone")
def test_hessian_products_through_a_stopped_gradient_are_refused():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(6, "tanh"), Detached()]
    )
    model.compile(optimizer="newton-cg", loss="mse")
    with pytest.raises(ValueError, match="wrong second derivatives"):
        model.fit(ROWS, np.ones((64, 1)), verbose=0)


def test_a_wrong_gradient_is_refused_by_lm():
    class Wrong(layers.Layer):
        def call(self, inputs):
            # The value of a sum, but only the gradient of the inputs.
            return inputs + ops.stop_gradient(3 * inputs)

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(6, "tanh"), Wrong(), layers.Dense(1)]
    )
    model.compile(optimizer="lm", loss="mse")
    with pytest.raises(ValueError, match="derivatives say"):
        model.fit(ROWS, np.sin(ROWS[:, :1]), verbose=0)
