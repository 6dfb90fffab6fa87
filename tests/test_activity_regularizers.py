"""Penalties on the outputs of layers, with `lm`."""

import keras
import numpy as np
import pytest
from keras import layers

import kormos

RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.normal(size=(30, 6, 6, 2))
TARGETS = np.tanh(IMAGES.reshape(30, -1)[:, :1])

L2 = keras.regularizers.L2(0.01)
STACKS = {
    "Dense": lambda: [
        layers.Flatten(),
        layers.Dense(4, "tanh", activity_regularizer=L2),
    ],
    "Conv2D": lambda: [
        layers.Conv2D(2, 3, activation="tanh", activity_regularizer=L2),
        layers.Flatten(),
    ],
    "both": lambda: [
        layers.Conv2D(2, 3, activation="tanh", activity_regularizer="l2"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(2, activity_regularizer="l1"),
    ],
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("batch_size", [30, 7])
@pytest.mark.parametrize("name", STACKS)
def test_the_loss_is_that_of_evaluate(name, batch_size):
    model = keras.Sequential(
        [keras.Input((6, 6, 2)), *STACKS[name](), layers.Dense(1)]
    )
    model.compile("lm", "mse")
    history = model.fit(
        IMAGES, TARGETS, batch_size=batch_size, epochs=4, verbose=0
    )
    result = history.result
    assert result.loss < result.initial_loss
    expected = model.evaluate(IMAGES, TARGETS, batch_size=30, verbose=0)
    assert result.loss == pytest.approx(expected, rel=1e-6)
    objective = kormos.Objective(model, IMAGES, TARGETS)
    theta = objective.initial_position()
    _, grad = objective.value_and_grad(theta)
    _, rows, _ = objective.gauss_newton().normal_equations(theta)
    np.testing.assert_allclose(rows, grad, atol=1e-10)
