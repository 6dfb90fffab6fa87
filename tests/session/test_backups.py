"""Backups of fits with an optimizer that the model was not compiled with."""

import keras
import numpy as np
import pytest

import kormos

X = np.linspace(-1.0, 1.0, 40, dtype="float32")[:, None]
Y = np.sinc(3 * X)


class Crash(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 6:
            raise RuntimeError("on purpose")


def fitted(callbacks, seed=0, **settings):
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
        optimizer="lbfgs",
        epochs=12,
        callbacks=callbacks,
        verbose=0,
        **settings,
    )
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    return model, history


@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
@pytest.mark.parametrize(
    "kind",
    [kormos.callbacks.BackupAndRestore, keras.callbacks.BackupAndRestore],
)
def test_a_backup_has_the_curvature_of_the_optimizer_of_the_fit(kind, tmp_path):
    whole, _ = fitted([])
    folder = tmp_path / "backup"
    with pytest.raises(RuntimeError, match="on purpose"):
        fitted([kind(folder), Crash()])
    resumed, history = fitted([kind(folder)])
    assert history.epoch[0] == 6
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
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
