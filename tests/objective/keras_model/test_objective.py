"""The objective's value is what `evaluate` reports, for any model."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from compiled_models import Y2
from compiled_models import W
from compiled_models import X
from compiled_models import Y
from compiled_models import assert_equals_evaluate
from compiled_models import assert_value
from compiled_models import two

pytestmark = pytest.mark.usefixtures("float64")


# Kinds of models


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(2, activation="tanh")
        self.drop = layers.Dropout(0.5)
        self.p = layers.Dense(1)

    def call(self, inputs, training=False):
        hidden = self.drop(self.hidden(inputs), training=training)
        return self.p(hidden)


class DictModel(keras.Model):
    def __init__(self):
        super().__init__()
        self.a = layers.Dense(1)
        self.b = layers.Dense(2)

    def call(self, inputs):
        p = self.a(inputs["u"])
        return {"p": p, "q": p + self.b(inputs["v"])}


def with_moving_averages():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4),
            layers.BatchNormalization(name="norm"),
            layers.Dropout(0.5),
            layers.Dense(1),
        ]
    )
    model.compile(optimizer="adam", loss="mse")
    norm = model.get_layer("norm")
    norm.moving_mean.assign([1, 2, 3, 4])
    norm.moving_variance.assign([0.1, 0.2, 0.3, 4])
    return model


def test_sequential_with_batch_normalization_and_dropout():
    assert_equals_evaluate(with_moving_averages(), X, Y)


def test_loaded_model(tmp_path):
    model = two("dict", {"p": "mse", "q": keras.losses.Huber()}, [1, 0.3])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    y = {"p": Y, "q": Y2}
    assert_equals_evaluate(loaded, X, y)
    theta = kormos.Objective(model, X, y).initial_position()
    assert kormos.Objective(loaded, X, y).value(theta) == pytest.approx(
        kormos.Objective(model, X, y).value(theta), rel=1e-12
    )


@pytest.mark.parametrize("build", [True, False])
def test_subclassed_model(build):
    model = Subclassed()
    model.compile(loss="mse")
    if build:
        model(X[:1])
    assert_equals_evaluate(model, X, Y)


def test_unbuilt_model_with_dicts():
    model = DictModel()
    model.compile(loss={"p": "mse", "q": "mae"}, loss_weights={"p": 1, "q": 2})
    assert_equals_evaluate(model, {"u": X, "v": Y2}, {"p": Y, "q": Y2})


@pytest.mark.parametrize("structure", ["list", "tuple", "dict"])
def test_several_inputs(structure):
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    inputs, x = {
        "list": ([a, b], [X, Y2]),
        "tuple": ((a, b), (X, Y2)),
        "dict": ({"b": b, "a": a}, {"a": X, "b": Y2}),
    }[structure]
    outputs = layers.Dense(1)(layers.Concatenate()([a, b]))
    model = keras.Model(inputs, outputs)
    model.compile(loss="mse")
    assert_equals_evaluate(model, x, Y)


# Terms that layers and models add


class AddsLoss(layers.Layer):
    def call(self, inputs):
        self.add_loss(0.125 * ops.mean(ops.square(inputs)))
        return inputs


def penalized(loss):
    # TensorFlow rounds Keras' factors to float32.
    l1, l2 = keras.regularizers.L1(2**-6), keras.regularizers.L2(2**-7)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(2, "tanh", False, activity_regularizer=l2),
            AddsLoss(),
            layers.Dense(1, kernel_regularizer=l1, bias_regularizer=l2),
        ]
    )
    model.compile(loss=loss)
    return model


def penalty(model):
    """The losses that `penalized` adds for all rows, and its outputs, in NumPy.

    On JAX, Keras' own `evaluate` sometimes leaves a part out, because it finds
    losses by the ids of objects that no longer exist.
    """
    first, last, bias = model.get_weights()
    hidden = np.tanh(X @ first)
    added = 2**-7 * np.sum(hidden**2) / len(X) + 0.125 * np.mean(hidden**2)
    added += 2**-6 * np.sum(np.abs(last)) + 2**-7 * np.sum(bias**2)
    return added, hidden @ last + bias


@pytest.mark.parametrize("weight", [None, W], ids=["", "weighted"])
def test_regularizers_and_added_losses(weight):
    model = penalized("mse")
    added, outputs = penalty(model)
    squares = (outputs - Y)[:, 0] ** 2 * (1 if weight is None else weight)
    expected = squares.mean() + added
    assert_value(model, expected, X, Y, sample_weight=weight)


def test_added_losses_alone():
    model = penalized(None)
    assert_value(model, penalty(model)[0], X)


class CallsSuper(keras.Model):
    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return 2 * loss + ops.mean(ops.square(y_pred))


class CallsNothing(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return ops.mean(ops.abs(y - y_pred))


@pytest.mark.parametrize("kind", [CallsSuper, CallsNothing])
def test_model_with_its_own_compute_loss(kind):
    inputs = keras.Input((3,))
    outputs = layers.Dense(1, kernel_regularizer="l2")(inputs)
    model = kind(inputs, outputs)
    model.compile(loss="mse")
    assert_equals_evaluate(model, X, Y)


def test_chunks_are_cut_for_jacobians_when_a_method_needs_them():
    x = np.random.default_rng(0).normal(size=(100_000, 1))
    model = keras.Sequential(
        [keras.Input((1,)), layers.Dense(20, "tanh"), layers.Dense(1)]
    )
    model.compile(loss="mse")
    objective = kormos.Objective(model, x, np.sin(x))
    theta = objective.initial_position()
    before = objective.value(theta)
    objective.cut_for_jacobians()
    expected = kormos.Objective(model, x, np.sin(x), with_jacobian=True)
    assert objective.chunk_rows == expected.chunk_rows < 100_000
    np.testing.assert_allclose(objective.value(theta), before, rtol=1e-6)
    history = kormos.fit(
        model, x, np.sin(x), optimizer="auto", epochs=2, verbose=0
    )
    assert history.result.loss < before
