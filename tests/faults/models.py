"""The model of most faults, whose output may have a wall."""

import functools

import keras
import numpy as np
from keras import layers
from keras import ops

# One of each family of methods, and one with Hessian products.
FAMILIES = ["l-bfgs-b", "lbfgs", "ssbroyden", "lm"]
METHODS = [*FAMILIES, "newton-cg"]

# The third column of `x`, which chooses what is beyond the wall.
NOTHING, NAN, INFINITY, NAN_SLOPE = range(4)
LIMIT = 1.0


@keras.saving.register_keras_serializable(package="faults")
class Wall(layers.Layer):
    """Passes values on that are smaller than `LIMIT`."""

    def call(self, values, beyond):
        is_lost = (beyond == NAN) | (beyond == INFINITY)
        is_lost = is_lost & (ops.abs(values) > LIMIT)
        lost = ops.where(beyond == NAN, float("nan"), float("inf"))
        values = ops.where(is_lost, lost, values)
        depth = LIMIT - ops.abs(values)
        # This is zero, or twice the depth. Where it is zero, the slope of its
        # root is infinity minus infinity.
        depth = depth + ops.abs(depth)
        depth = ops.where(beyond == NAN_SLOPE, depth, ops.ones_like(depth))
        return values + 1e-3 * (ops.sqrt(depth) - 1)


def network(optimizer, units=3, seed=0):
    """A model of 13 parameters."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((3,))
    hidden = layers.Dense(units, "tanh")(inputs[:, :2])
    values = layers.Dense(1)(hidden)
    model = keras.Model(inputs, Wall()(values, inputs[:, 2:]))
    model.set_weights([0.5 * w for w in model.get_weights()])
    model.compile(optimizer=optimizer, loss="mse")
    # Files should contain everything that can be lost.
    model.optimizer.keep_state = True
    return model


def data(beyond=NOTHING, height=0.4, rows=12):
    """Targets from zero to twice the height."""
    x = np.random.default_rng(0).uniform(-1, 1, (rows, 2))
    y = height * (x**2).sum(axis=1, keepdims=True)
    return np.hstack([x, np.full((rows, 1), float(beyond))]), y


def loss(model, x, y):
    """The compiled loss, by Keras alone and without compiling."""
    value = model.compute_loss(
        x=x, y=y, y_pred=model(x, training=False), training=False
    )
    return float(ops.convert_to_numpy(value))


@functools.cache
def _shared(method):
    # Compiling takes longer than any fit here.
    model = network(method)
    weights = model.get_weights()
    history = model.fit(*data(), epochs=6, verbose=0)
    return model, weights, history.history["loss"]


def shared(method):
    """A model for many faults, and its initial weights."""
    model, weights, _ = _shared(method)
    model.set_weights(weights)
    model.optimizer.solver_state = None
    return model


def assert_as_new(method):
    """Asserts that a fit of the shared model equals its very first one."""
    _, _, losses = _shared(method)
    model = shared(method)
    history = model.fit(*data(), epochs=6, verbose=0)
    assert history.history["loss"] == losses


def assert_usable(history):
    """Asserts that a History has columns of equal length and finite losses."""
    rows = len(history.epoch)
    assert all(len(column) == rows for column in history.history.values())
    assert len(history.iteration) == len(history.seconds) == rows
    assert np.isfinite(history.history.get("loss", [])).all()
