"""Functions that tests run in other processes."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import contextlib
import multiprocessing
import pathlib
import signal
import warnings

with contextlib.suppress(ImportError):
    # torch must come first: after TensorFlow, it crashes the process.
    import torch as torch

import h5py
import keras
import numpy as np

import kormos


def points():
    x = np.random.default_rng(0).uniform(-1, 1, (30, 2))
    return x, (x**2).sum(axis=1, keepdims=True)


def network(method):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(3, activation="tanh"),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer=method, loss="mse")
    return model


def flat(model):
    return np.concatenate([w.ravel() for w in model.get_weights()])


def fit(connection, method, epochs=8, callbacks=(), target_loss=None):
    """A fit; sends its losses and weights, and returns them."""
    model = network(method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kormos.ConvergenceWarning)
        history = model.fit(
            *points(),
            epochs=epochs,
            callbacks=list(callbacks),
            target_loss=target_loss,
            verbose=0,
        )
    report = history.history["loss"], flat(model)
    if connection is not None:
        connection.send(report)
    return report


class Tell(keras.callbacks.Callback):
    """Sends the number of each epoch that has a backup."""

    def __init__(self, connection):
        super().__init__()
        self._connection = connection

    def on_epoch_end(self, epoch, logs=None):
        self._connection.send(epoch)


def fit_with_backup(connection, folder, place=None):
    """A fit that continues from a backup, until its loss is low.

    Args:
        connection: the connection for messages about epochs and the end.
        folder: the folder of the backup.
        place: the place in the code at which to be killed, at the fourth
            backup.
    """
    backup = kormos.callbacks.BackupAndRestore(folder)
    if place is not None:
        _die_at_the_fourth(*_PLACES[place])
    # About a hundred epochs from the start.
    fit(connection, "lbfgs", 1000, [backup, Tell(connection)], 3e-4)


# The epochs of each stage of a chain.
CHAIN_EPOCHS = 30


def fit_chain_with_backup(connection, folder):
    """Like `fit_with_backup`, in three stages, the first on shuffled batches.

    Args:
        connection: the connection for messages about epochs and the end.
        folder: the folder of the backup.
    """
    stages = kormos.optimizers.Chain(
        [keras.optimizers.Adam(0.02), "lbfgs", "lm"],
        epochs=[CHAIN_EPOCHS] * 3,
        batch_size=8,
    )
    fit(
        connection,
        stages,
        None,
        [kormos.callbacks.BackupAndRestore(folder), Tell(connection)],
    )


# The places: where the file is partly written; where it is complete, without
# its final name; where there are two files.
_PLACES = {
    "open": (h5py.File, "close"),
    "complete": (os, "replace"),
    "named": (pathlib.Path, "unlink"),
}


def _die_at_the_fourth(owner, name):
    function, calls = getattr(owner, name), []

    def die(*args, **kwargs):
        calls.append(name)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, name, die)


def context(monkeypatch, folder):
    """Starts processes that share imports, and XLA's compiled code.

    Args:
        monkeypatch: the fixture of pytest.
        folder: the folder for compiled code.
    """
    # On TensorFlow XLA compiles for seconds, in every process.
    monkeypatch.setenv(
        "TF_XLA_FLAGS", f"--tf_xla_persistent_cache_directory={folder}"
    )
    forkserver = multiprocessing.get_context("forkserver")
    # Keras' backup imports TensorFlow on any backend.
    forkserver.set_forkserver_preload(
        ["torch", "tensorflow", "keras", "kormos"]
    )
    return forkserver


def start(context, target, *args):
    """A process that runs `target(connection, *args)`, and the connection."""
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(theirs, *args))
    process.start()
    theirs.close()
    return process, mine
