"""Validation in a fit reports the numbers of `evaluate`, as in Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

import kormos
from conftest import lindata
from conftest import linear

X, Y = lindata(100, noise=0.3)
X_VAL, Y_VAL = lindata(37, noise=0.3, seed=2)
WEIGHTS = np.random.RandomState(0).uniform(0, 2, 100)
W_VAL = WEIGHTS[:37]

pytestmark = pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")


def fit(*data, model=None, optimizer="l-bfgs-b", epochs=3, **kwargs):
    """A model after a fit, and its History."""
    model = model or linear()
    model.compile(optimizer=optimizer, loss="mse", metrics=["mae"])
    history = model.fit(*data, epochs=epochs, verbose=0, **kwargs)
    return model, history.history


def agrees(history, prefix, model, *data, **kwargs):
    reported = model.evaluate(*data, verbose=0, return_dict=True, **kwargs)
    last = {k: history[prefix + k][-1] for k in ("loss", "mae")}
    assert last == pytest.approx(reported, rel=1e-5)


@pytest.mark.parametrize("kind", ["pair", "dataset", "DataLoader"])
def test_unweighted(kind):
    pair = X_VAL, Y_VAL
    tensors = torch.utils.data.TensorDataset(*map(torch.from_numpy, pair))
    validation_data = {
        "pair": pair,
        "dataset": tf.data.Dataset.from_tensor_slices(pair).batch(8),
        "DataLoader": torch.utils.data.DataLoader(tensors, batch_size=8),
    }[kind]
    model, history = fit(X, Y, validation_data=validation_data)
    agrees(history, "val_", model, *pair)
    agrees(history, "", model, X, Y)


@pytest.mark.parametrize("kind", ["triple", "dataset"])
def test_weighted(kind):
    triple = X_VAL, Y_VAL, W_VAL
    dataset = tf.data.Dataset.from_tensor_slices(triple).batch(8)
    model, history = fit(
        X, Y, validation_data=dataset if kind == "dataset" else triple
    )
    agrees(history, "val_", model, X_VAL, Y_VAL, sample_weight=W_VAL)


def test_split_takes_the_last_rows():
    # 100 * (1 - 0.155) rows, rounded down.
    model, history = fit(X, Y, validation_split=0.155)
    agrees(history, "", model, X[:84], Y[:84])
    agrees(history, "val_", model, X[84:], Y[84:])


@pytest.mark.parametrize("container", [dict, tuple])
def test_split_of_structures_with_weights(container):
    inputs = {n: keras.Input((k,), name=n) for n, k in (("a", 2), ("b", 3))}
    joined = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
    outputs = keras.layers.Dense(1)(joined)

    def structure(rows):
        parts = {"a": X[rows, :2], "b": X[rows, 2:]}
        return parts if container is dict else tuple(parts.values())

    if container is tuple:
        inputs = tuple(inputs.values())
    head, tail = slice(0, 80), slice(80, 100)
    model, history = fit(
        structure(slice(100)),
        Y,
        model=keras.Model(inputs, outputs),
        sample_weight=WEIGHTS,
        validation_split=0.2,
    )
    for prefix, rows in (("", head), ("val_", tail)):
        agrees(
            history,
            prefix,
            model,
            structure(rows),
            Y[rows],
            sample_weight=WEIGHTS[rows],
        )


def test_class_weights_are_for_training_alone():
    y = (Y > 0).astype("float32")
    class_weight = {0: 3.0, 1: 0.5}
    weights = np.where(y[:, 0] > 0, 0.5, 3.0)
    model, history = fit(X, y, validation_split=0.2, class_weight=class_weight)
    agrees(history, "val_", model, X[80:], y[80:])
    loss, _ = model.evaluate(X[:80], y[:80], sample_weight=weights[:80])
    assert history["loss"][-1] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("frequency", [2, 4, 7, [1, 3, 9]])
def test_frequency_is_that_of_keras(frequency):
    def validated_epochs(optimizer):
        epochs = []

        def note(epoch, logs):
            if "val_loss" in logs:
                epochs.append(epoch)

        _, history = fit(
            X,
            Y,
            optimizer=optimizer,
            epochs=6,
            validation_data=(X_VAL, Y_VAL),
            validation_freq=frequency,
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=note)],
        )
        assert len(history["loss"]) == 6
        assert len(history.get("val_loss", [])) == len(epochs)
        assert len(history.get("val_mae", [])) == len(epochs)
        return epochs

    assert validated_epochs("l-bfgs-b") == validated_epochs("adam")


def test_batch_size_does_not_matter():
    losses = [
        fit(
            X,
            Y,
            validation_data=[X_VAL, Y_VAL, W_VAL],
            validation_batch_size=size,
        )[1]["val_loss"]
        for size in (None, 1, 36)
    ]
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=1e-6)


def test_validation_sets_do_not_linger():
    model = linear()
    fit(X, Y, model=model, validation_data=(X_VAL, Y_VAL))
    _, history = fit(X, Y, model=model, validation_data=(X_VAL, Y_VAL + 100))
    agrees(history, "val_", model, X_VAL, Y_VAL + 100)
    _, history = fit(X, Y, model=model)
    assert not any(name.startswith("val_") for name in history)


def test_fit_of_a_model_with_another_optimizer():
    model = linear()
    model.compile(optimizer="adam", loss="mse", metrics=["mae"])
    history = kormos.fit(
        model, X, Y, epochs=3, verbose=0, validation_split=0.5
    ).history
    agrees(history, "val_", model, X[50:], Y[50:])
