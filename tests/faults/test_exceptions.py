"""Exceptions of the user's own: in callbacks, losses and data sets."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from conftest import BACKEND
from faults.models import FAMILIES
from faults.models import METHODS
from faults.models import assert_as_new
from faults.models import assert_usable
from faults.models import data
from faults.models import loss
from faults.models import shared

KIND = "exceptions"

EACH_METHOD = pytest.mark.parametrize("method", METHODS)
HOOKS = [
    "on_epoch_begin",
    "on_train_batch_begin",
    "on_train_batch_end",
    "on_epoch_end",
    "on_train_end",
]


class Ours(Exception):
    """An exception that no library raises."""


def raiser(hook, epoch):
    """A callback that raises in a hook, in an epoch, and its error."""
    error, seen = Ours(hook), []

    class Raise(keras.callbacks.Callback):
        pass

    def raise_late(self, *args, logs=None):
        seen.append(hook)
        if len(seen) > epoch or "on_train_" in hook and "batch" not in hook:
            raise error

    setattr(Raise, hook, raise_late)
    return Raise(), error


def raise_in(hook, method, fault):
    """A model whose fit was ended by an error in a hook."""
    model, (x, y) = shared(method), data()
    start = loss(model, x, y)
    callback, error = raiser(hook, epoch=3)
    with fault.spares(model, x, y):
        with pytest.raises(Ours) as caught:
            model.fit(x, y, epochs=6, callbacks=[callback], verbose=0)
    assert caught.value is error
    # The weights are those of the latest iterate that was seen.
    losses = [start, *model.history.history.get("loss", [])]
    assert loss(model, x, y) <= losses[-1] * (1 + 1e-5)
    return model


@EACH_METHOD
@pytest.mark.parametrize("hook", HOOKS)
def test_in_a_callback(method, hook, fault):
    model = raise_in(hook, method, fault)
    assert_usable(model.history)
    assert_as_new(method)


@EACH_METHOD
def test_in_a_callback_before_there_is_a_history(method, fault):
    raise_in("on_train_begin", method, fault)
    assert_as_new(method)


@pytest.mark.parametrize("method", FAMILIES)
@pytest.mark.parametrize("name", ["callback", "loss_callback"])
def test_in_a_callback_of_minimize(method, name, fault):
    if method == "lm":
        pytest.skip("Least squares have no scalar loss to minimize.")
    v = keras.Variable([3.0, -2.0])
    error, seen = Ours(name), []

    def callback(*args):
        seen.append(args)
        if len(seen) == 2:
            raise error

    def objective():
        return ops.sum((v - 1) ** 4)

    with pytest.raises(Ours) as caught:
        kormos.minimize(objective, [v], method, **{name: callback})
    assert caught.value is error
    assert np.isfinite(v.numpy()).all()
    assert float(ops.convert_to_numpy(objective())) <= 97
    assert kormos.minimize(objective, [v], method).loss < 1e-3


class Fragile(keras.losses.Loss):
    """A mean squared error that raises in one of its calls."""

    def __init__(self):
        super().__init__()
        self.error = None
        self.calls = 0

    def call(self, y_true, y_pred):
        self.calls -= 1
        if self.error is not None and self.calls < 0:
            raise self.error
        return ops.mean((y_true - y_pred) ** 2, axis=-1)


def fragile(method):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(2, activation="tanh"),
            layers.Dense(1),
        ]
    )
    model.compile(optimizer=method, loss=Fragile())
    return model


# A compiled loss is only called when it is traced. An error after the start
# counts as a step that is too long: see `test_recovery.py`.
CALLS = [0, 1] if BACKEND == "torch" else [0]


def raise_in_a_loss(method, calls):
    """A model whose fit was ended by an error in its loss, and its start."""
    model, (x, y) = fragile(method), data()
    error = model.loss.error = Ours("loss")
    model.loss.calls = calls
    weights = model.get_weights()

    class Disarm(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            raise AssertionError("A fit that failed has no end.")

    with pytest.raises(Ours) as caught:
        model.fit(x, y, epochs=9, callbacks=[Disarm()], verbose=0)
    model.loss.error = None
    assert caught.value is error
    assert all(np.isfinite(w).all() for w in model.get_weights())
    after = loss(model, x, y)
    model.set_weights(weights)
    assert after <= loss(model, x, y) * (1 + 1e-6)
    model.optimizer.solver_state = None
    return model, weights


@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize("method", FAMILIES)
def test_in_a_loss(method, calls, fault):
    model, _ = raise_in_a_loss(method, calls)
    history = model.fit(*data(), epochs=6, verbose=0)
    assert history.result.loss < history.result.initial_loss


# JAX and TensorFlow would compile each of the others twice.
@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize(
    "method", FAMILIES if BACKEND == "torch" else ["l-bfgs-b"]
)
def test_after_an_error_in_a_loss_a_fit_is_that_of_a_fresh_model(
    method, calls, fault
):
    model, weights = raise_in_a_loss(method, calls)
    history = model.fit(*data(), epochs=6, verbose=0)
    fresh = fragile(method)
    fresh.set_weights(weights)
    expected = fresh.fit(*data(), epochs=6, verbose=0)
    assert history.history["loss"] == expected.history["loss"]


class Batches(keras.utils.PyDataset):
    """Batches of four rows, the third of which cannot be read."""

    def __init__(self, error, batches=3):
        super().__init__()
        self._error = error
        self._batches = batches

    @property
    def num_batches(self):
        return self._batches

    def __getitem__(self, index):
        if index == 2:
            raise self._error
        rows = slice(4 * index, 4 * index + 4)
        x, y = data()
        return x[rows], y[rows]


class Iterable:
    """An iterable like a torch `DataLoader`, which fails in its third batch."""

    def __init__(self, error):
        self._batches = Batches(error)

    def __iter__(self):
        return (self._batches[i] for i in range(3))


@EACH_METHOD
@pytest.mark.parametrize("kind", [Batches, Iterable])
@pytest.mark.parametrize("place", ["x", "validation_data"])
def test_in_a_data_set(method, kind, place, fault):
    model, (x, y) = shared(method), data()
    weights = model.get_weights()
    error = Ours("batch")
    arguments = {"x": x, "y": y, "validation_data": None}
    if place == "x":
        arguments["y"] = None
    arguments[place] = kind(error)
    with fault.spares(model, x, y):
        with pytest.raises(Ours) as caught:
            model.fit(**arguments, verbose=0)
    assert caught.value is error
    for now, before in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(now, before)
    # Half of a data set must not count as all of it.
    assert_as_new(method)
