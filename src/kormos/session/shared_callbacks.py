"""Keras callbacks if several processes fit a model together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

import keras

from kormos import backend
from kormos.processes import current
from kormos.session.backup import BackupAndRestore
from kormos.session.backup import with_states

if TYPE_CHECKING:
    from kormos.optimizers.base import BatchOptimizer

# Callbacks that only write files or send messages. A backup also changes the
# weights, but the first process shares these with the others.
_WRITERS = (
    BackupAndRestore,
    keras.callbacks.BackupAndRestore,
    keras.callbacks.CSVLogger,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
)

_HOOKS = (
    "set_params",
    "set_model",
    "on_train_begin",
    "on_train_end",
    "on_epoch_begin",
    "on_epoch_end",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_test_begin",
    "on_test_end",
    "on_test_batch_begin",
    "on_test_batch_end",
)


class _OnFirst(keras.callbacks.Callback):
    """A callback that only the first process runs.

    Args:
        callback: the callback.
    """

    def __init__(self, callback: keras.callbacks.Callback):
        super().__init__()
        for hook in _HOOKS:
            setattr(self, hook, _alone(getattr(callback, hook)))


def _alone(fn: Any) -> Any:
    """The function, without the backend's synchronization of variables."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with backend.alone():
            return fn(*args, **kwargs)

    return call


def own_callbacks(
    callbacks: Sequence[keras.callbacks.Callback], optimizer: BatchOptimizer
) -> list[keras.callbacks.Callback]:
    """The callbacks that this process must call.

    Only the first process writes files.

    Args:
        callbacks: those of the user.
        optimizer: the optimizer of the fit.
    """
    processes = current()
    if processes.is_alone:
        return [with_states(c, optimizer) for c in callbacks]
    own = []
    for callback in callbacks:
        if not isinstance(callback, _WRITERS):
            own.append(callback)
        elif processes.is_first:
            own.append(_OnFirst(with_states(callback, optimizer)))
    return own
