"""The states of layers after a fit in training mode."""

import keras
import numpy as np
import pytest
from keras import layers

import kormos
from conftest import BACKEND

rng = np.random.default_rng(0)
X = rng.normal(2.0, 3.0, size=(24, 3)).astype("float32")
Y = np.sin(X[:, :1])


def compiled(method, *stack, **kwargs):
    model = keras.Sequential([keras.Input((3,)), *stack])
    model.compile(method, loss="mse", **kwargs)
    return model


class Standardize(layers.Layer):
    """Batch normalization within a layer, and a count of calls."""

    def __init__(self):
        super().__init__()
        self.norm = layers.BatchNormalization(momentum=0.5)

    def build(self, shape):
        self.norm.build(shape)
        self.calls = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="calls"
        )

    def call(self, x, training=False):
        if training:
            self.calls.assign(self.calls + 1.0)
        return self.norm(x, training=training)


@pytest.mark.parametrize("precision", [None, "float64"])
@pytest.mark.parametrize("method", ["lbfgs", "l-bfgs-b"])
def test_evaluate_is_what_was_minimized(method, precision):
    if precision and BACKEND != "torch":
        pytest.skip("compiles twice")
    norm = layers.BatchNormalization()
    model = compiled(method, layers.Dense(4, "tanh"), norm, layers.Dense(1))
    result = model.fit(
        X, Y, epochs=5, verbose=0, training=True, precision=precision
    ).result
    assert result.loss < result.initial_loss
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(result.loss, 1e-5)
    kernel, bias = model.layers[0].get_weights()
    hidden = np.tanh(X.astype("float64") @ kernel + bias)
    for average, expected in (
        (norm.moving_mean, hidden.mean(axis=0)),
        (norm.moving_variance, hidden.var(axis=0)),
    ):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(average), expected, rtol=1e-5, atol=1e-6
        )


def test_validation_and_callbacks_see_the_averages():
    model = compiled("l-bfgs-b", layers.BatchNormalization(), layers.Dense(1))
    seen = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(
            (logs["loss"], logs["val_loss"], model.evaluate(X, Y, verbose=0))
        )
    )
    model.fit(
        X,
        Y,
        epochs=4,
        verbose=0,
        training=True,
        validation_data=(X, Y),
        callbacks=[look],
    )
    assert len(seen) == 4
    for own, validated, evaluated in seen:
        assert validated == pytest.approx(own, 1e-5)
        assert evaluated == pytest.approx(own, 1e-5)


def test_layers_within_layers_and_other_states():
    layer = Standardize()
    model = compiled("l-bfgs-b", layer, layers.Dense(1))
    model.fit(X, Y, epochs=3, verbose=0, training=True)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(layer.norm.moving_mean), X.mean(0), rtol=1e-5
    )
    # The pass that the averages are of.
    assert float(layer.calls) == 1


def test_frozen_averages_stay():
    norm = layers.BatchNormalization()
    model = compiled("l-bfgs-b", norm, layers.Dense(1))
    norm.trainable = False
    model.fit(X, Y, epochs=3, verbose=0, training=True)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(norm.moving_mean), np.zeros(3)
    )


def test_the_averages_of_chunks():
    """Their mean over all rows is the mean of the data."""
    norm = layers.BatchNormalization()
    model = compiled("l-bfgs-b", norm, layers.Dense(1))
    model.fit(X, Y, batch_size=8, epochs=3, verbose=0, training=True)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(norm.moving_mean), X.mean(0), rtol=1e-5
    )
    within = [X[i : i + 8].var(axis=0) for i in (0, 8, 16)]
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(norm.moving_variance),
        np.mean(within, axis=0),
        rtol=1e-5,
    )


def test_an_objective_that_is_assigned():
    norm = layers.BatchNormalization()
    model = compiled("l-bfgs-b", norm, layers.Dense(1))
    objective = kormos.Objective(model, X, Y, training=True)
    theta = objective.initial_position() + 0.1
    objective.assign(theta)
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(
        objective.value(theta), 1e-5
    )


def test_in_inference_nothing_is_assigned():
    norm = layers.BatchNormalization()
    model = compiled("l-bfgs-b", norm, layers.Dense(1))
    model.fit(X, Y, epochs=3, verbose=0)
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(norm.moving_variance), np.ones(3)
    )


class Inferring(keras.Model):
    """Uses its averages as they are, and never calls one of its layers."""

    def __init__(self):
        super().__init__()
        self.norm = layers.BatchNormalization()
        self.unused = layers.BatchNormalization()
        self.last = layers.Dense(1)

    def build(self, shape):
        for layer in (self.norm, self.unused, self.last):
            layer.build(shape)

    def call(self, x, training=False):
        return self.last(self.norm(x, training=False))


def test_averages_that_a_pass_does_not_change_stay():
    model = Inferring()
    model.build((None, 3))
    for norm in (model.norm, model.unused):
        norm.moving_mean.assign(X.mean(axis=0))
        norm.moving_variance.assign(X.var(axis=0))
    model.compile("lbfgs", loss="mse")
    loss = model.fit(X, Y, epochs=5, verbose=0, training=True).result.loss
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(loss, 1e-5)
    for norm in (model.norm, model.unused):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(norm.moving_mean), X.mean(axis=0)
        )


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
def test_a_layer_that_is_called_twice_has_the_mean_of_its_calls(momentum):
    """The calls of a pass count as in Keras, where the later counts more."""
    first, second = keras.Input((3,)), keras.Input((3,))
    norm = layers.BatchNormalization(momentum=momentum)
    joined = layers.Concatenate()([norm(first), norm(second)])
    model = keras.Model([first, second], layers.Dense(1)(joined))
    model.compile("l-bfgs-b", loss="mse")
    other = (2 * X + 1).astype("float32")
    model.fit([X, other], Y, epochs=3, verbose=0, training=True)
    for average, of_first, of_second in (
        (norm.moving_mean, X.mean(axis=0), other.mean(axis=0)),
        (norm.moving_variance, X.var(axis=0), other.var(axis=0)),
    ):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(average),
            (momentum * of_first + of_second) / (1 + momentum),
            rtol=1e-5,
        )


@pytest.mark.parametrize("method", ["lbfgs", "adam"])
def test_validation_sees_the_averages_without_callbacks(method):
    optimizer = method
    if method == "adam":
        adam = keras.optimizers.Adam(0.01)
        optimizer = kormos.optimizers.Chain([adam, "lbfgs"])
    histories = []
    for callbacks in ([], [keras.callbacks.Callback()]):
        keras.utils.set_random_seed(0)
        model = compiled(
            optimizer, layers.BatchNormalization(), layers.Dense(1)
        )
        history = model.fit(
            X,
            Y,
            epochs=4,
            verbose=0,
            training=True,
            validation_data=(X, Y),
            callbacks=callbacks,
        ).history
        histories.append(history["val_loss"])
        if method == "lbfgs":
            np.testing.assert_allclose(
                history["val_loss"], history["loss"], rtol=1e-5
            )
    np.testing.assert_allclose(*histories, rtol=1e-6)


def test_other_states_are_those_after_one_pass():
    class Growing(layers.Layer):
        def build(self, shape):
            self.count = self.add_weight(
                shape=(), initializer="zeros", trainable=False
            )

        def call(self, x, training=False):
            if training:
                self.count.assign(self.count + 1.0)
            return x * (1 + 0.1 * self.count)

    for callbacks in ([], [keras.callbacks.Callback()]):
        layer = Growing()
        model = compiled("lbfgs", layer, layers.Dense(1))
        result = model.fit(
            X, Y, epochs=5, verbose=0, training=True, callbacks=callbacks
        ).result
        assert float(layer.count) == 1
        assert model.evaluate(X, Y, verbose=0) == pytest.approx(
            result.loss, 1e-5
        )
