"""Ends of `lm` are no saddle points at which J is singular."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from kormos.solvers.saddle import _most_negative


def product_of(matrix, calls):
    def product(vector):
        calls.append(vector)
        return matrix @ vector

    return product


@pytest.mark.parametrize(
    "matrix",
    [
        # Negative only by what couples the start to another direction.
        [[0.0, 0.3, 0.0], [0.3, 2.0, 0.1], [0.0, 0.1, 1.0]],
        [[-0.01, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0]],
        np.diag([1.0, 0.5, -0.2]) + 0.05,
    ],
)
def test_a_negative_direction_is_found(matrix):
    matrix, calls = np.array(matrix), []
    start = np.array([1.0, 0.0, 0.0])
    found = _most_negative(product_of(matrix, calls), start, 1e-5)
    assert np.linalg.norm(found) == pytest.approx(1)
    assert found @ matrix @ found < 0
    assert len(calls) <= 3


def test_no_direction_of_a_matrix_that_is_not_negative():
    half = np.random.default_rng(0).normal(size=(8, 5))
    calls = []
    start = np.full(8, 8**-0.5)
    assert _most_negative(product_of(half @ half.T, calls), start, 1e-5) is None
    assert len(calls) <= 6


def test_a_factorization_from_zero(float64):
    """At zero the gradient of |A - uv'|^2 vanishes; the minimum is known."""
    matrix = np.random.default_rng(1).normal(size=(5, 4))
    u = keras.Variable(np.zeros((5, 1)), dtype="float64")
    v = keras.Variable(np.zeros((4, 1)), dtype="float64")

    def residuals():
        return ops.matmul(u, ops.transpose(v)) - ops.convert_to_tensor(matrix)

    result = kormos.least_squares(residuals, [u, v], reduction="sum")
    assert result.success, result
    # What the largest singular value does not explain (Eckart and Young).
    rest = np.linalg.svd(matrix, compute_uv=False)[1:]
    assert result.loss == pytest.approx(rest @ rest, rel=1e-10)


def test_a_network_from_zero(float64):
    """With kernels of zero, all units are equal, and no kernel has a slope."""
    x = np.linspace(-1, 1, 40)[:, None]
    y = np.tanh(2 * x)
    model = keras.Sequential(
        [
            keras.Input((1,)),
            layers.Dense(3, "tanh", kernel_initializer="zeros"),
            layers.Dense(1, kernel_initializer="zeros"),
        ]
    )
    model.compile("lm", loss="mse")
    result = model.fit(x, y, epochs=200, verbose=0).result
    assert result.loss < 1e-6 * np.mean(y**2), result


def test_collinear_regressors_end_as_before(float64):
    """Where nothing is negative, a few evaluations tell so."""
    x = np.random.default_rng(0).normal(size=(30, 2))
    x = np.c_[x, x.sum(axis=1)]
    y = x @ [1.0, 2.0, 3.0] + np.sin(np.arange(30.0))
    b = keras.Variable(np.zeros(3), dtype="float64")
    result = kormos.least_squares(
        lambda d: ops.matmul(d[0], b) - d[1], [b], data=(x, y), reduction="sum"
    )
    _, (rest,), _, _ = np.linalg.lstsq(x[:, :2], y, rcond=None)
    assert result.success, result
    assert result.loss == pytest.approx(rest, rel=1e-10)
