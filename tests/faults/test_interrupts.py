"""Ctrl-C at any moment: the History comes back, with the best weights."""

import _thread
import gc
import signal
import threading
import time

import keras
import numpy as np
import pytest

import kormos
from faults.models import FAMILIES
from faults.models import METHODS
from faults.models import assert_as_new
from faults.models import assert_usable
from faults.models import data
from faults.models import loss
from faults.models import shared
from kormos.session.keras_observer import KerasObserver
from kormos.solvers.problem import Problem

KIND = "interrupts"

SCIPY = [m for m in METHODS if m in kormos.optimizers.scipy.METHODS]


@pytest.mark.parametrize("method", SCIPY)
@pytest.mark.parametrize("evaluation", [2, 3, 7])
def test_in_a_line_search(method, evaluation, fault, monkeypatch):
    model, (x, y) = shared(method), data()
    value_and_grad = Problem.value_and_grad

    def interrupted(problem, theta):
        if problem.fg_evals == evaluation - 1:
            raise KeyboardInterrupt
        return value_and_grad(problem, theta)

    monkeypatch.setattr(Problem, "value_and_grad", interrupted)
    with fault.spares(model, x, y):
        history = model.fit(x, y, epochs=50, verbose=0)
    monkeypatch.undo()
    assert history.result.status == "interrupted"
    assert history.result.evaluations == evaluation - 1
    assert_usable(history)
    assert loss(model, x, y) == pytest.approx(history.result.loss, rel=1e-5)
    assert_as_new(method)


class Interrupt(keras.callbacks.Callback):
    """Interrupts the fit a moment after its fourth epoch began."""

    def __init__(self, share):
        super().__init__()
        self._share = share
        self.timer = None

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self._begun = time.perf_counter()
        if epoch == 3 and self.timer is None:
            # On a slow machine as on a fast one, long before the fit ends.
            delay = self._share * (time.perf_counter() - self._begun)
            self.timer = threading.Timer(delay, _thread.interrupt_main)
            self.timer.start()

    def on_train_end(self, logs=None):
        # A test that failed is no reason to interrupt the others.
        if self.timer is not None:
            self.timer.cancel()


# A part of the time of two epochs.
DELAYS = np.random.default_rng(0).uniform(0, 0.25, 8)


@pytest.fixture(autouse=True)
def heard():
    """Turns Ctrl-C on, because background processes of a shell ignore it."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def without_garbage_collection():
    """Turns the collector off: JAX's callback of it loses interrupts."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("method", FAMILIES)
def test_at_random_moments(method, fault, without_garbage_collection):
    # So far away that no fit is done within the delay.
    x, y = data(height=3.0)
    fault.record("tried", len(DELAYS))
    for delay in DELAYS:
        model = shared(method)
        interrupt = Interrupt(delay)
        with fault.spares(model, x, y):
            history = model.fit(
                x, y, epochs=10_000, callbacks=[interrupt], verbose=0
            )
        assert history.result.status == "interrupted"
        assert_usable(history)
        assert loss(model, x, y) == pytest.approx(history.result.loss, rel=1e-5)
        # Curvature may be lost, but a fit with the rest can continue.
        resume = method != "l-bfgs-b"
        again = model.fit(x, y, epochs=2, resume=resume, verbose=0)
        assert again.result.loss <= history.result.loss * (1 + 1e-6)
    assert_as_new(method)


@pytest.mark.parametrize("method", ["lbfgs", "ssbroyden"])
def test_between_the_iterations_of_a_call(method, fault, monkeypatch):
    """A compiled call makes several, and the last one's weights are kept."""
    model, (x, y) = shared(method), data()
    accepts, interrupts = KerasObserver.accepts, [KeyboardInterrupt]

    def interrupted(observer, *args):
        if (observer.done, observer._taken) == (2, 1) and interrupts:
            raise interrupts.pop()
        return accepts(observer, *args)

    monkeypatch.setattr(KerasObserver, "accepts", interrupted)
    with fault.spares(model, x, y):
        # Nobody writes weights in between unless there is one to see them.
        history = model.fit(
            x,
            y,
            epochs=9,
            steps_per_epoch=3,
            callbacks=[keras.callbacks.Callback()],
            verbose=0,
        )
    monkeypatch.undo()
    assert history.result.status == "interrupted"
    assert_usable(history)
    assert loss(model, x, y) == pytest.approx(history.result.loss, rel=1e-5)
    # The fit loses what it did since the call before.
    assert history.result.loss == history.history["loss"][1]
    assert_as_new(method)


@pytest.mark.parametrize("method", FAMILIES)
@pytest.mark.parametrize(
    "hook",
    [
        "on_epoch_begin",
        "on_train_batch_begin",
        "on_train_batch_end",
        "on_epoch_end",
    ],
)
def test_in_a_callback(method, hook, fault):
    model, (x, y) = shared(method), data()
    calls = []

    class Interrupt(keras.callbacks.Callback):
        pass

    def noted(name):
        def call(self, number, logs=None):
            calls.append(name)
            if name == hook and calls.count(name) == 3:
                raise KeyboardInterrupt

        return call

    names = ["on_epoch_begin", "on_train_batch_begin"]
    names += ["on_train_batch_end", "on_epoch_end"]
    for name in names:
        setattr(Interrupt, name, noted(name))
    with fault.spares(model, x, y):
        history = model.fit(x, y, callbacks=[Interrupt()], verbose=0)
    assert history.result.status == "interrupted"
    assert_usable(history)
    # None is called twice for an epoch, and what began has an end.
    assert calls.count("on_epoch_begin") == calls.count("on_epoch_end") == 3
    assert calls.count("on_train_batch_begin") <= 3
    assert calls.count("on_train_batch_end") <= 3
    assert_as_new(method)


@pytest.mark.parametrize("method", [*FAMILIES, "chain"])
@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_train_batch_begin"])
def test_in_the_first_callback_of_an_epoch(method, hook, fault):
    model, (x, y) = shared(FAMILIES[0]), data()
    optimizer = method
    if method == "chain":
        optimizer = kormos.optimizers.Chain(["adam", "lbfgs"], epochs=[2, 2])
    calls = []

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            calls.append(epoch)

    def interrupted(self, number, logs=None):
        raise KeyboardInterrupt

    setattr(Interrupt, hook, interrupted)
    before = loss(model, x, y)
    with fault.spares(model, x, y):
        history = kormos.fit(
            model, x, y, optimizer=optimizer, callbacks=[Interrupt()], verbose=0
        )
    assert history.result.status == "interrupted"
    assert_usable(history)
    assert history.result.iterations == 0
    assert history.result.loss == pytest.approx(before, rel=1e-5)
    # What began has an end.
    assert calls == history.epoch == [0]
    assert loss(model, x, y) == before
