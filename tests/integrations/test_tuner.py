"""KerasTuner searches over the options of kormos' optimizers."""

import keras
import keras_tuner
import numpy as np
import pytest
from keras import layers

import kormos
from conftest import lindata
from kormos.optimizers import ScipyBatchOptimizer

X, Y = (data[:60] for data in lindata(120, noise=0.3))
VALIDATION = tuple(data[60:] for data in lindata(120, noise=0.3))

pytestmark = pytest.mark.usefixtures("unconverged")


def build(hp):
    """A small net; the solver's memory is a hyperparameter."""
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(hp.Int("units", 2, 6), "tanh"),
            layers.Dense(1),
        ]
    )
    options = {"maxcor": hp.Choice("maxcor", [3, 10, 50])}
    optimizer = ScipyBatchOptimizer("l-bfgs-b", options=options)
    model.compile(optimizer=optimizer, loss="mse", metrics=["mae"])
    return model


def search(kind, path, build=build, **kwargs):
    tuner = kind(
        build,
        objective="val_loss",
        seed=0,
        directory=path,
        project_name="search",
        **kwargs,
    )
    tuner.search(X, Y, validation_data=VALIDATION, verbose=0)
    return tuner


def iterations(model):
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


def best_is_reproduced(tuner):
    best = tuner.oracle.get_best_trials()[0]
    model = tuner.get_best_models()[0]
    scores = model.evaluate(*VALIDATION, verbose=0, return_dict=True)
    assert scores["loss"] == pytest.approx(best.score, rel=1e-5)
    options = model.optimizer.options
    assert options == {"maxcor": best.hyperparameters.get("maxcor")}
    # It can be trained on.
    start = iterations(model)
    result = model.fit(X, Y, epochs=2, verbose=0).result
    assert result.loss < result.initial_loss
    assert iterations(model) == start + 2


def test_random_search(tmp_path):
    tuner = search(keras_tuner.RandomSearch, tmp_path, max_trials=3)
    trials = tuner.oracle.trials.values()
    assert [trial.status for trial in trials] == ["COMPLETED"] * 3
    # A trial runs for the twenty epochs that are kormos' default.
    assert max(trial.best_step for trial in trials) > 10
    assert all(np.isfinite(trial.score) for trial in trials)
    best_is_reproduced(tuner)


def test_hyperband_goes_on_with_the_trials_that_it_promotes(tmp_path):
    rounds = []

    class Noting(keras_tuner.HyperModel):
        def build(self, hp):
            return build(hp)

        def fit(self, hp, model, *args, **kwargs):
            rounds.append(
                {
                    "first": kwargs["initial_epoch"],
                    "iterations": iterations(model),
                    "loss": model.evaluate(X, Y, verbose=0)[0],
                    "history": model.fit(*args, **kwargs),
                    "end": iterations(model),
                }
            )
            return model.history

    tuner = search(
        keras_tuner.Hyperband, tmp_path, Noting(), max_epochs=3, factor=3
    )
    promoted = [r for r in rounds if r["first"]]
    assert promoted
    for r in rounds:
        assert r["history"].epoch[0] == r["first"]
        assert r["end"] == r["iterations"] + len(r["history"].epoch)
        # The fit starts at the weights that were loaded.
        start = r["history"].result.initial_loss
        assert start == pytest.approx(r["loss"], rel=1e-5)
    for r in promoted:
        # The tuner saves the best epoch of the earlier round.
        assert 0 < r["iterations"] <= r["first"]
    losses = [r["loss"] for r in rounds if not r["first"]]
    assert max(r["loss"] for r in promoted) < min(losses)
    best_is_reproduced(tuner)


def test_a_trial_of_nan_fails_and_the_search_goes_on(tmp_path):
    calls = []

    def build_sometimes_nan(hp):
        model = build(hp)
        calls.append(model)
        if len(calls) == 2:
            model.set_weights([np.full_like(w, np.nan) for w in model.weights])
        return model

    tuner = search(
        keras_tuner.RandomSearch, tmp_path, build_sometimes_nan, max_trials=3
    )
    states = [trial.status for trial in tuner.oracle.trials.values()]
    assert sorted(states) == ["COMPLETED", "COMPLETED", "FAILED"]
    best_is_reproduced(tuner)


def test_methods_are_hyperparameters(tmp_path):
    def build_by_name(hp):
        model = build(hp)
        method = hp.Choice("method", ["bfgs", "newton-cg"])
        model.compile(optimizer=method, loss="mse")
        return model

    tuner = search(
        keras_tuner.GridSearch, tmp_path, build_by_name, max_trials=2
    )
    trials = tuner.oracle.trials.values()
    assert [trial.status for trial in trials] == ["COMPLETED"] * 2
    best = tuner.get_best_models()[0].optimizer
    assert best.method in ("bfgs", "newton-cg")
    assert isinstance(best, kormos.optimizers.BatchOptimizer)
