"""Losses that are not means over rows depend on `batch_size`: a warning."""

import re
import warnings

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

RANDOM = np.random.RandomState(0)
# Sorted, so that the halves of a batch differ.
X = np.sort(RANDOM.normal(size=(40, 3)), axis=0).astype("float32")
Y = X.sum(axis=1).astype("float32")


class Broadcast(keras.Model):
    """Subtracts arrays of shapes `(n,)` and `(n, 1)`."""

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return ops.mean(ops.square(y - y_pred))


class Summed(keras.Model):
    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return ops.sum(ops.square(y - y_pred[:, 0]))


class Mean(keras.Model):
    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        own = ops.mean(ops.square(y - y_pred[:, 0]))
        return own + ops.sum(ops.square(self.layers[-1].kernel))


def contrast(y_true, y_pred):
    # Keras has made both of shape `(n,)`.
    own = ops.square(y_pred - y_true)
    return own - 0.5 * ops.mean(ops.square(y_pred - ops.mean(y_pred)))


class Squares(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean(ops.square(y_pred[:, 0] - y_true), axis=-1)


class Adds(layers.Layer):
    def __init__(self, reduce):
        super().__init__()
        self.reduce = reduce

    def call(self, inputs):
        self.add_loss(0.01 * self.reduce(ops.square(inputs)))
        return inputs


class Centered(layers.Layer):
    def call(self, inputs):
        return inputs - ops.mean(inputs, axis=0, keepdims=True)


def model_of(kind=keras.Model, hidden=None, loss=None, **dense):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    values = inputs if hidden is None else hidden(inputs)
    model = kind(inputs, layers.Dense(1, **dense)(values))
    model.compile("lbfgs", loss=loss)
    return model


def messages(model, batch_size=None, **kwargs):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            model.fit(
                X, Y, epochs=1, batch_size=batch_size, verbose=0, **kwargs
            )
    texts = [str(w.message) for w in caught]
    return [text for text in texts if "batch_size" in text]


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: model_of(Broadcast), "`compute_loss` of Broadcast"),
        (lambda: model_of(Summed), "`compute_loss` of Summed"),
        (
            lambda: model_of(loss=contrast, kernel_initializer="ones"),
            "the loss contrast",
        ),
        (lambda: model_of(hidden=Adds(ops.sum), loss="mse"), "`add_loss`"),
        (lambda: model_of(Mean, Centered()), "the outputs of a row"),
    ],
    ids=["broadcast", "summed", "contrast", "add_loss", "mixed"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_depends_on_the_batch_size_is_named_once(make, name, stream):
    model = make()
    kwargs = {"stream": True} if stream else {}
    (message,) = messages(model, 16, **kwargs)
    assert f"Received: {name}" in message


def test_the_warning_tells_by_how_much():
    (message,) = messages(model_of(Summed), 20)
    numbers = re.search(r"is ([\d.]+) for 20 rows and ([\d.]+) for", message)
    whole, halves = map(float, numbers.groups())
    # A sum of twice as many rows.
    assert whole == pytest.approx(2 * halves, rel=1e-4)


@pytest.mark.parametrize("batch_size", [None, 40])
@pytest.mark.parametrize("kind", [Broadcast, Summed])
def test_one_batch_is_all_there_is(kind, batch_size):
    assert messages(model_of(kind), batch_size) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: model_of(Mean),
        lambda: model_of(loss=Squares()),
        lambda: model_of(loss=lambda y, p: ops.mean(ops.square(y - p))),
        lambda: model_of(hidden=Adds(ops.mean), loss="mse"),
        lambda: model_of(loss="mse", activity_regularizer="l2"),
        lambda: model_of(loss="mse", kernel_regularizer="l2"),
    ],
    ids=["own", "class", "scalar", "add_loss", "activity", "weights"],
)
def test_means_over_rows_are_right(make):
    assert messages(make(), 16) == []


def test_a_good_fit_is_all_rounding():
    model = model_of(Mean)
    model.layers[-1].kernel.assign(np.ones((3, 1)))
    assert messages(model, 16) == []


def test_a_loss_of_so_many_rows_alone():
    class Fours(keras.Model):
        def compute_loss(
            self, x=None, y=None, y_pred=None, sample_weight=None, training=True
        ):
            fours = ops.reshape(y_pred, (4, 5))
            return ops.mean(ops.square(fours - 1))

    assert messages(model_of(Fours), 20) == []
