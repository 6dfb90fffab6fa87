"""Ctrl-C twice within two seconds, and before the start is evaluated."""

import keras
import numpy as np
import pytest
from keras import ops

import kormos
from conftest import lindata
from conftest import linear
from kormos.session import interrupts
from kormos.solvers.problem import Problem


@pytest.fixture
def clock(monkeypatch):
    """The time, as an attribute that a test sets."""

    class Clock:
        time = 0.0

    monkeypatch.setattr(interrupts, "SECONDS", 2.0)
    monkeypatch.setattr(interrupts, "now", lambda: Clock.time)
    monkeypatch.setattr(interrupts._Latest, "time", None)
    return Clock


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def compiled():
    model = linear()
    model.compile("l-bfgs-b", "mse")
    return model


def fit(model):
    data = lindata(60, noise=0.5)
    return model.fit(*data, epochs=9, callbacks=[Interrupt()], verbose=0)


def test_a_second_interrupt_within_two_seconds_raises(clock):
    assert fit(compiled()).result.status == "interrupted"
    clock.time = 1.9
    model = compiled()
    start = model.evaluate(*lindata(60, noise=0.5), verbose=0)
    with pytest.raises(KeyboardInterrupt):
        fit(model)
    # The weights are the best ones even then.
    assert model.evaluate(*lindata(60, noise=0.5), verbose=0) < start


def test_a_later_interrupt_ends_a_fit_only(clock):
    assert fit(compiled()).result.status == "interrupted"
    clock.time = 2.1
    assert fit(compiled()).result.status == "interrupted"


def test_a_second_interrupt_of_a_minimization_raises(clock):
    v = keras.Variable([3.0, 1.0])

    def interrupt(iteration, logs):
        raise KeyboardInterrupt

    def minimize():
        v.assign([3.0, 1.0])
        scales = ops.convert_to_tensor([1.0, 9.0])
        return kormos.minimize(
            lambda: ops.sum(scales * v**2), [v], callback=interrupt
        )

    assert minimize().status == "interrupted"
    with pytest.raises(KeyboardInterrupt):
        minimize()


def test_before_the_first_evaluation_there_is_no_row(monkeypatch):
    def interrupted(problem, theta):
        raise KeyboardInterrupt

    monkeypatch.setattr(Problem, "value_and_grad", interrupted)
    model = compiled()
    before = model.get_weights()
    history = model.fit(*lindata(60, noise=0.5), verbose=0)
    assert history.result.status == "interrupted"
    assert history.epoch == [] and history.history == {}
    message = "interrupted after 0 iterations and 0 evaluations."
    assert str(history.result) == message
    np.testing.assert_array_equal(model.get_weights(), before)


def test_before_the_first_iterate_the_row_is_the_start(monkeypatch):
    value_and_grad = Problem.value_and_grad

    def interrupted(problem, theta):
        if problem.fg_evals == 1:
            raise KeyboardInterrupt
        return value_and_grad(problem, theta)

    monkeypatch.setattr(Problem, "value_and_grad", interrupted)
    model = compiled()
    history = model.fit(*lindata(60, noise=0.5), verbose=0)
    loss = model.evaluate(*lindata(60, noise=0.5), verbose=0)
    assert history.result.status == "interrupted"
    assert history.history["loss"] == [pytest.approx(loss, rel=1e-6)]
    assert np.isfinite(history.history["grad"]).all()
