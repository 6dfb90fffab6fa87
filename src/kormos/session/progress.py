"""The progress of a fit, by Keras' own progress bar."""

import sys

import keras
import numpy as np


class Progress(keras.callbacks.Callback):
    """Shows a fit: one live line, or a line an epoch.

    Args:
        epochs: the number of the last epoch.
        verbose: 1 for a live line with the time left, 2 for a line an epoch.
    """

    def __init__(self, epochs, verbose):
        super().__init__()
        self._epochs = epochs
        self._verbose = verbose
        self._done = 0
        self._values = []

    def on_train_begin(self, logs=None):
        self._bar = keras.utils.Progbar(
            self._epochs, verbose=self._verbose, unit_name="epoch"
        )

    def on_epoch_end(self, epoch, logs=None):
        logs = dict(logs or {})
        first = [k for k in ("loss", "grad", "fg_evals") if k in logs]
        if logs.get("hessp_evals") == 0:
            del logs["hessp_evals"]
        names = [*first, *(k for k in logs if k not in first)]
        self._done = epoch + 1
        self._values = [(name, _shown(logs[name])) for name in names]
        # Shown as they are, not averaged over the epochs.
        self._bar.stateful_metrics = set(names)
        if self._verbose == 2:
            self._bar.update(self._done, self._values, finalize=True)
        elif self._done < self._epochs:
            # The bar ends its line when it is full; `on_train_end` does that.
            self._bar.update(self._done, self._values, finalize=False)

    def on_train_end(self, logs=None):
        if self._verbose == 1 and self._values:
            self._bar.update(self._done, self._values, finalize=True)
        result = getattr(self.model.history, "result", None)
        if result is not None:
            print(result, file=sys.stdout, flush=True)


class _Number(float):
    """A number that Keras' bar shows as it is, not in four decimals.

    The differences that matter at the end of a fit are smaller than that, and
    counts have none.
    """

    def __truediv__(self, other):
        return _Number(super().__truediv__(other))

    def __format__(self, spec):
        is_count = self.is_integer() and abs(self) < 1e15
        return str(int(self)) if is_count else f"{float(self):.6g}"


def _shown(value):
    return _Number(value) if np.ndim(value) == 0 else value
