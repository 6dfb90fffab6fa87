"""Epochs, stages, History and the result of a fit."""

import functools
import warnings

import keras
import numpy as np
import pytest

import kormos
from conftest import TIGHT
from conftest import lindata
from conftest import linear
from conftest import readme50
from kormos.optimizers import ScipyBatchOptimizer

METHODS = sorted(kormos.optimizers.METHODS)
DERIVATIVE_FREE = ("nelder-mead", "powell", "cobyla", "cobyqa")
# These methods must not end by their own tests.
ENDLESS = {
    "l-bfgs-b": {"ftol": 0, "gtol": 0},
    "powell": {"ftol": 0, "xtol": 1e-6},
    "dogleg": {"initial_trust_radius": 0.01, "max_trust_radius": 0.02},
}


def net(width):
    layers = [keras.layers.Dense(width, "tanh"), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((2,)), *layers])


def saddle(points=5):
    grid = np.linspace(-1, 1, points)
    x = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    return x, np.tanh(2 * x[:, :1]) + x[:, :1] * x[:, 1:]


def compiled(optimizer, model=None, **kwargs):
    model = model or linear(l2=1e-3)
    model.compile(optimizer=optimizer, loss="mse", **kwargs)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_epochs_are_iterations_of_every_method(method, float64, unconverged):
    model, data = net(6), saddle()
    if method in DERIVATIVE_FREE:
        model = net(2)
    if method == "dogleg":
        # This method needs a positive definite Hessian.
        model, data = linear(2), saddle()
    optimizer = ScipyBatchOptimizer(method=method, options=ENDLESS.get(method))
    compiled(optimizer, model)
    start = model.evaluate(*data, verbose=0)
    history = model.fit(*data, epochs=7, verbose=0)
    result = history.result
    assert history.epoch == list(range(7))
    assert {len(column) for column in history.history.values()} == {7}
    assert result.status == "iteration limit"
    assert result.iterations == 7
    assert result.evaluations == history.history["fg_evals"][-1]
    assert result.hessian_products == history.history["hessp_evals"][-1]
    assert result.initial_loss == pytest.approx(start, rel=TIGHT)
    # An accepted iterate is no worse.
    assert np.all(np.diff([start, *history.history["loss"]]) <= TIGHT)
    assert result.loss == history.history["loss"][-1] < start
    assert model.evaluate(*data, verbose=0) == pytest.approx(
        result.loss, rel=TIGHT
    )


def test_epochs_of_several_iterations(float64, unconverged):
    data = saddle()
    fits = []
    for steps, epochs in ((None, 15), (5, 3)):
        keras.utils.set_random_seed(1)
        model = compiled("bfgs", net(6))
        fits.append(
            model.fit(*data, epochs=epochs, steps_per_epoch=steps, verbose=0)
        )
    single, fives = fits
    assert fives.epoch == [0, 1, 2]
    assert fives.iteration == [5, 10, 15]
    for name, column in fives.history.items():
        assert column == single.history[name][4::5]


def test_the_optimizer_counts_iterations_over_all_fits(unconverged):
    model = compiled("bfgs", net(6))
    for callbacks in (None, [keras.callbacks.Callback()]):
        model.fit(
            *saddle(),
            epochs=2,
            steps_per_epoch=3,
            callbacks=callbacks,
            verbose=0,
        )
    assert int(model.optimizer.iterations.value) == 12


def test_a_fit_that_converges_within_an_epoch_has_a_row_for_the_rest(float64):
    train, _ = readme50()
    model = compiled("l-bfgs-b", linear(50, l2=1e-3))
    history = model.fit(*train, epochs=20, steps_per_epoch=6, verbose=0)
    count = history.result.iterations
    assert 6 < count < 12
    assert history.iteration == [6, count]
    assert history.history["fg_evals"][0] == 7
    assert history.history["loss"][-1] == history.result.loss


def test_the_epochs_of_fit_precede_those_of_the_optimizer(unconverged):
    def rows(own, **kwargs):
        keras.utils.set_random_seed(0)
        model = compiled(ScipyBatchOptimizer(epochs=own), net(6))
        return len(model.fit(*saddle(), verbose=0, **kwargs).epoch)

    assert rows(None) == 20
    assert rows(4) == 4
    assert rows(4, epochs=6) == 6
    assert rows(4, options={"maxiter": 3}) == 3
    assert rows(None, epochs=2, options={"maxiter": 3}) == 2


def test_no_epochs_change_nothing():
    model = compiled("l-bfgs-b")
    history = model.fit(*lindata(50, noise=0.3), epochs=0, verbose=0)
    assert history.epoch == []
    assert history.result.iterations == 0
    np.testing.assert_array_equal(model.get_weights()[0], np.ones((5, 1)))


def test_a_start_at_the_optimum_is_one_row(float64):
    x, _ = lindata(50, noise=0)
    model = compiled("l-bfgs-b", linear())
    history = model.fit(x, x.sum(axis=1, keepdims=True), verbose=0)
    assert history.epoch == [0]
    assert history.iteration == [0]
    assert history.result.success
    assert history.result.iterations == 0
    assert history.result.loss == pytest.approx(0, abs=1e-30)


def test_settings_of_one_fit(float64):
    data = lindata(50, noise=0.3)
    model = compiled("l-bfgs-b")
    history = model.fit(*data, method="Newton-CG", tol=1e-9, verbose=0)
    assert history.result.hessian_products > 0
    assert history.result.threshold == 1e-9
    assert model.optimizer.method == "l-bfgs-b"
    own = compiled(ScipyBatchOptimizer(tol=1e-7)).fit(*data, verbose=0)
    assert own.result.threshold == 1e-7
    with pytest.raises(ValueError, match=r"Received: \['methods'\]"):
        model.fit(*data, methods="bfgs")


def test_stages_start_where_the_last_ended(float64, unconverged):
    data = saddle()

    def fit_stages(**settings):
        keras.utils.set_random_seed(0)
        model = compiled(ScipyBatchOptimizer(**settings), net(6))
        return model, model.fit(*data, verbose=1)

    model, history = fit_stages(
        method=["cg", "trust-ncg"],
        epochs=[4, 3],
        options=[None, {"max_trust_radius": 10.0}],
    )
    assert history.epoch == list(range(7))
    assert history.history["hessp_evals"][3] == 0
    assert history.history["hessp_evals"][4] > 0
    assert np.all(np.diff(history.history["fg_evals"]) > 0)
    assert len(model.optimizer.results) == 2
    other, _ = fit_stages(method="cg", epochs=4)
    other.fit(
        *data,
        epochs=3,
        method="trust-ncg",
        options={"max_trust_radius": 10.0},
        verbose=0,
    )
    for ours, theirs in zip(
        model.get_weights(), other.get_weights(), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_a_stage_is_no_longer_for_an_earlier_one_that_converged(
    float64, unconverged
):
    x, y = lindata(50, noise=0.3)
    model = compiled(
        ScipyBatchOptimizer(
            method=["l-bfgs-b", "nelder-mead"],
            epochs=[50, 3],
            pretrain_fn=[None, lambda m: m.set_weights([np.ones((5, 1))])],
        )
    )
    history = model.fit(x, y, verbose=0)
    first, second = model.optimizer.results
    assert first.success and first.nit < 50
    assert history.epoch == list(range(first.nit + 3))
    assert history.result.iterations == first.nit + 3


def test_mismatched_stages_raise():
    settings = {"method": ["cg", "bfgs"], "epochs": [1, 2, 3]}
    with pytest.raises(ValueError, match="'method': 2, 'epochs': 3"):
        ScipyBatchOptimizer(**settings)
    model = compiled("l-bfgs-b")
    with pytest.raises(ValueError, match="same length"):
        model.fit(*lindata(50, noise=0.3), **settings)


def test_result_says_why_the_fit_ended(float64):
    model = compiled("l-bfgs-b")
    result = model.fit(*lindata(200, noise=0.3), verbose=0).result
    assert result.status == "converged"
    assert result.success is True
    assert result.test == "gtol"
    assert 0 <= result.value <= result.threshold == 1e-6
    assert result.time > 0
    assert result.message.startswith(
        f"converged after {result.iterations} iterations and "
        f"{result.evaluations} evaluations at loss 0.0895759: gtol, "
    )
    assert str(result) == result.message


def test_a_fit_that_ends_at_a_default_limit_warns_once():
    model = compiled("l-bfgs-b", net(6))
    for fit in (model.fit, functools.partial(kormos.fit, model)):
        with pytest.warns(kormos.ConvergenceWarning) as record:
            history = fit(*saddle(), verbose=0)
        (warning,) = (
            w for w in record if w.category is kormos.ConvergenceWarning
        )
        assert warning.filename == __file__
        assert str(warning.message) == f"{model.name}: {history.result}"
    assert "after 20 iterations" in history.result.message
    assert "`epochs`" in history.result.message


def test_metrics_are_those_of_evaluate(float64, unconverged):
    x, y = saddle()
    weight = np.linspace(0.5, 2, len(x))
    model = compiled(
        "l-bfgs-b", net(3), metrics=["mae"], weighted_metrics=["mse"]
    )
    history = model.fit(
        x,
        y,
        sample_weight=weight,
        epochs=3,
        validation_data=(x[::2], y[::2], weight[::2]),
        verbose=0,
    )
    reports = {
        "": model.evaluate(
            x, y, sample_weight=weight, return_dict=True, verbose=0
        ),
        "val_": model.evaluate(
            x[::2],
            y[::2],
            sample_weight=weight[::2],
            return_dict=True,
            verbose=0,
        ),
    }
    assert set(history.history) == {
        "grad",
        "fg_evals",
        "hessp_evals",
        *(f"{p}{k}" for p, report in reports.items() for k in report),
    }
    for prefix, report in reports.items():
        for name, value in report.items():
            column = history.history[prefix + name]
            assert column[-1] == pytest.approx(value, rel=TIGHT), name


def test_columns_of_several_outputs_are_those_of_evaluate(float64, unconverged):
    x, y = saddle()
    inputs = keras.Input((2,))
    hidden = keras.layers.Dense(3, "tanh")(inputs)
    outputs = {
        name: keras.layers.Dense(1, name=name)(hidden)
        for name in ("plus", "minus")
    }
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer="l-bfgs-b",
        loss={"plus": "mse", "minus": "mae"},
        loss_weights={"plus": 1.0, "minus": 0.5},
        metrics={"minus": ["mse"]},
    )
    targets = {"plus": y, "minus": -y}
    history = model.fit(x, targets, epochs=3, verbose=0)
    # One batch: Keras averages what it reports of an output over batches.
    report = model.evaluate(
        x, targets, batch_size=len(x), return_dict=True, verbose=0
    )
    assert {"plus_loss", "minus_loss", "minus_mse"} < set(report)
    for name, value in report.items():
        column = history.history[name]
        assert column[-1] == pytest.approx(value, rel=TIGHT), name


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_net_of_4417_parameters_in_700_evaluations(dtype, unconverged):
    with kormos.precision(dtype):
        grid = np.linspace(-1, 1, 11)
        x = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
        y = np.sum(x**2, axis=1, keepdims=True)
        widths = [(64, "tanh"), (64, "tanh"), (1, None)]
        layers = [
            keras.layers.Dense(
                *width,
                kernel_initializer=keras.initializers.GlorotUniform(seed=seed),
            )
            for seed, width in enumerate(widths)
        ]
        model = keras.Sequential([keras.Input((2,)), *layers])
        options = {"ftol": 0, "gtol": 0}
        compiled(ScipyBatchOptimizer(options=options), model)
        history = model.fit(x, y, epochs=500, verbose=0)
        assert len(history.history["loss"]) == 500
        assert history.result.evaluations <= 700
        assert history.result.loss <= 1e-5
        assert model.evaluate(x, y, verbose=0) <= 1e-5


@pytest.mark.parametrize("method", ["lbfgs", "ssbroyden", "lm"])
def test_the_iterates_are_the_same_whether_somebody_looks_or_not(
    method, float64
):
    # Without callbacks, a compiled call makes many iterations.
    x, y = lindata(100, noise=0.3)
    histories, weights = [], []
    for callbacks in ([], [keras.callbacks.Callback()]):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((5,)),
                keras.layers.Dense(4, "tanh"),
                keras.layers.Dense(1),
            ]
        )
        model.compile(optimizer=method, loss="mse")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", kormos.ConvergenceWarning)
            history = model.fit(x, y, epochs=70, callbacks=callbacks, verbose=0)
        histories.append(history)
        weights.append(model.get_weights())
    quiet, watched = histories
    assert quiet.epoch == watched.epoch
    for name in ("loss", "grad", "step", "fg_evals"):
        assert quiet.history[name] == watched.history[name]
    assert list(quiet.history) == list(watched.history)
    for name, column in watched.history.items():
        np.testing.assert_array_equal(quiet.history[name], column, name)
        assert {*map(type, quiet.history[name] + column)} == {float}
    for a, b in zip(*weights, strict=True):
        np.testing.assert_array_equal(a, b)
