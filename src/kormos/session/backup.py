"""A callback that keeps a backup of a fit, which is valid at any moment."""

import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import keras

from kormos.optimizers.base import BatchOptimizer
from kormos.optimizers.base import whole_states
from kormos.solvers import statuses


class BackupAndRestore(keras.callbacks.Callback):
    """Keeps a backup of a fit, and continues from it after an interruption.

    It saves after every epoch, like `keras.callbacks.BackupAndRestore`, but its
    backup is valid at any moment. Keras overwrites its only file, and a process
    that is killed meanwhile leaves a file that cannot be loaded. Here, a backup
    gets its name only when it is complete, so that a killed fit loses at most
    one epoch.

    The weights, the state of the optimizer (including its curvature) and the
    number of the epoch are restored when training begins.

    Args:
        backup_dir: Path of the folder of the backup, which must not be used for
            anything else.
        delete_checkpoint: Boolean, whether to delete the backup when the fit
            ends. It is kept after Ctrl-C and after an error. Defaults to
            `True`.

    Example:

    ```python
    backup = kormos.callbacks.BackupAndRestore("backup")
    model.fit(x, y, epochs=50, callbacks=[backup])
    ```
    """

    def __init__(
        self, backup_dir: str | os.PathLike[str], delete_checkpoint: bool = True
    ):
        super().__init__()
        self.backup_dir = pathlib.Path(backup_dir)
        self.delete_checkpoint = delete_checkpoint

    def on_train_begin(self, logs: Any = None) -> None:
        backups = self._backups()
        if backups:
            optimizer = self.model.optimizer
            if optimizer is not None and not optimizer.built:
                # Without an optimizer that is built, its state would not be
                # read.
                optimizer.build(self.model.trainable_variables)
            epoch, path = max(backups)
            self.model.load_weights(path)
            # Keras' own callback tells `fit` the epoch in this way.
            self.model._initial_epoch = epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.backup_dir.mkdir(parents=True, exist_ok=True)
        earlier = self._backups()
        part = self.backup_dir / "part.weights.h5"
        with whole_states():
            self.model.save_weights(part, overwrite=True)
        os.replace(part, self.backup_dir / f"epoch-{epoch + 1}.weights.h5")
        for number, path in earlier:
            if number != epoch + 1:
                path.unlink()

    def on_train_end(self, logs: Any = None) -> None:
        if self.delete_checkpoint:
            shutil.rmtree(self.backup_dir, ignore_errors=True)

    def _backups(self) -> list[tuple[int, pathlib.Path]]:
        """The complete backups: pairs of the epoch and the file."""
        found = []
        for path in self.backup_dir.glob("epoch-*.weights.h5"):
            number = re.fullmatch(r"epoch-(\d+)\.weights\.h5", path.name)
            if number:
                found.append((int(number[1]), path))
        return found


class _WithStates(keras.callbacks.Callback):
    """A backup of a fit, with the state of the solver of this fit.

    Keras saves the optimizer that the model was compiled with, but `kormos.fit`
    may be given another one.

    Args:
        callback: the backup callback, Keras' own or that of kormos.
        optimizer: the optimizer of the fit.
    """

    def __init__(
        self, callback: keras.callbacks.Callback, optimizer: BatchOptimizer
    ):
        super().__init__()
        self._callback, self._optimizer = callback, optimizer

    @contextlib.contextmanager
    def _fitting(self) -> Iterator[None]:
        """A scope in which the model has the optimizer of the fit."""
        compiled = self.model.optimizer
        self.model.optimizer = self._optimizer
        try:
            with whole_states():
                yield
        finally:
            self.model.optimizer = compiled

    def set_params(self, params: dict[str, Any]) -> None:
        super().set_params(params)
        self._callback.set_params(params)

    def set_model(self, model: Any) -> None:
        super().set_model(model)
        self._callback.set_model(model)

    def on_train_begin(self, logs: Any = None) -> None:
        with self._fitting():
            self._callback.on_train_begin(logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        with self._fitting():
            self._callback.on_train_batch_end(batch, logs)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._callback.on_epoch_begin(epoch, logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        with self._fitting():
            self._callback.on_epoch_end(epoch, logs)

    def on_train_end(self, logs: Any = None) -> None:
        # Backup callbacks delete their backup here. After an interrupt, Keras
        # does not call them.
        if self.model.history.result.status != statuses.INTERRUPTED:
            self._callback.on_train_end(logs)


def with_states(
    callback: keras.callbacks.Callback, optimizer: BatchOptimizer
) -> keras.callbacks.Callback:
    """Wraps a backup callback, so that it saves the state of the solver too.

    Other callbacks are returned unchanged.

    Args:
        callback: the callback.
        optimizer: the optimizer of the fit.
    """
    kinds = BackupAndRestore, keras.callbacks.BackupAndRestore
    if not isinstance(callback, kinds):
        return callback
    return _WithStates(callback, optimizer)
