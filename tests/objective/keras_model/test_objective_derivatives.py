"""Gradients, Hessian products and Hessians of the objective."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from conftest import BACKEND
from conftest import TIGHT
from conftest import lindata
from conftest import linear

pytestmark = pytest.mark.usefixtures("float64")


class Penalty(layers.Layer):
    def call(self, inputs):
        self.add_loss(0.1 * ops.mean(ops.square(inputs)))
        return inputs


def curved_model_and_data():
    """A model with every kind of term in its loss."""
    if BACKEND == "torch" and keras.__version__ < "3.15":
        pytest.skip("Keras' masked pooling changes its input in place")
    ids = keras.Input((4,), dtype="int32")
    side = keras.Input((2,))
    steps = layers.Embedding(5, 2, mask_zero=True)(ids)
    steps = layers.Dense(2, "tanh", kernel_regularizer="l2")(steps)
    per_step = layers.Dense(1)(steps)
    pooled = layers.GlobalAveragePooling1D()(steps)
    joined = Penalty()(layers.Concatenate()([pooled, side]))
    label = layers.Dense(3, "softmax", name="label")(joined)
    model = keras.Model([ids, side], [per_step, label])
    model.compile(
        loss=[
            keras.losses.LogCosh(reduction="mean_with_sample_weight"),
            "sparse_categorical_crossentropy",
        ],
        loss_weights=[2, 0.5],
    )
    random = np.random.RandomState(3)
    data = {
        "x": [random.randint(0, 5, (7, 4)), random.normal(size=(7, 2))],
        "y": [random.normal(size=(7, 4, 1)), random.randint(0, 3, 7)],
        "sample_weight": [random.uniform(size=(7, 4)), random.uniform(size=7)],
    }
    return model, data


@pytest.fixture(scope="module")
def curved():
    """The objective of that model, and a point."""
    with kormos.precision("float64"):
        model, data = curved_model_and_data()
        objective = kormos.Objective(model, **data, batch_size=3)
        return objective, np.random.RandomState(4).normal(size=objective.size)


def central_difference(fn, theta, direction, step):
    ahead, behind = fn(theta + step * direction), fn(theta - step * direction)
    return (ahead - behind) / (2 * step)


def test_gradient_is_the_slope_of_the_value(curved):
    objective, theta = curved
    value, gradient = objective.value_and_grad(theta)
    assert value == pytest.approx(objective.value(theta), rel=1e-14)
    slopes = [
        central_difference(objective.value, theta, direction, 1e-5)
        for direction in np.eye(objective.size)
    ]
    np.testing.assert_allclose(gradient, slopes, rtol=0, atol=1e-9)
    assert np.linalg.norm(gradient) > 0.1


def test_hessian_product_is_the_slope_of_the_gradient(curved):
    objective, theta = curved
    direction = np.random.RandomState(5).normal(size=objective.size)
    slope = central_difference(
        lambda t: objective.value_and_grad(t)[1], theta, direction, 1e-5
    )
    product = objective.hvp(theta, direction)
    np.testing.assert_allclose(product, slope, rtol=0, atol=1e-8)
    assert np.linalg.norm(product) > 0.1


def test_hessian_is_symmetric_before_it_is_symmetrized(curved):
    objective, theta = curved
    rows = np.stack([objective.hvp(theta, e) for e in np.eye(objective.size)])
    scale = np.abs(rows).max()
    np.testing.assert_allclose(rows, rows.T, rtol=0, atol=1e-14 * scale)
    np.testing.assert_allclose(
        objective.hessian(theta), rows, rtol=0, atol=1e-14 * scale
    )


def test_linear_regression_in_closed_form():
    x, y = lindata(40, noise=0.3)
    # A power of two is the same number in every dtype.
    l2 = 2.0**-7
    model = linear(l2=l2)
    model.compile(loss="mse")
    objective = kormos.Objective(model, x, y, batch_size=11)
    w = np.random.RandomState(2).normal(size=5)
    residual = x @ w - y[:, 0]
    value, gradient = objective.value_and_grad(w)
    assert value == pytest.approx(
        np.mean(residual**2) + l2 * np.sum(w**2), rel=1e-13
    )
    np.testing.assert_allclose(
        gradient, 2 * x.T @ residual / 40 + 2 * l2 * w, rtol=1e-12
    )
    np.testing.assert_allclose(
        objective.hessian(w),
        2 * x.T @ x / 40 + 2 * l2 * np.eye(5),
        rtol=1e-12,
        atol=1e-15,
    )


def test_frozen_layers_are_left_out():
    model, data = curved_model_and_data()
    whole = kormos.Objective(model, **data)
    _, gradient = whole.value_and_grad(whole.initial_position())
    label = model.get_layer("label")
    for layer in model.layers:
        layer.trainable = layer is label
    part = kormos.Objective(model, **data)
    assert part.size == label.count_params() == 15
    value, of_part = part.value_and_grad(part.initial_position())
    reported = model.evaluate(**data, verbose=0, return_dict=True)["loss"]
    assert value == pytest.approx(reported, rel=1e-12)
    # The layer is the last: so is its part of the vector.
    np.testing.assert_allclose(of_part, gradient[-15:], rtol=1e-12)


def with_layer_normalization():
    random = np.random.RandomState(0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, "tanh"),
            layers.LayerNormalization(name="the_norm"),
            layers.Dense(1),
        ]
    )
    x = random.normal(size=(30, 3))
    return model, x, np.sin(x[:, :1]) + x[:, 1:2] ** 2


@pytest.mark.skipif(BACKEND != "tensorflow", reason="has them elsewhere")
def test_a_layer_without_hessian_products_is_refused_by_name():
    model, x, y = with_layer_normalization()
    start = model.get_weights()
    model.compile(optimizer="newton-cg", loss="mse")
    with pytest.raises(ValueError, match="the_norm"):
        model.fit(x, y, verbose=0)
    for weight, kept in zip(model.get_weights(), start, strict=True):
        np.testing.assert_array_equal(weight, kept)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="refused there")
def test_hessian_methods_and_layer_normalization(unconverged):
    model, x, y = with_layer_normalization()
    model.compile(optimizer="newton-cg", loss="mse")
    before = model.evaluate(x, y, verbose=0)
    history = model.fit(x, y, epochs=30, verbose=0)
    assert history.result.loss < 0.1 * before


def test_first_derivatives_suffice_with_layer_normalization(unconverged):
    model, x, y = with_layer_normalization()
    model.compile(optimizer="l-bfgs-b", loss="mse")
    before = model.evaluate(x, y, verbose=0)
    history = model.fit(x, y, epochs=100, verbose=0)
    assert history.result.loss < 0.1 * before
    assert history.result.loss == pytest.approx(
        model.evaluate(x, y, verbose=0), rel=TIGHT
    )


def test_vectors_of_another_size_raise(curved):
    objective, theta = curved
    with pytest.raises(ValueError, match=r"`theta`.*\(2,\)"):
        objective.value([1.0, 2.0])
    with pytest.raises(ValueError, match="`theta`"):
        objective.value_and_grad(theta[:, None])
    with pytest.raises(ValueError, match="`vector`"):
        objective.hvp(theta, theta[1:])
    with pytest.raises(ValueError, match="`theta`"):
        objective.assign(theta[1:])
