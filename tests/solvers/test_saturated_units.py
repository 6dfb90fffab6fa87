"""Starts at which a sigmoid unit is saturated, in float32."""

import warnings

import keras
import numpy as np
import pytest

import kormos
from kormos.solvers.plateau import loss_below
from kormos.solvers.surroundings import Point

WEIGHTS = np.array([[1.0], [-2.0], [0.5]])


def fit(method, bias, noise, seed=0):
    """The result of a fit of a unit to one with a bias of 0.3."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(200, 3)).astype("float32")
    y = 1 / (1 + np.exp(-(x @ WEIGHTS + 0.3)))
    y += noise * rng.normal(size=y.shape)
    layer = keras.layers.Dense(1, activation="sigmoid")
    model = keras.Sequential([keras.Input((3,)), layer])
    start = np.array([[0.4], [0.1], [-0.6]])
    model.set_weights([start, np.array([bias])])
    model.compile(optimizer=method, loss="mse")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kormos.ConvergenceWarning)
        result = model.fit(x, y, epochs=300, verbose=0).result
    return result, model


@pytest.mark.parametrize("bias", [-12.0, 8.0, 12.0, 14.0])
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_lm_leaves_saturation_or_says_that_it_stalled(bias, noise):
    result, model = fit("lm", bias, noise)
    kernel, _ = model.get_weights()
    is_right = np.allclose(kernel, WEIGHTS, atol=0.2 if noise else 1e-3)
    assert result.success == is_right


@pytest.mark.parametrize("method", ["lbfgs", "ssbroyden", "l-bfgs-b"])
@pytest.mark.parametrize("bias", [-40.0, 40.0])
def test_a_plateau_is_no_optimum(method, bias):
    result, model = fit(method, bias, 0.05)
    assert result.status == "stalled" and not result.success
    assert "with smaller parameters it is" in result.message
    assert model.get_weights()[1][0] == bias


@pytest.mark.parametrize("bias", [-40.0, 40.0])
def test_a_plateau_is_no_optimum_of_lm(bias):
    result, model = fit("lm", bias, 0.05)
    assert result.status == "stalled" and not result.success
    assert model.get_weights()[1][0] == bias


def test_a_plateau_is_looked_at_within_bounds():
    points = []

    def evaluate(theta):
        points.append(theta)
        return np.tanh(theta).sum(), np.cosh(theta) ** -2.0

    low = np.array([20.0, 1.0])
    theta = np.array([40.0, 40.0])
    found = loss_below(
        evaluate,
        Point(theta, *evaluate(theta)),
        2.0**-52,
        lambda theta: np.maximum(theta, low),
    )
    assert found == pytest.approx(1 + np.tanh(1.0), rel=1e-12)
    assert all((theta >= low).all() for theta in points)
