"""Least squares of models with a `compute_loss` of their own."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos

X = np.linspace(-1, 1, 24, dtype="float32")[:, None]
Y = np.sin(3 * X)
ELSEWHERE = np.linspace(1, 2, 5, dtype="float32")[:, None]
PENALTY = 0.1


def stock(model, *args, **kwargs):
    return keras.Model.compute_loss(model, *args, **kwargs)


def mean_square(model, x, y, y_pred, *args, **kwargs):
    return ops.mean(ops.square(y - y_pred))


def every_second_row(model, x, y, y_pred, *args, **kwargs):
    return mean_square(model, x, y[::2], y_pred[::2])


def rows_twice(model, x, y, y_pred, *args, **kwargs):
    y, y_pred = (ops.concatenate([a, a]) for a in (y, y_pred))
    return mean_square(model, x, y, y_pred)


def penalized(model, x, y, y_pred, *args, **kwargs):
    return mean_square(model, x, y, y_pred) + ops.sum(model.last.kernel**2)


def elsewhere(model, x, y, y_pred, *args, **kwargs):
    points = ops.convert_to_tensor(ELSEWHERE)
    return mean_square(model, x, y, y_pred) + ops.mean(model(points) ** 2)


class Model(keras.Model):
    def __init__(self, loss, weights=None, outputs=None):
        super().__init__()
        self.first = layers.Dense(3, "tanh", activity_regularizer=outputs)
        self.last = layers.Dense(1, kernel_regularizer=weights)
        self._loss = loss

    def call(self, x):
        return self.last(self.first(x))

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return self._loss(self, x, y, y_pred, sample_weight, training=training)


def model_with(loss, optimizer="lm", **regularizers):
    keras.utils.set_random_seed(0)
    model = Model(loss, **regularizers)
    model(X)
    model.compile(optimizer, "mse")
    return model


def penalty():
    return keras.regularizers.L2(PENALTY)


@pytest.mark.parametrize(
    "loss", [stock, mean_square, every_second_row, rows_twice]
)
@pytest.mark.parametrize("where", ["weights", "outputs", None])
def test_loss_and_gradient_are_those_of_the_objective(loss, where, float64):
    model = model_with(loss, **({where: penalty()} if where else {}))
    objective = kormos.Objective(model, X, Y)
    theta = objective.initial_position() + 0.1
    found, slope, _ = objective.gauss_newton().normal_equations(theta)
    value, gradient = objective.value_and_grad(theta)
    assert found == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(slope, gradient, rtol=1e-9, atol=1e-12)
    result = model.fit(X, Y, epochs=5, verbose=0).result
    reached = model.evaluate(X, Y, batch_size=len(X), verbose=0)
    assert result.loss == pytest.approx(reached, rel=1e-6)
    assert result.loss < result.initial_loss


@pytest.mark.parametrize("loss", [penalized, elsewhere])
def test_what_goes_past_the_outputs_is_refused_by_name(loss):
    model = model_with(loss)
    before = model.get_weights()
    with pytest.raises(ValueError, match="reads .*dense_?1?.*/kernel"):
        model.fit(X, Y, verbose=0)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    model.compile("lbfgs", "mse")
    result = model.fit(X, Y, epochs=5, verbose=0).result
    assert result.loss < result.initial_loss


def test_a_right_loss_is_not_refused_at_weights_of_zero():
    model = model_with(stock, weights=penalty())
    model.set_weights([np.zeros_like(w) for w in model.get_weights()])
    result = model.fit(X, Y, epochs=3, verbose=0).result
    assert result.initial_loss == pytest.approx(np.mean(Y**2), rel=1e-5)
