"""A fit that ends early, and continues from its backup."""

import keras
import numpy as np
import pytest


class _Ended(Exception):
    pass


def check_goes_on(fitted, at):
    """Asserts that a fit from the backup ends with the weights of one in full.

    Args:
        fitted: function of callbacks that always makes the same model, fits it
            with these and a `BackupAndRestore`, and returns its weights.
        at: the epoch after which the fit is ended by an exception.
    """

    class End(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == at:
                raise _Ended

    expected = fitted()
    with pytest.raises(_Ended):
        fitted(End())
    for one, two in zip(fitted(), expected, strict=True):
        np.testing.assert_array_equal(one, two)
