"""Callbacks and progress of `kormos.minimize` and `kormos.least_squares`."""

import csv

import keras
import numpy as np
import pytest
from keras import ops

import kormos


def rosenbrock(**settings):
    v = keras.Variable(np.array([-1.2, 1.0]), dtype="float32")
    return kormos.minimize(
        lambda: 100 * (v[1] - v[0] ** 2) ** 2 + (1 - v[0]) ** 2,
        [v],
        "lbfgs",
        **settings,
    )


def line(**settings):
    b = keras.Variable(np.zeros(2), dtype="float32")
    x = np.linspace(0, 1, 20, dtype="float32")
    return kormos.least_squares(
        lambda data: ops.exp(b[0] * data) + b[1] - ops.sin(4.0 * data),
        [b],
        data=x,
        **settings,
    )


@pytest.mark.parametrize("door", [rosenbrock, line])
def test_early_stopping(door):
    stop = keras.callbacks.EarlyStopping("loss", min_delta=1e9, patience=2)
    result = door(callbacks=[stop])
    assert result.status == "stopped by callback"
    assert result.iterations == 3


@pytest.mark.parametrize("door", [rosenbrock, line])
def test_csv_logger(door, tmp_path):
    path = tmp_path / "log.csv"
    result = door(callbacks=[keras.callbacks.CSVLogger(path)])
    with open(path) as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses == result.history["loss"]


def test_tensorboard_has_the_losses(tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    result = rosenbrock(callbacks=[keras.callbacks.TensorBoard(tmp_path)])
    found = event_accumulator.EventAccumulator(
        str(tmp_path / "train"), size_guidance={"tensors": 0}
    )
    found.Reload()
    losses = found.Tensors("epoch_loss")
    assert len(losses) == result.iterations


def test_terminate_on_nan_and_lambda(tmp_path):
    seen = []
    result = rosenbrock(
        callbacks=[
            keras.callbacks.TerminateOnNaN(),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: seen.append(epoch)
            ),
            lambda iteration, logs: None,
        ]
    )
    assert result.success
    assert seen == list(range(result.iterations))
    assert result.loss < 1e-6


@pytest.mark.parametrize(
    "callback, name",
    [
        (
            lambda: keras.callbacks.ModelCheckpoint("model.keras"),
            "ModelCheckpoint",
        ),
        (lambda: keras.callbacks.ReduceLROnPlateau(), "ReduceLROnPlateau"),
        (
            lambda: keras.callbacks.EarlyStopping(restore_best_weights=True),
            "restore_best_weights",
        ),
        (lambda: kormos.callbacks.BackupAndRestore("x"), "BackupAndRestore"),
        (
            lambda: keras.callbacks.TensorBoard("x", histogram_freq=1),
            "histogram_freq",
        ),
    ],
)
def test_what_needs_a_model_is_refused(callback, name):
    with pytest.raises(ValueError, match=f"no model.*{name}"):
        rosenbrock(callbacks=[callback()])


class Curious(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.get_weights()


def test_a_callback_that_asks_for_a_model_is_told():
    with pytest.raises(AttributeError, match="no model|needs no model"):
        rosenbrock(callbacks=[Curious()])


@pytest.mark.parametrize("door", [rosenbrock, line])
def test_verbose(door, capsys):
    door(verbose=0)
    assert capsys.readouterr().out == ""
    door(verbose="auto")  # The output is captured, so it is not interactive.
    assert capsys.readouterr().out == ""
    result = door(verbose=2)
    out = capsys.readouterr().out
    assert out.count("loss:") == result.iterations
    assert out.rstrip().endswith(str(result))
    door(verbose=1)
    assert "loss:" in capsys.readouterr().out


def test_a_resample_without_data_is_refused():
    resample = kormos.callbacks.Resample(lambda count, rng: count, every=1)
    with pytest.raises(ValueError, match="least_squares"):
        rosenbrock(callbacks=[resample])
