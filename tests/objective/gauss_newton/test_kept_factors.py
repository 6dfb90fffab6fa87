"""A small J is computed with every loss, and kept for its point."""

import copy

import keras
import numpy as np
import pytest
from keras import ops

from kormos.objective.functions.residuals import ResidualObjective

pytestmark = pytest.mark.usefixtures("float64")

X = np.linspace(0.0, 2.0, 9)
Y = np.exp(-X) + 0.1
STARTS = np.array([[2.0, 0.5], [1.5, 1.0], [0.7, 0.2]])


def decay(rows=X, targets=Y):
    v = keras.Variable(STARTS[0], dtype="float64")
    factor = keras.Variable(1.0, dtype="float64", trainable=False)

    def residuals(data):
        x, y = data
        return factor * v[0] * ops.exp(-v[1] * x) - y

    return ResidualObjective(residuals, [v], (rows, targets)), factor


def errors(theta, x=X, y=Y, factor=1.0):
    return factor * theta[0] * np.exp(-theta[1] * x) - y


def loss(theta, *given):
    return np.mean(errors(theta, *given) ** 2)


def slope(theta):
    columns = np.exp(-theta[1] * X), -X * theta[0] * np.exp(-theta[1] * X)
    return 2 * np.stack(columns) @ errors(theta) / len(X)


def close(value, expected):
    assert value == pytest.approx(expected, rel=1e-13)


def test_the_loss_is_that_of_the_same_call_as_j():
    objective, _ = decay()
    for theta in STARTS:
        close(objective.value(theta), loss(theta))
    matrix = objective.gauss_newton()

    def refuse(*args):
        raise AssertionError("The loss was evaluated alone.")

    objective.program.sums = refuse
    for theta in [*STARTS, *STARTS]:
        close(objective.value(theta), loss(theta))
        value, grad, _ = matrix.rows(theta)
        close(value, loss(theta))
        np.testing.assert_allclose(grad, slope(theta), rtol=1e-12)


def test_second_derivatives_of_an_earlier_point():
    """They are right whatever points were evaluated in between."""
    objective, _ = decay()
    matrix = objective.gauss_newton()
    vector, here = np.array([0.3, -0.2]), STARTS[0]
    expected = matrix.bend(here, vector)
    h = 1e-3
    ahead, behind = (errors(here + t * vector) for t in (h, -h))
    second = (ahead - 2 * errors(here) + behind) / h**2
    columns = np.exp(-here[1] * X), -X * here[0] * np.exp(-here[1] * X)
    close_to = 2 * np.stack(columns) @ second / len(X)
    np.testing.assert_allclose(expected, close_to, rtol=1e-5)
    for theta in STARTS:
        objective.value(theta)
        np.testing.assert_allclose(matrix.bend(here, vector), expected)


def test_other_data_are_seen():
    objective, factor = decay()
    matrix, theta = objective.gauss_newton(), STARTS[1]
    close(objective.value(theta), loss(theta))
    other = copy.copy(objective)
    other.replace((X[:4], Y[:4]))
    close(other.value(theta), loss(theta, X[:4], Y[:4]))
    close(objective.value(theta), loss(theta))
    objective.replace((X, 2 * Y))
    close(objective.value(theta), loss(theta, X, 2 * Y))
    close(matrix.rows(theta)[0], loss(theta, X, 2 * Y))
    factor.assign(3.0)
    objective.refresh()
    close(matrix.rows(theta)[0], loss(theta, X, 2 * Y, 3.0))
    close(objective.value(theta), loss(theta, X, 2 * Y, 3.0))


def test_a_large_j_is_left_alone():
    """Then a loss costs much less than J does."""
    x = np.linspace(0.0, 2.0, 3_000)
    objective, _ = decay(x, np.exp(-x))
    matrix = objective.gauss_newton()
    assert not matrix.is_cheap
    close(objective.value(STARTS[1]), loss(STARTS[1], x, np.exp(-x)))
