"""Evaluations change no state, random seed, compiled function or data."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from conftest import lindata
from conftest import linear
from native import compilations

X, Y = lindata(20, noise=0.3)


def noisy_model(**kwargs):
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(4),
            layers.BatchNormalization(),
            layers.Dropout(0.5, **kwargs),
            layers.GaussianNoise(0.5),
            layers.Dense(1),
        ]
    )
    model.compile(optimizer="adam", loss="mse", metrics=["mae"])
    return model


def state(model):
    variables = [
        *model.variables,
        *model.metrics_variables,
        *model.optimizer.variables,
    ]
    return [np.array(ops.convert_to_numpy(v)) for v in variables]


@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_assigned(training):
    model = noisy_model()
    # Gives the optimizer, the metrics and the averages a state to lose.
    model.fit(X, Y, epochs=1, batch_size=5, verbose=0)
    objective = kormos.Objective(model, X, Y, batch_size=6, training=training)
    theta = objective.initial_position() + 0.1
    model.evaluate(X, Y, verbose=0)
    before = state(model)
    objective.value(theta)
    objective.value_and_grad(theta)
    objective.hvp(theta, theta)
    objective.evaluate(theta)
    after = state(model)
    assert len(before) == len(after) > 15
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
    objective.assign(theta)
    np.testing.assert_allclose(objective.initial_position(), theta, rtol=1e-6)


@pytest.mark.parametrize("seed", [None, 3])
def test_training_behaviour_is_deterministic(seed):
    model = noisy_model(seed=seed)
    objective = kormos.Objective(model, X, Y, batch_size=6, training=True)
    theta = objective.initial_position()
    value, gradient = objective.value_and_grad(theta)
    product = objective.hvp(theta, gradient)
    keras.random.normal((3,))
    model(X, training=True)
    again, gradient_again = objective.value_and_grad(theta)
    assert value == again
    np.testing.assert_array_equal(gradient, gradient_again)
    np.testing.assert_array_equal(product, objective.hvp(theta, gradient))
    # The noise is on, because the loss differs without it.
    calm = kormos.Objective(model, X, Y, batch_size=6).value(theta)
    assert abs(value / calm - 1) > 1e-3


def test_evaluating_the_model_meanwhile_does_no_harm(unconverged):
    model = noisy_model()
    objective = kormos.Objective(model, X, Y)
    theta = objective.initial_position()
    value = objective.value(theta)
    model.evaluate(X, Y, verbose=0)
    model.train_on_batch(X, Y)
    assert objective.value(theta) == value
    losses = []
    callback = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: losses.append(
            model.evaluate(X, Y, verbose=0)[0]
        )
    )
    model.compile(optimizer="l-bfgs-b", loss="mse", metrics=["mae"])
    history = model.fit(X, Y, epochs=200, callbacks=[callback], verbose=0)
    np.testing.assert_allclose(losses, history.history["loss"], rtol=1e-5)


def test_fits_of_the_same_shapes_compile_nothing(unconverged):
    model = linear(l2=0.01)
    model.compile(optimizer="l-bfgs-b", loss="mse")
    model.fit(X, Y, epochs=50, verbose=0)
    objective = kormos.Objective(model, X, Y)
    program = objective.program
    # A claim may be tested by the loss without its gradient.
    objective.value(objective.initial_position())
    assert program.traces["value_and_grad"] > 0
    compiled = compilations(program)
    model.fit(-X, 2 * Y, epochs=50, verbose=0)
    kormos.fit(model, X + 1, Y, optimizer="bfgs", epochs=50, verbose=0)
    assert kormos.Objective(model, X, Y).program is program
    assert compilations(program) == compiled


def test_compile_makes_changes_of_the_model_count():
    model = linear(l2=0.01)
    model.compile(loss="mse")
    theta = np.arange(5.0)
    before = kormos.Objective(model, X, Y).value(theta)
    model.layers[0].activation = keras.activations.tanh
    model.layers[0].kernel.regularizer = None
    model.compile(loss="mse")
    objective = kormos.Objective(model, X, Y)
    objective.assign(theta)
    expected = np.mean((np.tanh(X @ theta[:, None]) - Y) ** 2)
    assert objective.value(theta) == pytest.approx(expected, rel=1e-5)
    assert objective.value(theta) != pytest.approx(before, rel=1e-2)


def test_alternating_frozen_layers_compile_once_each(unconverged):
    model = keras.Sequential(
        [keras.Input((5,)), layers.Dense(2), layers.Dense(1)]
    )
    model.compile(optimizer="l-bfgs-b", loss="mse")
    programs, compiled, losses = [], [], []
    for turn in range(4):
        for i, layer in enumerate(model.layers):
            layer.trainable = i == turn % 2
        fixed = model.layers[1 - turn % 2].get_weights()
        model.fit(X, Y, epochs=100, verbose=0)
        for a, b in zip(
            fixed, model.layers[1 - turn % 2].get_weights(), strict=True
        ):
            np.testing.assert_array_equal(a, b)
        losses.append(model.evaluate(X, Y, verbose=0))
        objective = kormos.Objective(model, X, Y)
        # A claim may be tested by the loss without its gradient.
        objective.value(objective.initial_position())
        programs.append(objective.program)
        compiled.append(compilations(objective.program))
    assert programs[2] is programs[0] is not programs[1] is programs[3]
    assert compiled[2:] == compiled[:2]
    # The first layer alone reaches what both can.
    x = np.hstack([X, np.ones((20, 1))])
    residuals = Y - x @ np.linalg.lstsq(x, Y, rcond=None)[0]
    np.testing.assert_allclose(losses, np.mean(residuals**2), rtol=1e-4)


def test_another_loss_metric_or_weight_is_not_mistaken():
    model = linear()
    model.compile(loss="mse", loss_weights=1.0)
    theta = np.ones(5)
    mse = kormos.Objective(model, X, Y).value(theta)
    model.compile(loss="mse", loss_weights=3.0)
    weighted = kormos.Objective(model, X, Y)
    assert weighted.value(theta) == pytest.approx(3 * mse, rel=1e-5)
    model.compile(loss="mae", metrics=["mse"])
    objective = kormos.Objective(model, X, Y)
    residuals = X @ theta - Y[:, 0]
    expected = np.mean(np.abs(residuals))
    assert objective.value(theta) == pytest.approx(expected, rel=1e-5)
    metrics = objective.evaluate(theta)
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["mse"] == pytest.approx(np.mean(residuals**2), rel=1e-5)


def test_data_go_to_the_device_once(unconverged):
    model = linear(l2=0.01)
    model.compile(optimizer="l-bfgs-b", loss="mse")
    program = kormos.Objective(model, X, Y).program
    compiled, seen = program.value_and_grad, []

    def spy(theta, frozen, scales, chunks):
        seen.append([a for a in keras.tree.flatten(chunks) if a is not None])
        return compiled(theta, frozen, scales, chunks)

    program.value_and_grad = spy
    model.fit(X, Y, batch_size=8, epochs=50, verbose=0)
    assert len(seen) > 3
    for tensors in seen:
        assert len(tensors) == 4
        for tensor, first in zip(tensors, seen[0], strict=True):
            assert ops.is_tensor(tensor) and tensor is first


# Variables without influence


class Idle(layers.Layer):
    def build(self, shape):
        self.idle = self.add_weight(shape=(2,), name="never_read")

    def call(self, inputs):
        return inputs


def messages_of(fit):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit()
    found = [str(w.message) for w in caught]
    return [m for m in found if "does not depend" in m]


def test_variable_that_is_never_read():
    model = keras.Sequential([keras.Input((5,)), Idle(), layers.Dense(1)])
    model.compile(optimizer="l-bfgs-b", loss="mse")
    idle = model.layers[0].idle
    before = ops.convert_to_numpy(idle)
    objective = kormos.Objective(model, X, Y)
    _, gradient = objective.value_and_grad(objective.initial_position())
    np.testing.assert_array_equal(gradient[:2], 0)
    assert np.all(gradient[2:] != 0)
    messages = messages_of(lambda: model.fit(X, Y, epochs=50, verbose=0))
    assert len(messages) == 1
    assert idle.path in messages[0] and "kernel" not in messages[0]
    np.testing.assert_array_equal(ops.convert_to_numpy(idle), before)


@pytest.mark.parametrize("method", ["l-bfgs-b", "newton-cg"])
def test_output_that_no_loss_uses(method):
    inputs = keras.Input((5,))
    outputs = [
        layers.Dense(1, name="p")(inputs),
        layers.Dense(1, name="q")(inputs),
    ]
    model = keras.Model(inputs, outputs)
    model.compile(optimizer=method, loss=["mse", None])
    objective = kormos.Objective(model, X, [Y, Y])
    _, gradient = objective.value_and_grad(objective.initial_position())
    np.testing.assert_array_equal(gradient[6:], 0)
    messages = messages_of(lambda: model.fit(X, [Y, Y], epochs=50, verbose=0))
    assert len(messages) == 1
    assert "q/kernel" in messages[0] and "q/bias" in messages[0]
    assert "p/" not in messages[0]


def test_gradient_that_is_zero_at_the_start_alone():
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(3, kernel_initializer="zeros"),
            layers.Dense(1, kernel_initializer="zeros"),
        ]
    )
    model.compile(optimizer="l-bfgs-b", loss="mse")
    assert not messages_of(lambda: model.fit(X, Y, epochs=50, verbose=0))


# Arguments that cannot be an objective


def test_what_is_not_a_compiled_model_raises():
    with pytest.raises(ValueError, match="`keras.Model`. Received"):
        kormos.Objective(layers.Dense(1), X, Y)
    with pytest.raises(ValueError, match="model.compile"):
        kormos.Objective(linear(), X, Y)


def test_model_without_a_loss_raises():
    model = linear()
    model.compile(loss=None)
    with pytest.raises(ValueError, match="nothing to minimize"):
        kormos.Objective(model, X, Y)


def test_model_without_trainable_variables_raises():
    model = linear()
    model.trainable = False
    model.compile(loss="mse")
    with pytest.raises(ValueError, match="Received: 0 trainable variables"):
        kormos.Objective(model, X, Y)


@pytest.mark.parametrize("layer_alone", [True, False])
def test_mixed_float16_raises(layer_alone):
    dtype = "mixed_float16" if layer_alone else None
    if not layer_alone:
        keras.config.set_dtype_policy("mixed_float16")
    try:
        model = linear(dtype=dtype)
        model.compile(optimizer="l-bfgs-b", loss="mse")
        with pytest.raises(ValueError, match="float16"):
            model.fit(X, Y, verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")
