"""Traces that a backend keeps of a user's function have no old values."""

import keras
import numpy as np
import pytest
from keras import ops

import kormos
from conftest import BACKEND

# An autoregression of first order: y = p0 + p1 * (y before) + noise.
Y = np.zeros(100)
for _i, _noise in enumerate(np.random.default_rng(0).normal(size=99)):
    Y[_i + 1] = 0.7 * Y[_i] + 1.5 + _noise
_X = np.stack([np.ones(99), Y[:-1]], axis=1)
BEST, (LEAST,) = np.linalg.lstsq(_X, Y[1:], rcond=None)[:2]


def scanned(p):
    def step(before, now):
        return now, (now - p[0] - p[1] * before) ** 2

    def loss():
        terms = ops.scan(
            step, ops.cast(Y[0], p.dtype), ops.cast(Y[1:], p.dtype)
        )
        return ops.sum(terms[1])

    return loss


def partly_scanned(p):
    def step(before, now):
        return now, now - p[1] * before

    def loss():
        rest = ops.scan(step, ops.cast(Y[0], p.dtype), ops.cast(Y[1:], p.dtype))
        return ops.sum((rest[1] - p[0]) ** 2)

    return loss


def chosen(p):
    before, now = ops.cast(Y[:-1], p.dtype), ops.cast(Y[1:], p.dtype)

    def squares():
        return ops.sum((now - p[0] - p[1] * before) ** 2)

    def nothing():
        return ops.sum(now) * 0

    def loss():
        return ops.cond(ops.sum(now) > -1e9, squares, nothing)

    return loss


each_function = pytest.mark.parametrize(
    "make", [scanned, partly_scanned, chosen]
)


def assert_reaches_the_least(loss, p):
    """Fits a loss twice, by two methods."""
    for method in ("l-bfgs-b", "bfgs"):
        p.assign(np.zeros(2))
        result = kormos.minimize(loss, [p], method)
        assert result.success
        assert result.loss == pytest.approx(LEAST, rel=1e-10)
        np.testing.assert_allclose(ops.convert_to_numpy(p), BEST, rtol=1e-6)


@each_function
def test_a_function_that_reads_variables_is_traced_anew(make, float64):
    p = keras.Variable(np.zeros(2), dtype="float64")
    loss = make(p)
    loss()
    assert_reaches_the_least(loss, p)


@each_function
def test_fits_leave_nothing_behind_that_is_out_of_date(make, float64):
    p = keras.Variable(np.zeros(2), dtype="float64")
    loss = make(p)
    assert_reaches_the_least(loss, p)
    assert float(loss()) == pytest.approx(LEAST, rel=1e-10)


def test_a_fit_after_another_of_the_same_step(float64):
    p = keras.Variable(np.zeros(2), dtype="float64")
    loss = scanned(p)
    half = keras.Variable(0.5, dtype="float64")
    kormos.minimize(lambda: loss() + half**2, [half], max_iterations=5)
    result = kormos.minimize(loss, [p])
    assert result.loss == pytest.approx(LEAST, rel=1e-10)


def test_the_look_at_an_unused_variable_leaves_nothing_behind(float64):
    p = keras.Variable(np.zeros(2), dtype="float64")
    unused = keras.Variable(1.0, dtype="float64")
    loss = scanned(p)
    with pytest.warns(UserWarning, match="does not depend on"):
        kormos.minimize(loss, [p, unused])
    assert float(loss()) == pytest.approx(LEAST, rel=1e-10)


@pytest.mark.skipif(
    BACKEND == "tensorflow", reason="It has no row by row derivatives of scans."
)
def test_residuals_of_a_step(float64):
    p = keras.Variable(np.zeros(2), dtype="float64")

    def step(before, now):
        return now, now - p[0] - p[1] * before

    def residuals():
        return ops.scan(step, ops.convert_to_tensor(Y[0]), Y[1:])[1]

    residuals()
    result = kormos.least_squares(residuals, [p], reduction="sum")
    assert result.loss == pytest.approx(LEAST, rel=1e-10)
    np.testing.assert_allclose(ops.convert_to_numpy(p), BEST, rtol=1e-6)


class Autoregression(keras.layers.Layer):
    """A layer that keeps its step, which reads a weight."""

    def build(self, input_shape):
        self.p = self.add_weight(shape=(2,), initializer="zeros")

        def step(before, now):
            return now, self.p[0] + self.p[1] * before

        self.step = step

    def call(self, inputs):
        series = ops.transpose(inputs)
        return ops.transpose(ops.scan(self.step, series[0], series[1:])[1])


def test_a_layer_that_keeps_its_step(float64):
    model = keras.Sequential([keras.Input((100,)), Autoregression()])
    model.compile(optimizer="l-bfgs-b", loss="mse")
    x, y = Y[None], Y[None, 1:]
    model(x)
    history = model.fit(x, y, epochs=100, verbose=0)
    assert history.result.loss == pytest.approx(LEAST / 99, rel=1e-8)
    np.testing.assert_allclose(model.get_weights()[0], BEST, rtol=1e-4)


def test_an_array_of_numpy_in_a_loss():
    """A later eager call, in which JAX rounds it to float32, is right too."""
    x, v = np.arange(3.0) + 1, keras.Variable([1.0, 2.0, 3.0])

    def loss():
        return ops.sum((v[0] * ops.convert_to_tensor(1.0) * x[1] - 6.0) ** 2)

    def of_array():
        return ops.sum((ops.convert_to_tensor(v)[0] * x - 6.0) ** 2)

    assert kormos.minimize(loss, [v]).loss < 1e-10
    if BACKEND == "torch":
        return  # It takes no array times a tensor with a gradient.
    # The sum of the squares of 6 - a x is least at a = 36 / 14.
    result = kormos.minimize(of_array, [v])
    assert result.loss == pytest.approx(108 - 36**2 / 14, rel=1e-5)
    assert float(of_array()) == pytest.approx(result.loss, rel=1e-5)
