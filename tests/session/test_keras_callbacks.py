"""Each of Keras' own callbacks works as in Keras' own `fit`."""

import csv

import keras
import numpy as np
import pytest
from keras import callbacks as kc
from test_callbacks import curved
from test_callbacks import straight

import kormos
from conftest import TIGHT
from conftest import lindata
from conftest import linear


class Reached(Exception):
    pass


def test_lambda_callback(unconverged):
    model, data = straight()
    calls = []
    history = model.fit(
        *data,
        epochs=2,
        callbacks=kc.LambdaCallback(
            on_train_begin=lambda logs: calls.append("begin"),
            on_epoch_begin=lambda epoch, logs: calls.append(epoch),
            on_train_batch_begin=lambda batch, logs: calls.append("batch"),
            on_train_batch_end=lambda batch, logs: calls.append(logs["loss"]),
            on_epoch_end=lambda epoch, logs: calls.append(logs["loss"]),
            on_train_end=lambda logs: calls.append("end"),
        ),
        verbose=0,
    )
    first, second = history.history["loss"]
    assert calls == [
        *("begin", 0, "batch", first, first),
        *(1, "batch", second, second, "end"),
    ]


@pytest.mark.parametrize("restore", [False, True])
def test_early_stopping_on_validation_loss(restore, float64):
    model, (x, y) = curved()
    # After some iterations it gets worse.
    validation = x[:10], 0.5 * y[:10]
    stop = kc.EarlyStopping(patience=3, restore_best_weights=restore)
    weights = []
    history = model.fit(
        x,
        y,
        epochs=200,
        validation_data=validation,
        callbacks=[
            kc.LambdaCallback(
                on_epoch_end=lambda e, logs: weights.append(model.get_weights())
            ),
            stop,
        ],
        verbose=0,
    )
    losses = history.history["val_loss"]
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 3 < 200
    assert stop.stopped_epoch == best + 3
    assert history.result.status == "stopped by callback"
    loss = model.evaluate(x, y, verbose=0)
    assert history.result.kept_loss == pytest.approx(loss, rel=TIGHT)
    assert ("set other weights" in history.result.message) == restore
    kept = weights[best if restore else -1]
    for ours, theirs in zip(model.get_weights(), kept, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_early_stopping_on_loss_by_a_least_change():
    model, data = curved()
    stop = kc.EarlyStopping("loss", min_delta=1e-2)
    history = model.fit(*data, epochs=100, callbacks=[stop], verbose=0)
    decreases = -np.diff(history.history["loss"])
    assert np.all(decreases[:-1] >= 1e-2)
    assert decreases[-1] < 1e-2


def test_early_stopping_finds_the_direction_of_a_metric():
    x, y = lindata(60, noise=0.5)
    labels = (y > 0).astype("float32")
    model = linear(activation="sigmoid")
    model.compile("l-bfgs-b", "binary_crossentropy", metrics=["accuracy"])
    stop = kc.EarlyStopping("accuracy", mode="auto", patience=1)
    history = model.fit(x, labels, epochs=50, callbacks=[stop], verbose=0)
    accuracy = history.history["accuracy"]
    assert accuracy[-1] <= max(accuracy[:-1])
    assert np.all(np.diff(accuracy[:-1]) > 0)


@pytest.mark.parametrize("weights_only", [False, True])
def test_model_checkpoint(weights_only, tmp_path, float64, unconverged):
    model, data = curved()
    end = ".weights.h5" if weights_only else ".keras"
    history = model.fit(
        *data,
        epochs=3,
        callbacks=kc.ModelCheckpoint(
            str(tmp_path / ("{epoch:02d}-{loss:.6f}" + end)),
            save_weights_only=weights_only,
        ),
        verbose=0,
    )
    paths = sorted(tmp_path.iterdir())
    losses = history.history["loss"]
    assert [p.name for p in paths] == [
        f"{i + 1:02d}-{loss:.6f}{end}" for i, loss in enumerate(losses)
    ]
    for path, loss in zip(paths, losses, strict=True):
        if weights_only:
            model.load_weights(path)
        else:
            model = keras.models.load_model(path)
        assert model.evaluate(*data, verbose=0) == pytest.approx(
            loss, rel=TIGHT
        )
    assert model.fit(*data, epochs=2, verbose=0).result.loss < losses[-1]


def test_model_checkpoint_of_the_best_and_by_count(
    tmp_path, float64, unconverged
):
    model, (x, y) = curved()
    best, third = tmp_path / "best.keras", str(tmp_path / "{epoch}.keras")
    history = model.fit(
        x,
        y,
        epochs=30,
        validation_data=(x[:10], 0.5 * y[:10]),
        callbacks=[
            kc.ModelCheckpoint(best, save_best_only=True),
            kc.ModelCheckpoint(third, save_freq=10),
        ],
        verbose=0,
    )
    losses = history.history["val_loss"]
    assert losses[-1] > min(losses)
    loaded = keras.models.load_model(best)
    assert loaded.evaluate(x[:10], 0.5 * y[:10], verbose=0) == pytest.approx(
        min(losses), rel=TIGHT
    )
    names = {path.name for path in tmp_path.iterdir()} - {"best.keras"}
    assert names == {"10.keras", "20.keras", "30.keras"}


def test_backup_and_restore(tmp_path, float64, unconverged):
    model, data = curved()
    backup = kc.BackupAndRestore(tmp_path / "backup")

    weights = []

    class Fail(kc.Callback):
        def on_epoch_end(self, epoch, logs=None):
            weights.append(self.model.get_weights())

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 5:
                raise Reached

    with pytest.raises(Reached):
        model.fit(*data, epochs=9, callbacks=[backup, Fail()], verbose=0)
    losses = model.history.history["loss"]
    assert len(losses) == 5

    model, _ = curved()
    resumed = model.fit(*data, epochs=9, callbacks=[backup], verbose=0)
    assert resumed.epoch == [5, 6, 7, 8]
    assert resumed.result.initial_loss == pytest.approx(losses[-1], rel=TIGHT)
    other, _ = curved()
    other.set_weights(weights[-1])
    expected = other.fit(*data, epochs=4, verbose=0).history["loss"]
    np.testing.assert_allclose(resumed.history["loss"], expected, rtol=1e-12)
    # The backup is done with, and so is its epoch.
    assert model.fit(*data, epochs=2, verbose=0).epoch == [0, 1]
    later = model.fit(*data, epochs=2, callbacks=[backup], verbose=0)
    assert later.epoch == [0, 1]


@pytest.mark.parametrize("every", [1, 2])
def test_csv_logger(every, tmp_path, float64, unconverged):
    model, (x, y) = straight(metrics=["mae"])
    path = tmp_path / "log.csv"
    history = model.fit(
        x,
        y,
        epochs=4,
        validation_data=(x[:9], y[:9]),
        validation_freq=every,
        callbacks=[kc.CSVLogger(path)],
        verbose=0,
    )
    with open(path) as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    validated = rows[every - 1 :: every]
    assert history.val_epoch == [int(row["epoch"]) for row in validated]
    for name, column in history.history.items():
        shown = validated if name.startswith("val_") else rows
        assert [float(row[name]) for row in shown] == column


def test_tensorboard(tmp_path, unconverged):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    tensor_util = pytest.importorskip("tensorboard.util.tensor_util")
    model, (x, y) = straight()
    history = model.fit(
        x,
        y,
        epochs=3,
        validation_data=(x[:9], y[:9]),
        callbacks=[kc.TensorBoard(tmp_path, histogram_freq=1)],
        verbose=0,
    )
    for folder, name in (("train", "loss"), ("validation", "val_loss")):
        events = accumulator.EventAccumulator(str(tmp_path / folder))
        events.Reload()
        shown = events.Tensors("epoch_loss")
        assert [event.step for event in shown] == [0, 1, 2]
        values = [tensor_util.make_ndarray(e.tensor_proto) for e in shown]
        np.testing.assert_allclose(values, history.history[name], rtol=1e-6)


def test_terminate_on_nan():
    model = linear()
    model.compile("bfgs", loss=lambda y, p: keras.ops.log(p - 1e3))
    with pytest.warns(kormos.ConvergenceWarning):
        history = model.fit(
            *lindata(20, noise=0), callbacks=[kc.TerminateOnNaN()], verbose=0
        )
    assert history.epoch == [0]
    assert history.result.status == "non-finite"
    np.testing.assert_array_equal(model.get_weights()[0], np.ones((5, 1)))
    model, data = straight()
    assert model.fit(
        *data, callbacks=[kc.TerminateOnNaN()], epochs=50, verbose=0
    ).epoch[1:]


@pytest.mark.parametrize(
    "callback",
    [
        kc.LearningRateScheduler(lambda epoch: 0.1),
        kc.ReduceLROnPlateau("loss"),
    ],
)
def test_callbacks_of_a_learning_rate_are_refused(callback):
    model, data = straight()
    calls = []
    noting = kc.LambdaCallback(on_train_begin=calls.append)
    with pytest.raises(ValueError, match=type(callback).__name__):
        model.fit(*data, callbacks=[noting, callback], verbose=0)
    assert calls == []
    np.testing.assert_array_equal(model.get_weights()[0], np.ones((5, 1)))
