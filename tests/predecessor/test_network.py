"""A small network of sigmoids: derivatives against differences."""

import keras
import numpy as np
import pytest
from keras import layers

import kormos
from kormos.models import BatchOptimizedSequentialModel

RANDOM = np.random.RandomState(1)
X = RANDOM.normal(size=(20, 3))
Y = RANDOM.uniform(size=(20, 1))

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(scope="module")
def objective():
    with kormos.precision("float64"):
        keras.utils.set_random_seed(0)
        model = BatchOptimizedSequentialModel(
            [
                keras.Input((3,)),
                layers.Dense(2, "sigmoid", use_bias=False),
                layers.Dense(1, "sigmoid", use_bias=False),
            ]
        )
        model.compile(optimizer="newton-cg", loss="mse")
        return kormos.Objective(model, X, Y)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def loss(theta):
    hidden = sigmoid(X @ theta[:6].reshape(3, 2))
    return np.mean((sigmoid(hidden @ theta[6:, None]) - Y) ** 2)


def test_the_loss_is_that_of_numpy(objective):
    theta = RANDOM.normal(size=8)
    assert objective.value(theta) == pytest.approx(loss(theta), rel=1e-14)


def test_the_gradient_is_that_of_differences(objective):
    theta, step = RANDOM.normal(size=8), 1e-6
    _, gradient = objective.value_and_grad(theta)
    for i, unit in enumerate(np.eye(8)):
        ahead, behind = loss(theta + step * unit), loss(theta - step * unit)
        slope = (ahead - behind) / (2 * step)
        assert gradient[i] == pytest.approx(slope, abs=1e-9)


def test_hessian_products_are_those_of_differences(objective):
    theta, step = RANDOM.normal(size=8), 1e-6
    for direction in (*np.eye(8), RANDOM.normal(size=8)):
        ahead, behind = (
            objective.value_and_grad(theta + sign * step * direction)[1]
            for sign in (1, -1)
        )
        np.testing.assert_allclose(
            objective.hvp(theta, direction),
            (ahead - behind) / (2 * step),
            atol=1e-9,
        )
