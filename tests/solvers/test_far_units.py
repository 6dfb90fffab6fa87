"""Fits that start many powers of ten away from their optimum."""

import keras
import numpy as np
import pytest
import scipy.optimize
from keras import ops

import kormos

X = np.linspace(0, 4, 30)
Y = 3 * np.exp(-1.1 * X) + 0.02 * np.random.default_rng(0).normal(size=30)
PEAK_X = np.linspace(0, 10, 60)
PEAK = 3 * np.exp(-0.5 * ((PEAK_X - 4) / 1.2) ** 2)
PEAK += 0.03 * np.random.default_rng(5).normal(size=60)


def decay(p, x, exp):
    return p[0] * exp(-p[1] * x)


def peak(p, x, exp):
    return p[0] * exp(-0.5 * ((x - p[1]) / p[2]) ** 2)


def fitted(model, start, x, y, method, dtype):
    """The `Result` of a fit by the sum of squares."""
    with kormos.precision(dtype):
        p = keras.Variable(np.array(start, dtype), dtype=dtype)
        return kormos.least_squares(
            lambda data: model(p, data["x"], ops.exp) - data["y"],
            [p],
            method,
            data={"x": x.astype(dtype), "y": y.astype(dtype)},
            reduction="sum",
            verbose=0,
        )


@pytest.mark.parametrize(
    "method, dtype, unit",
    [
        ("lbfgs", "float32", 1e12),
        ("l-bfgs-b", "float32", 1e12),
        ("ssbroyden", "float32", 1e18),
        ("lbfgs", "float64", 1e15),
        ("newton", "float64", 1e18),
    ],
)
def test_an_amplitude_far_below_the_data_is_no_optimum(method, dtype, unit):
    found = fitted(decay, [1, 1], X, unit * Y, method, dtype)
    right = scipy.optimize.least_squares(
        lambda p: decay(p, X, np.exp) - Y, [2.0, 1.0], xtol=1e-15, ftol=1e-15
    )
    accuracy = 1e-5 if dtype == "float32" else 1e-9
    assert found.success, found
    assert found.loss / unit**2 == pytest.approx(2 * right.cost, rel=accuracy)


@pytest.mark.parametrize("method", ["newton", "lbfgs"])
def test_tiny_units_are_no_step_of_length_zero(method):
    unit = 1e-40
    found = fitted(peak, [unit, 5, 1], PEAK_X, unit * PEAK, method, "float64")
    right = scipy.optimize.least_squares(
        lambda p: peak(p, PEAK_X, np.exp) - PEAK, [2, 4, 1], xtol=1e-15
    )
    assert found.success, found
    assert found.loss / unit**2 == pytest.approx(2 * right.cost, rel=1e-8)
