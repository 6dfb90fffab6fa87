"""Functions that processes run together in the tests of faults."""

import dataclasses
import functools
import os
import pathlib
import signal
import threading
import time
import traceback
import types
import warnings

import keras
import numpy as np
from keras import callbacks as kc

import kormos

# Rows of the first process, of thirty.
FIRST = 18


def points():
    x = np.random.default_rng(0).uniform(-1, 1, (30, 2))
    return x, (x**2).sum(axis=1, keepdims=True)


def own_rows(index):
    own = slice(FIRST) if index == 0 else slice(FIRST, None)
    return tuple(array[own] for array in points())


def network(loss="mse"):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(3, activation="tanh"),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer="lbfgs", loss=loss)
    return model


@functools.cache
def _shared():
    # Compiling takes longer than any fit here.
    model = network()
    return model, model.get_weights()


def shared():
    """A model for many faults, with its initial weights."""
    model, weights = _shared()
    model.set_weights(weights)
    model.optimizer.solver_state = None
    return model


def flat(model):
    return np.concatenate([w.ravel() for w in model.get_weights()])


@dataclasses.dataclass
class Report:
    """The report of a process about a fit.

    Attributes:
        error: the name of the exception that the fit raised, or `None`.
        message: its text.
        seconds: the duration of the fit.
        before: the parameters before it.
        after: the parameters after it.
        status: the status of the result, if there is one.
        losses: an entry for every epoch.
        more: other findings of a case.
    """

    error: str | None
    message: str
    seconds: float
    before: np.ndarray
    after: np.ndarray
    status: str | None
    losses: list
    more: dict


def reported(model, fit, **more):
    before, began = flat(model), time.perf_counter()
    error = result = None
    model.history = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", kormos.ConvergenceWarning)
            result = fit().result
    except BaseException as raised:
        error = raised
        traceback.print_exc()
    history = getattr(model.history, "history", {})
    return Report(
        None if error is None else type(error).__name__,
        "" if error is None else str(error),
        time.perf_counter() - began,
        before,
        flat(model),
        None if result is None else result.status,
        history.get("loss", []),
        more,
    )


def fitted(index, callbacks=(), rows=None, loss=None, **more):
    model = shared() if loss is None else network(loss)
    x, y = own_rows(index) if rows is None else rows
    more = {"epochs": 8, "verbose": 0, "callbacks": list(callbacks), **more}
    return reported(model, lambda: kormos.fit(model, x, y, **more))


def at_epoch(epoch, fn, hook="on_epoch_end"):
    """A callback that calls a function at an epoch."""

    class At(keras.callbacks.Callback):
        pass

    def call(self, number, logs=None):
        if number == epoch:
            fn(self)

    setattr(At, hook, call)
    return At()


def fail(*args):
    raise ZeroDivisionError("what the test raises")


CASES = {}


def case(fn):
    CASES[fn.__name__] = fn
    return fn


@case
def undisturbed(index, folder):
    return fitted(index)


@case
def raises_in_its_loss(index, folder):
    def loss(y, prediction):
        if index == 1:
            raise TypeError("what the test raises")
        return keras.losses.mean_squared_error(y, prediction)

    return fitted(index, loss=loss)


@case
def raises_in_its_loss_far_away(index, folder):
    """It raises at a single point, which both processes reject."""
    calls = []

    def loss(y, prediction):
        calls.append(1)
        if index == 1 and len(calls) == 6:
            raise FloatingPointError("what the test raises")
        return keras.losses.mean_squared_error(y, prediction)

    return fitted(index, loss=loss)


class Batches(keras.utils.PyDataset):
    """Batches of six rows, which fail after a number of reads."""

    def __init__(self, rows, reads):
        super().__init__()
        self._rows = rows
        self._reads = reads

    def __len__(self):
        return -(-len(self._rows[0]) // 6)

    def __getitem__(self, number):
        self._reads -= 1
        if self._reads == 0:
            raise OSError("what the test raises")
        return tuple(a[6 * number : 6 * number + 6] for a in self._rows)


@case
def raises_in_its_data(index, folder):
    reads = 11 if index == 1 else 10_000
    rows = Batches(own_rows(index), reads), None
    return fitted(index, rows=rows, stream=True)


@case
def raises_at_its_first_batch(index, folder):
    reads = 1 if index == 1 else 10_000
    rows = Batches(own_rows(index), reads), None
    return fitted(index, rows=rows, stream=True)


@case
def raises_in_a_callback(index, folder):
    return fitted(index, [at_epoch(3, fail)] if index == 1 else [])


@case
def raises_in_a_callback_of_the_first(index, folder):
    return fitted(index, [at_epoch(3, fail)] if index == 0 else [])


@case
def raises_in_an_earlier_hook(index, folder):
    hook = "on_epoch_begin"
    return fitted(index, [at_epoch(3, fail, hook)] if index == 1 else [])


@case
def raises_when_training_begins(index, folder):
    callback = kc.LambdaCallback(on_train_begin=fail)
    return fitted(index, [callback] if index == 1 else [])


@case
def raises_when_training_ends(index, folder):
    callback = kc.LambdaCallback(on_train_end=fail)
    return fitted(index, [callback] if index == 1 else [])


@case
def raises_while_the_other_computes(index, folder):
    fn = fail if index == 0 else lambda callback: time.sleep(2)
    return fitted(index, [at_epoch(3, fn)])


@case
def has_a_wrong_argument(index, folder):
    return fitted(index, epochs=-1 if index == 1 else 8)


@case
def has_nan(index, folder):
    x, y = own_rows(index)
    if index == 1:
        x[3, 0] = np.nan
    return fitted(index, rows=(x, y))


@case
def has_nan_and_allows_it(index, folder):
    x, y = own_rows(index)
    if index == 1:
        x[3, 0] = np.nan
    return fitted(index, rows=(x, y), allow_nan=True)


@case
def has_no_rows(index, folder):
    x, y = own_rows(index)
    if index == 1:
        x, y = x[:0], y[:0]
    return fitted(index, rows=(x, y))


@case
def is_interrupted(index, folder):
    def interrupt(callback):
        os.kill(os.getpid(), signal.SIGINT)

    return fitted(index, [at_epoch(3, interrupt)] if index == 1 else [])


@case
def is_interrupted_while_it_waits(index, folder):
    def wait(callback):
        if index == 1:
            time.sleep(1.5)
            return
        pid = os.getpid()
        threading.Timer(0.5, os.kill, (pid, signal.SIGINT)).start()

    return fitted(index, [at_epoch(3, wait)])


@case
def raises_an_interrupt(index, folder):
    def interrupt(callback):
        raise KeyboardInterrupt

    return fitted(index, [at_epoch(3, interrupt)] if index == 1 else [])


@case
def raises_an_interrupt_in_an_earlier_hook(index, folder):
    def interrupt(callback):
        raise KeyboardInterrupt

    hook = "on_epoch_begin"
    return fitted(index, [at_epoch(3, interrupt, hook)] if index == 1 else [])


@case
def is_interrupted_twice(index, folder):
    """The second interrupt does not wait for the process's own computation."""

    def compute(callback):
        for delay in (0.3, 0.6):
            pid = os.getpid()
            threading.Timer(delay, os.kill, (pid, signal.SIGINT)).start()
        time.sleep(60)

    return fitted(index, [at_epoch(3, compute)] if index == 1 else [])


@case
def is_slow(index, folder):
    rest = at_epoch(3, lambda callback: time.sleep(5))
    return fitted(index, [rest] if index == 1 else [])


@case
def finds_a_full_disk(index, folder):
    def fill(callback):
        folder.mkdir(exist_ok=True)
        (folder / "part.weights.h5").symlink_to("/dev/full")

    callbacks = [kormos.callbacks.BackupAndRestore(folder)]
    if index == 0:
        callbacks.append(at_epoch(2, fill, "on_epoch_begin"))
    return fitted(index, callbacks)


@case
def is_of_another_version(index, folder):
    """Stands for a version that takes other steps."""
    memory = 2 if index == 1 else 10
    return fitted(index, optimizer=kormos.optimizers.LBFGS(memory=memory))


@case
def has_a_callback_that_changes_weights(index, folder):
    def change(callback):
        variable = callback.model.trainable_variables[1]
        variable.assign(variable + 0.001)

    return fitted(index, [at_epoch(3, change)] if index == 1 else [])


@case
def stops_in_one_callback(index, folder):
    def stop(callback):
        callback.model.stop_training = True

    return fitted(index, [at_epoch(4, stop)] if index == 1 else [])


@case
def stops_early(index, folder):
    x, y = own_rows(index)
    stop = kc.EarlyStopping(patience=3, restore_best_weights=True)
    found = {"val_loss": [], "weights": []}

    class Note(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            found["val_loss"].append(logs["val_loss"])
            found["weights"].append(flat(self.model))

    report = fitted(
        index, [Note(), stop], epochs=200, validation_data=(x, 0.5 * y)
    )
    best = stop.best_epoch
    found["weights"] = found["weights"][best]
    report.more.update(best=best, **found)
    return report


@case
def keeps_checkpoints(index, folder):
    own = folder / str(index)
    own.mkdir(parents=True)
    report = fitted(
        index,
        [
            kc.ModelCheckpoint(
                own / "{epoch}.weights.h5", save_weights_only=True
            ),
            kc.ModelCheckpoint(
                own / "best.keras", save_best_only=True, monitor="loss"
            ),
            kc.CSVLogger(own / "log.csv"),
        ],
    )
    report.more["files"] = sorted(path.name for path in own.iterdir())
    if index == 0:
        report.more["rows"] = (own / "log.csv").read_text().splitlines()
    return report


@case
def keeps_checkpoints_on_the_first(index, folder):
    folder.mkdir(exist_ok=True)
    checkpoint = kc.ModelCheckpoint(folder / "best.keras", monitor="loss")
    report = fitted(index, [checkpoint] if index == 0 else [])
    report.more["is_there"] = (folder / "best.keras").exists()
    return report


@case
def keeps_keras_own_backup(index, folder):
    def backups():
        return [kc.BackupAndRestore(folder, delete_checkpoint=False)]

    fitted(index, backups(), epochs=4)
    return fitted(index, backups())


@case
def has_a_time_limit(index, folder):
    rest = kc.LambdaCallback(on_epoch_end=lambda *args: time.sleep(0.1))
    return fitted(
        index, [rest] if index == 1 else [], epochs=1000, max_seconds=0.5
    )


@case
def prints(index, folder):
    return fitted(index, verbose=2)


@case
def goes_on(index, folder):
    model, rows = shared(), own_rows(index)
    reported(model, lambda: model.fit(*rows, epochs=4, verbose=0))
    return reported(
        model, lambda: model.fit(*rows, epochs=4, verbose=0, resume=True)
    )


def _minimized(index, callbacks=(), residuals=None):
    x, y = own_rows(index)
    weights = keras.Variable(np.zeros(2), dtype="float64")

    def of(data):
        if residuals is not None:
            residuals()
        return keras.ops.exp(data[0] @ weights) - data[1][:, 0] - 1

    model = shared()

    def fit():
        result = kormos.least_squares(
            of, [weights], data=(x, y), callbacks=list(callbacks)
        )
        return types.SimpleNamespace(result=result)

    report = reported(model, fit)
    report.more["at"] = np.array(keras.ops.convert_to_numpy(weights))
    return report


@case
def fits_residuals(index, folder):
    return _minimized(index)


@case
def raises_in_its_residuals(index, folder):
    def residuals():
        if index == 1:
            raise TypeError("what the test raises")

    return _minimized(index, residuals=residuals)


@case
def stops_residuals(index, folder):
    def stop(iteration, logs):
        return iteration == 2

    return _minimized(index, [stop] if index == 1 else [])


@case
def raises_in_a_callback_of_residuals(index, folder):
    return _minimized(index, [fail] if index == 1 else [])


def serve(connection, index, names, folder):
    """Runs cases, and sends their reports."""
    for name in names:
        print(f"--- {name}", flush=True)
        report = CASES[name](index, pathlib.Path(folder) / name)
        connection.send((name, report))


# A fit that is killed.


class Tell(keras.callbacks.Callback):
    """Sends the number of each epoch."""

    def __init__(self, connection):
        super().__init__()
        self._connection = connection

    def on_epoch_end(self, epoch, logs=None):
        self._connection.send(epoch)


def train(connection, index, folder):
    """A fit that continues from a backup; sends its report."""
    backup = kormos.callbacks.BackupAndRestore(folder)
    report = fitted(
        index, [backup, Tell(connection)], epochs=1000, target_loss=3e-4
    )
    connection.send(report)


def raise_before_the_fit(connection, index):
    if index == 1:
        raise ZeroDivisionError("what the test raises")
    connection.send(fitted(index))
