"""What backups keep: the curvature, fixed weights, the best, drawn rows."""

import keras
import numpy as np
import pytest

import kormos
from kormos.session import interrupts

pytestmark = pytest.mark.usefixtures("unconverged")

X = np.linspace(-1.0, 1.0, 40, dtype="float32")[:, None]
Y = np.sinc(3 * X)


class Crash(keras.callbacks.Callback):
    def __init__(self, at=6):
        super().__init__()
        self._at = at

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self._at:
            raise RuntimeError("on purpose")


def fitted(callbacks, seed=0, optimizer="lbfgs", **settings):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(5, "tanh"),
            keras.layers.Dense(1),
        ]
    )
    model.compile("adam", loss="mse")
    history = kormos.fit(
        model,
        X,
        Y,
        optimizer=optimizer,
        epochs=12,
        callbacks=callbacks,
        verbose=0,
        **settings,
    )
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    return model, history


KINDS = pytest.mark.parametrize(
    "kind",
    [kormos.callbacks.BackupAndRestore, keras.callbacks.BackupAndRestore],
)


@KINDS
def test_a_backup_has_the_curvature_of_the_optimizer_of_the_fit(kind, tmp_path):
    whole, _ = fitted([])
    folder = tmp_path / "backup"
    with pytest.raises(RuntimeError, match="on purpose"):
        fitted([kind(folder), Crash()])
    resumed, history = fitted([kind(folder)])
    assert history.epoch[0] == 6
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_fixed_weights_are_those_of_the_backup(tmp_path):
    """They may differ from those that the model has before it is read."""
    fixed = {".*dense.*/kernel": [2, 4]}
    whole, _ = fitted([], fixed=fixed)
    folder = tmp_path / "backup"
    with pytest.raises(RuntimeError, match="on purpose"):
        fitted(
            [kormos.callbacks.BackupAndRestore(folder), Crash()], fixed=fixed
        )
    resumed, _ = fitted(
        [kormos.callbacks.BackupAndRestore(folder)], seed=1, fixed=fixed
    )
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


class Interrupt(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 5:
            raise KeyboardInterrupt


@KINDS
def test_an_interrupted_fit_keeps_its_backup(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(interrupts._Latest, "time", None)
    whole, _ = fitted([])
    folder = tmp_path / "backup"
    _, history = fitted([kind(folder), Interrupt()])
    assert history.result.status == "interrupted"
    resumed, history = fitted([kind(folder)], seed=1)
    assert history.epoch[0] == 6
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    # This fit has ended, so the next one begins anew.
    _, history = fitted([kind(folder)])
    assert history.epoch[0] == 0


def test_steps_on_batches_keep_their_best_weights(tmp_path):
    """The latest weights, which a backup has, may be worse."""
    lm = kormos.optimizers.LevenbergMarquardt
    settings = {"batch_size": 2, "seed": 1}
    whole, history = fitted([], optimizer=lm(stochastic=True), **settings)
    losses = history.history["loss"]
    # The last loss before the crash is not the lowest one.
    at = next(i for i in range(2, 12) if losses[i - 1] > min(losses[:i]))
    folder = tmp_path / "backup"
    backup = kormos.callbacks.BackupAndRestore(folder)
    with pytest.raises(RuntimeError, match="on purpose"):
        fitted([backup, Crash(at)], optimizer=lm(stochastic=True), **settings)
    resumed, history = fitted(
        [backup], optimizer=lm(stochastic=True), **settings
    )
    assert history.history["loss"] == losses[at:]
    assert history.result.initial_loss == min(losses[:at])
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("every", [2, 4, 5, 7])
def test_drawn_rows_are_those_of_a_fit_without_a_crash(every, tmp_path):
    def draw(count, rng):
        x = rng.uniform(-1, 1, (count, 1)).astype("float32")
        return x, np.sinc(3 * x)

    def resample():
        return kormos.callbacks.Resample(draw, every=every)

    whole, _ = fitted([resample()])
    backup = kormos.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(RuntimeError, match="on purpose"):
        fitted([resample(), backup, Crash()])
    resumed, history = fitted([resample(), backup])
    assert history.epoch[0] == 6
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
