"""A disk that is full when a checkpoint is written."""

import errno

import keras
import numpy as np
import pytest

from faults.models import FAMILIES
from faults.models import assert_as_new
from faults.models import assert_usable
from faults.models import data
from faults.models import loss
from faults.models import shared

KIND = "full disks"

CALLBACKS = {
    "model": lambda folder: keras.callbacks.ModelCheckpoint(
        folder / "model.keras"
    ),
    "weights": lambda folder: keras.callbacks.ModelCheckpoint(
        folder / "model.weights.h5", save_weights_only=True
    ),
    "backup": lambda folder: keras.callbacks.BackupAndRestore(folder),
}
FILES = ["model.keras", "model.weights.h5", "latest.weights.h5"]


class FillUp(keras.callbacks.Callback):
    """From an epoch on, makes writes to a folder fail as on a full disk."""

    def __init__(self, folder):
        super().__init__()
        self._folder = folder

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            for name in FILES:
                path = self._folder / name
                path.unlink(missing_ok=True)
                path.symlink_to("/dev/full")


@pytest.mark.parametrize("kind", CALLBACKS)
@pytest.mark.parametrize("method", FAMILIES)
def test_a_full_disk(method, kind, fault, tmp_path):
    model, (x, y) = shared(method), data()
    callbacks = [FillUp(tmp_path), CALLBACKS[kind](tmp_path)]
    with fault.spares(model, x, y):
        with pytest.raises(OSError) as caught:
            model.fit(x, y, epochs=9, callbacks=callbacks, verbose=0)
    assert caught.value.errno == errno.ENOSPC or "No space" in str(caught.value)
    history = model.history
    assert_usable(history)
    # The weights are those of the epoch that could not be saved.
    assert loss(model, x, y) <= history.history["loss"][1] * (1 + 1e-6)
    assert history.epoch[:2] == [0, 1]
    assert np.isfinite(history.history["loss"]).all()
    assert_as_new(method)
