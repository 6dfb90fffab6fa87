"""`model.predict` inside a function to differentiate."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from conftest import BACKEND

X = np.linspace(-1, 1, 20, dtype="float32")[:, None]
Y = np.sin(X)


def network():
    model = keras.Sequential(
        [keras.Input((1,)), layers.Dense(4, "tanh"), layers.Dense(1)]
    )
    model.compile(loss="mse")
    return model


DOORS = {
    "minimize": (
        "loss_fn",
        lambda fn, variables: kormos.minimize(
            lambda: ops.mean(fn(X) ** 2), variables
        ),
    ),
    "least_squares": (
        "residual_fn",
        lambda fn, variables: kormos.least_squares(lambda: fn(X), variables),
    ),
    "least_squares of data": (
        "residual_fn",
        lambda fn, variables: kormos.least_squares(
            lambda data: fn(data), variables, data=X
        ),
    ),
    "a constraint": (
        "fun",
        lambda fn, variables: kormos.minimize(
            lambda: ops.sum(variables[0] ** 2),
            variables,
            "slsqp",
            constraints={"type": "ineq", "fun": lambda: fn(X)},
        ),
    ),
}


@pytest.mark.parametrize("method", ["predict", "predict_on_batch"])
@pytest.mark.parametrize("door", DOORS)
def test_predictions_are_refused_with_the_line(door, method):
    model = network()
    before = model.get_weights()

    def fn(x):
        return getattr(model, method)(x) - Y[: len(x)]

    name, fit = DOORS[door]
    line = r"line \d+ of .*test_predictions.py: return getattr\(model"
    match = rf"`{name}` must not call `{method}`.*derivatives.*{line}"
    with pytest.raises(ValueError, match=match):
        fit(fn, model.trainable_variables)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    # Outside of such functions it predicts as before.
    assert model.predict(X, verbose=0).shape == (20, 1)


@pytest.mark.parametrize("method", ["evaluate", "test_on_batch"])
def test_losses_of_keras_are_refused(method):
    model = network()
    with pytest.raises(ValueError, match=f"must not call `{method}`.*numbers"):
        kormos.minimize(
            lambda: getattr(model, method)(X, Y), model.trainable_variables
        )


@pytest.mark.parametrize("door", ["minimize", "least_squares"])
def test_predictions_of_what_a_variable_moves_are_refused(door):
    frozen = network()
    frozen.trainable = False
    factor = keras.Variable(np.ones(1, "float32"))

    def fn(x):
        moved = factor * ops.convert_to_tensor(x)
        predicted = frozen.predict(moved, verbose=0)
        return ops.convert_to_tensor(predicted) + 0.1 * (factor - 2)

    with pytest.raises(ValueError, match="must not call `predict`"):
        DOORS[door][1](fn, [factor])
    np.testing.assert_array_equal(ops.convert_to_numpy(factor), [1.0])


def test_callbacks_may_predict():
    model = network()
    x, y = ops.convert_to_tensor(X), ops.convert_to_tensor(Y)
    found = []
    kormos.minimize(
        lambda: ops.mean((model(x) - y) ** 2),
        model.trainable_variables,
        callback=lambda *_: found.append(model.predict(X, verbose=0)),
        max_iterations=3,
        max_evals=20,
    )
    assert found


def test_a_frozen_network_predicts_where_the_backend_can():
    frozen = network()
    before = frozen.predict(X, verbose=0)
    factor = keras.Variable(np.ones(1, "float32"))

    def residuals():
        target = ops.convert_to_tensor(frozen.predict(X, verbose=0))
        return factor * target - 2 * target

    if BACKEND == "torch":
        kormos.least_squares(residuals, [factor])
        assert ops.convert_to_numpy(factor) == pytest.approx(2)
    else:
        with pytest.raises(ValueError, match="call `predict`.*beforehand"):
            kormos.least_squares(residuals, [factor])
    # The model still works.
    np.testing.assert_array_equal(frozen.predict(X, verbose=0), before)
