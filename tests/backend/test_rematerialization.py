"""Layers that are computed again while they are differentiated."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from conftest import BACKEND

RANDOM = np.random.RandomState(0)
X, Y = RANDOM.normal(size=(7, 4)), RANDOM.normal(size=(7, 1))


class Rematerialized(layers.Layer):
    def __init__(self, apply=keras.remat):
        super().__init__()
        self.apply = apply
        self.calls = 0

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 3))

    def curved(self, inputs):
        self.calls += 1
        return ops.tanh(inputs @ self.kernel)

    def call(self, inputs):
        return self.apply(self.curved)(inputs)


def in_a_scope(mode):
    with keras.RematScope(mode=mode):
        return layers.Dense(3, activation="tanh")


LAYERS = {
    "a layer": lambda: in_a_scope("full"),
    "its activation": lambda: in_a_scope("activations"),
    "a function": Rematerialized,
}


def model_with(layer):
    model = keras.Sequential([keras.Input((4,)), layer, layers.Dense(1)])
    model.compile(loss="mse")
    return model


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_of_another_point(name):
    objective = kormos.Objective(model_with(LAYERS[name]()), X, Y)
    theta = objective.initial_position() + RANDOM.normal(size=objective.size)
    vector = RANDOM.normal(size=theta.size)
    points = theta + 1e-5 * vector, theta - 1e-5 * vector
    ahead, behind = map(objective.value, points)
    _, grad = objective.value_and_grad(theta)
    assert grad @ vector == pytest.approx((ahead - behind) / 2e-5, rel=1e-7)
    ahead, behind = (objective.value_and_grad(p)[1] for p in points)
    np.testing.assert_allclose(
        objective.hvp(theta, vector), (ahead - behind) / 2e-5, atol=1e-6
    )
    _, rows, _ = objective.gauss_newton().normal_equations(theta)
    np.testing.assert_allclose(rows, grad, atol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", ["lbfgs", "lm"])
def test_fits_are_those_of_the_plain_layer(method):
    own, plain = (
        model_with(Rematerialized(apply))
        for apply in (keras.remat, lambda fn: fn)
    )
    plain.set_weights(own.get_weights())
    found, expected = (
        kormos.fit(
            model, X, Y, optimizer=method, epochs=4, verbose=0
        ).result.loss
        for model in (own, plain)
    )
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", ["lbfgs", "lm"])
def test_residuals_that_are_rematerialized(method):
    x = np.linspace(0, 1, 20)
    v = keras.Variable(np.ones(2))

    def residuals(data):
        decay = keras.remat(lambda x: v[0] * ops.exp(-v[1] * x))
        return decay(data["x"]) - data["y"]

    y = 2 * np.exp(-3 * x)
    kormos.least_squares(residuals, [v], method, data={"x": x, "y": y})
    np.testing.assert_allclose(ops.convert_to_numpy(v), [2, 3], rtol=1e-6)


@pytest.mark.skipif(BACKEND != "torch", reason="It is eager.")
def test_stock_training_still_rematerializes():
    layer = Rematerialized()
    model = model_with(layer)
    kormos.fit(model, X, Y, epochs=2, verbose=0)
    model.compile("sgd", "mse")
    model.train_on_batch(X, Y)
    layer.calls = 0
    model.train_on_batch(X, Y)
    assert layer.calls == 2


@pytest.mark.skipif(BACKEND != "torch", reason="It is PyTorch's own.")
@pytest.mark.parametrize("method", ["lbfgs", "lm", "newton-cg"])
def test_checkpoints_past_keras_are_refused(method):
    from torch.utils.checkpoint import checkpoint

    def apply(fn):
        return lambda inputs: checkpoint(fn, inputs, use_reentrant=False)

    model = model_with(Rematerialized(apply))
    with pytest.raises(ValueError, match="`torch.utils.checkpoint`"):
        kormos.fit(model, X, Y, optimizer=method, verbose=0)


class OfALayer(layers.Layer):
    """Hands a layer itself to what rematerializes, at every call."""

    def __init__(self, apply):
        super().__init__()
        self.apply, self.inner = apply, layers.Dense(3, activation="tanh")

    def build(self, shape):
        self.inner.build(shape)

    def call(self, inputs):
        return self.apply(self.inner)(inputs)


def assert_as_plain(layer, method, apply):
    own, plain = (model_with(layer(a)) for a in (apply, lambda fn: fn))
    plain.set_weights(own.get_weights())
    found, expected = (
        kormos.fit(model, X, Y, optimizer=method, epochs=4, verbose=0)
        for model in (own, plain)
    )
    assert found.result.loss == pytest.approx(expected.result.loss, rel=1e-6)


METHODS = ["lbfgs", "l-bfgs-b", "lm", "newton"]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", METHODS)
def test_a_layer_that_is_handed_over_itself(method):
    # JAX keeps what it traced by the function, with values of the variables.
    assert_as_plain(OfALayer, method, keras.remat)


@pytest.mark.usefixtures("float64")
@pytest.mark.skipif(BACKEND != "jax", reason="It is JAX's own.")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", [OfALayer, Rematerialized])
def test_checkpoints_of_jax(layer, method):
    import jax

    assert_as_plain(layer, method, jax.checkpoint)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="It is TensorFlow's own.")
@pytest.mark.parametrize("method", METHODS)
def test_gradients_that_tensorflow_recomputes_are_refused(method):
    import tensorflow as tf

    model = model_with(Rematerialized(tf.recompute_grad))
    kept = model.get_weights()
    with pytest.raises(ValueError, match="recompute_grad|wrong second"):
        kormos.fit(model, X, Y, optimizer=method, verbose=0)
    for now, before in zip(model.get_weights(), kept, strict=True):
        np.testing.assert_array_equal(now, before)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="It is TensorFlow's own.")
@pytest.mark.parametrize("method", ["lbfgs", "lm"])
def test_functions_without_variables_that_tensorflow_recomputes(method):
    import tensorflow as tf

    def bent(inputs):
        return ops.tanh(inputs) * ops.exp(-ops.square(inputs))

    own, plain = (
        model_with(layers.Lambda(fn)) for fn in (tf.recompute_grad(bent), bent)
    )
    plain.set_weights(own.get_weights())
    found, expected = (
        kormos.fit(model, X, Y, optimizer=method, epochs=4, verbose=0)
        for model in (own, plain)
    )
    assert found.result.loss == pytest.approx(expected.result.loss, rel=1e-4)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="It is TensorFlow's own.")
def test_a_model_whose_variables_are_all_recomputed():
    import tensorflow as tf

    model = keras.Sequential(
        [keras.Input((4,)), Rematerialized(tf.recompute_grad)]
    )
    model.compile(loss="mse")
    with pytest.raises(ValueError, match="neither does `tf.recompute_grad`"):
        kormos.fit(model, X, np.tile(Y, 3), optimizer="lbfgs", verbose=0)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="It is TensorFlow's own.")
def test_second_derivatives_of_a_recomputed_object():
    import tensorflow as tf

    bent = layers.Lambda(tf.recompute_grad(layers.Activation("tanh")))
    model = model_with(keras.Sequential([layers.Dense(3), bent]))
    with pytest.raises(ValueError, match="needs second derivatives"):
        kormos.fit(model, X, Y, optimizer="newton", verbose=0)
