"""The model never ends with a higher loss than at the start."""

import keras
import numpy as np
import pytest
from keras import ops

import kormos
from conftest import TIGHT
from conftest import lindata
from conftest import linear
from kormos.optimizers import ScipyBatchOptimizer

METHODS = sorted(kormos.optimizers.METHODS)


class Scripted(keras.losses.Loss):
    """A mean squared error that raises at its n-th call."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error
        self.calls_left = None

    def call(self, y_true, y_pred):
        if self.calls_left is not None:
            self.calls_left -= 1
            if self.calls_left < 0:
                # Otherwise its traceback grows with every call.
                raise self.error.with_traceback(None)
        return ops.mean((y_true - y_pred) ** 2, axis=-1)


class RaiseAt(keras.callbacks.Callback):
    def __init__(self, epoch, error):
        super().__init__()
        self.epoch = epoch
        self.error = error

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epoch:
            raise self.error


class Reached(Exception):
    pass


def fit_until_the_loss_raises(method, error, calls):
    """A fit whose loss raises at one of its later evaluations."""
    loss = Scripted(error)
    model = linear()
    # Run eagerly, it is called at every evaluation.
    model.compile(optimizer=method, loss=loss, run_eagerly=True)
    data = lindata(50, noise=0.3)
    start = model.evaluate(*data, verbose=0)

    class Arm(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                loss.calls_left = calls

    def fit():
        try:
            return model.fit(*data, callbacks=[Arm()], epochs=50, verbose=0)
        finally:
            loss.calls_left = None

    return model, data, start, fit


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("unconverged")
def test_a_loss_that_raises_from_then_on_leaves_the_best_weights(
    method, float64
):
    model, data, start, fit = fit_until_the_loss_raises(method, Reached(), 3)
    if method == "dogleg":
        # A quadratic is done in one step; shorten them.
        model.optimizer.options = {
            "initial_trust_radius": 0.1,
            "max_trust_radius": 0.2,
        }
    history = fit()
    losses = [start, *history.history["loss"]]
    assert len(losses) > 1
    assert history.result.loss == min(losses)
    assert "raised Reached " in history.result.message
    assert "(test_recovery.py, line " in history.result.message
    assert model.evaluate(*data, verbose=0) == pytest.approx(
        min(losses), rel=TIGHT
    )


@pytest.mark.parametrize("method", ["l-bfgs-b", "tnc", "trust-krylov"])
def test_an_interrupt_in_the_loss_returns_the_history(method, float64):
    model, data, start, fit = fit_until_the_loss_raises(
        method, KeyboardInterrupt(), 3
    )
    history = fit()
    result = history.result
    assert result.status == "interrupted"
    assert not result.success
    assert len(history.epoch) == result.iterations >= 1
    assert result.loss == min(history.history["loss"]) < start
    assert model.evaluate(*data, verbose=0) == pytest.approx(
        result.loss, rel=TIGHT
    )


def test_an_interrupt_of_the_first_evaluation():
    loss = Scripted(KeyboardInterrupt())
    model = linear()
    model.compile(optimizer="l-bfgs-b", loss=loss, run_eagerly=True)

    class Arm(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            loss.calls_left = 0

    history = model.fit(*lindata(50, noise=0.3), callbacks=[Arm()], verbose=0)
    assert history.result.status == "interrupted"
    assert history.result.iterations == 0
    np.testing.assert_array_equal(model.get_weights()[0], np.ones((5, 1)))


def test_an_interrupt_in_a_callback_returns_the_history(float64):
    x, y = lindata(50, noise=0.3)
    model = linear()
    model.compile(optimizer="cg", loss="mse")
    ends = []
    history = model.fit(
        x,
        y,
        callbacks=[
            RaiseAt(2, KeyboardInterrupt()),
            keras.callbacks.LambdaCallback(on_train_end=ends.append),
        ],
        verbose=0,
    )
    assert history.epoch == [0, 1, 2]
    assert history.result.status == "interrupted"
    assert history.result.iterations == 3
    assert len(ends) == 1
    assert model.evaluate(x, y, verbose=0) == pytest.approx(
        history.history["loss"][-1], rel=TIGHT
    )
    # Later stages are not run.
    model.fit(
        x,
        y,
        method=["cg", "bfgs"],
        callbacks=[RaiseAt(0, KeyboardInterrupt())],
        verbose=0,
    )
    assert len(model.history.epoch) == 1


def test_an_error_in_a_callback_leaves_the_iterate(float64):
    x, y = lindata(50, noise=0.3)
    model = linear()
    model.compile(optimizer="bfgs", loss="mse")
    with pytest.raises(Reached):
        model.fit(x, y, callbacks=[RaiseAt(3, Reached())], verbose=0)
    error = model.evaluate(x, y, verbose=0)
    expected = linear()
    expected.compile(optimizer="bfgs", loss="mse")
    result = expected.fit(x, y, epochs=4, verbose=0).result
    assert error == pytest.approx(result.loss, rel=TIGHT)


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_fit_that_only_gets_worse_leaves_its_start(
    epochs, float64, unconverged
):
    """trust-constr moves away from the bounds before it starts."""
    x, y = lindata(200, noise=0.3)
    model = linear()
    # The optimum within the bounds.
    best = np.array([[0.1], [0], [0], [0], [0.1]])
    model.set_weights([best])
    model.compile(optimizer="trust-constr", loss="mse")
    history = kormos.fit(
        model, x, y, epochs=epochs, bounds={".*": (0, 0.1)}, verbose=0
    )
    assert history.history["loss"][-1] > history.result.initial_loss
    assert history.result.loss == history.result.initial_loss
    np.testing.assert_array_equal(model.get_weights()[0], best)


@pytest.mark.parametrize("method", METHODS)
def test_a_non_finite_start_changes_nothing(method):
    model = linear()
    model.compile(
        optimizer=method, loss=lambda y, p: ops.mean(ops.log(p - 1e3), axis=-1)
    )
    x, y = lindata(50, noise=0.3)
    with pytest.warns(kormos.ConvergenceWarning, match="NaN or infinite"):
        history = model.fit(x, y, verbose=0)
    assert history.epoch == [0]
    assert history.result.status == "non-finite"
    assert history.result.iterations == 0
    assert history.result.evaluations <= 2
    np.testing.assert_array_equal(model.get_weights()[0], np.ones((5, 1)))


def test_a_non_finite_gradient_at_the_start_is_said_so():
    model = linear()
    # The loss is zero, the slope of the root infinite.
    model.compile(
        optimizer="l-bfgs-b",
        loss=lambda y, p: ops.mean(ops.sqrt(ops.abs(p - y)), axis=-1),
    )
    x, _ = lindata(50, noise=0)
    y = model.predict(x, verbose=0)
    with pytest.warns(kormos.ConvergenceWarning):
        history = model.fit(x, y, verbose=0)
    assert history.result.status == "non-finite"
    np.testing.assert_array_equal(model.get_weights()[0], np.ones((5, 1)))


BARRIER = {
    "l-bfgs-b": {"gtol": 1e-9, "ftol": 0},
    "bfgs": {"gtol": 1e-9},
    "cg": {"gtol": 1e-9},
    "newton-cg": {"xtol": 1e-9},
    "slsqp": {"ftol": 1e-15},
    "tnc": {"gtol": 1e-9},
    "trust-ncg": {"gtol": 1e-7},
    "nelder-mead": {"xatol": 1e-8, "fatol": 1e-15},
    "powell": {"ftol": 1e-15},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(BARRIER))
@pytest.mark.parametrize("start", [0.01, 20.0])
def test_steps_out_of_the_domain_of_the_loss_are_shortened(
    method, start, float64
):
    """`w - 2 log(w)` is NaN below zero; its minimum at 2 is `2 - 2 log 2`."""
    model = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(
                1,
                use_bias=False,
                kernel_initializer=keras.initializers.Constant(start),
            ),
        ]
    )
    optimizer = ScipyBatchOptimizer(method=method, options=BARRIER[method])
    model.compile(
        optimizer=optimizer,
        loss=lambda y, p: ops.mean(p - y * ops.log(p), axis=-1),
    )
    history = model.fit(
        np.ones((4, 1)), np.full((4, 1), 2.0), epochs=200, verbose=0
    )
    assert history.result.status == "converged", history.result
    assert model.get_weights()[0][0, 0] == pytest.approx(2, abs=1e-6)
    assert history.result.loss == pytest.approx(2 - 2 * np.log(2), abs=1e-12)
    assert np.isfinite(history.history["loss"]).all()
