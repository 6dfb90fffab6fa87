"""Models with a compiled loss, their data, and a comparison with Keras."""

import keras
import numpy as np
from keras import layers
from keras import ops

import kormos

ROWS = 7
random = np.random.RandomState(0)
X = random.normal(size=(ROWS, 3))
Y = random.normal(size=(ROWS, 1))
Y2 = random.normal(size=(ROWS, 2))
W = random.uniform(0, 2, ROWS)


def assert_equals_evaluate(model, x, y=None, evaluated=None, **weights):
    """Compares chunks of 3, 3 and 1 rows with one batch of `evaluate`."""
    reported = model.evaluate(
        x,
        y,
        batch_size=ROWS,
        verbose=0,
        return_dict=True,
        **(weights if evaluated is None else evaluated),
    )
    assert_value(model, reported["loss"], x, y, **weights)


def assert_value(model, expected, x, y=None, **weights):
    """Compares chunks of 3, 3 and 1 rows with the loss of all."""
    objective = kormos.Objective(model, x, y, batch_size=3, **weights)
    value = objective.value(objective.initial_position())
    np.testing.assert_allclose(value, expected, rtol=1e-12)


def one(loss, units=1, loss_weights=None, **kwargs):
    inputs = keras.Input((3,))
    outputs = layers.Dense(units, name="p", **kwargs)(inputs)
    model = keras.Model(inputs, outputs)
    model.compile(loss=loss, loss_weights=loss_weights)
    return model


def two(outputs, loss, loss_weights=None):
    """A model with outputs `p`, one wide, and `q`, two wide."""
    inputs = keras.Input((3,))
    p = layers.Dense(1, name="p")(inputs)
    q = layers.Dense(2, name="q")(inputs)
    outputs = {"list": [p, q], "tuple": (p, q), "dict": {"p": p, "q": q}}[
        outputs
    ]
    model = keras.Model(inputs, outputs)
    model.compile(loss=loss, loss_weights=loss_weights)
    return model


def squared_error(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred), axis=-1)
