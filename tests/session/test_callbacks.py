"""Callbacks are called once an epoch, with the weights of its iterate."""

import keras
import numpy as np
import pytest
from keras import callbacks as kc

import kormos
from conftest import TIGHT
from conftest import lindata
from conftest import linear

METHODS = sorted(kormos.optimizers.METHODS)
# The last point that they evaluate is not their iterate.
WANDERING = [
    "l-bfgs-b",
    "nelder-mead",
    "powell",
    "cobyla",
    "slsqp",
    "tnc",
    "trust-krylov",
    "trust-ncg",
]


def curved(method="l-bfgs-b", **kwargs):
    """A fit of 13 parameters that takes dozens of iterations."""
    layers = [
        keras.Input((2,)),
        keras.layers.Dense(3, "tanh"),
        keras.layers.Dense(1),
    ]
    model = keras.Sequential(layers)
    model.compile(optimizer=method, loss="mse", **kwargs)
    x = np.random.RandomState(0).uniform(-1, 1, (30, 2))
    return model, (x, np.tanh(3 * x[:, :1]) + x[:, :1] * x[:, 1:])


def straight(method="l-bfgs-b", **kwargs):
    """A linear regression: quick to fit."""
    model = linear(l2=1e-3)
    model.compile(optimizer=method, loss="mse", **kwargs)
    return model, lindata(60, noise=0.5)


class Hooks(kc.Callback):
    """Notes the calls of hooks, in order."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def on_train_begin(self, logs=None):
        self.calls.append("train begin")

    def on_train_end(self, logs=None):
        self.calls.append("train end")

    def on_epoch_begin(self, epoch, logs=None):
        self.calls.append(("epoch begin", epoch))

    def on_epoch_end(self, epoch, logs=None):
        self.calls.append(("epoch end", epoch))


class BatchHooks(Hooks):
    def on_train_batch_begin(self, batch, logs=None):
        self.calls.append(("batch begin", batch))

    def on_train_batch_end(self, batch, logs=None):
        self.calls.append(("batch end", batch, logs["loss"]))


def test_hooks_come_in_pairs_and_count_from_zero(unconverged):
    model, data = straight()
    hooks, batch_hooks = Hooks(), BatchHooks()
    history = model.fit(*data, epochs=3, callbacks=[hooks], verbose=0)
    assert hooks.calls == [
        "train begin",
        *((f"epoch {end}", e) for e in range(3) for end in ("begin", "end")),
        "train end",
    ]
    assert history.epoch == [0, 1, 2]
    model.set_weights([np.ones((5, 1))])
    model.fit(*data, epochs=2, callbacks=[batch_hooks], verbose=0)
    losses = history.history["loss"]
    assert batch_hooks.calls == [
        "train begin",
        ("epoch begin", 0),
        ("batch begin", 0),
        ("batch end", 0, losses[0]),
        ("epoch end", 0),
        ("epoch begin", 1),
        ("batch begin", 0),
        ("batch end", 0, losses[1]),
        ("epoch end", 1),
        "train end",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("method", WANDERING)
def test_logs_are_those_of_the_weights_in_the_model(
    method, float64, unconverged
):
    model, (x, y) = curved(method, metrics=["mae"])
    validation = x[:9], y[:9] + 0.1
    seen = []

    class Compare(kc.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(epoch)
            report = self.model.evaluate(x, y, return_dict=True, verbose=0)
            for name, value in report.items():
                assert logs[name] == pytest.approx(value, rel=TIGHT), name
            report = self.model.evaluate(
                *validation, return_dict=True, verbose=0
            )
            for name, value in report.items():
                assert logs[f"val_{name}"] == pytest.approx(value, rel=TIGHT)

    history = model.fit(
        x,
        y,
        epochs=6,
        validation_data=validation,
        callbacks=[Compare()],
        verbose=0,
    )
    assert seen == [0, 1, 2, 3, 4, 5]
    # An accepted iterate is no worse.
    assert np.all(np.diff(history.history["loss"]) <= 0)


class StopAfter(kc.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            self.model.stop_training = True


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_stops_after_the_iteration(method, float64):
    model, data = curved(method)
    if method == "dogleg":
        model, data = straight(method)
        model.optimizer.options = {
            "initial_trust_radius": 0.01,
            "max_trust_radius": 0.02,
        }
    history = model.fit(*data, callbacks=[StopAfter(1)], verbose=0)
    assert history.epoch == [0, 1]
    result = history.result
    assert result.status == "stopped by callback"
    assert not result.success
    assert model.evaluate(*data, verbose=0) == pytest.approx(
        history.history["loss"][-1], rel=TIGHT
    )
    # Neither stopped epochs nor stages are made up for later.
    again = model.fit(*data, callbacks=[StopAfter(0)], verbose=0)
    assert again.epoch == [0]


def test_a_stop_ends_all_stages():
    model, data = curved()
    history = model.fit(
        *data,
        method=["cg", "bfgs"],
        epochs=[3, 3],
        callbacks=[StopAfter(2)],
        verbose=0,
    )
    assert history.epoch == [0, 1, 2]


def test_the_callers_list_is_left_alone(unconverged):
    model, data = straight()
    given = [Hooks()]
    model.fit(*data, epochs=2, callbacks=given, verbose=1)
    assert len(given) == 1


def test_containers_and_default_callbacks_are_accepted(unconverged):
    model, data = straight()
    hooks, history = Hooks(), kc.History()
    given = kc.CallbackList([hooks, history], add_progbar=True)
    returned = model.fit(*data, epochs=2, callbacks=given, verbose=0)
    assert returned is history
    assert history.epoch == [0, 1]
    assert hooks.calls[0] == "train begin"
    assert hooks.model is model


def test_logs_that_a_callback_adds_are_recorded(unconverged):
    model, data = straight()

    class Add(kc.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["twice"] = 2 * logs["loss"]

    history = model.fit(*data, epochs=2, callbacks=[Add()], verbose=0)
    losses = history.history["loss"]
    assert history.history["twice"] == [2 * loss for loss in losses]
