"""scikit-learn's tools with Keras' wrappers around models of kormos."""

import pickle

import keras
import numpy as np
import pytest
from keras import layers
from keras.wrappers import SKLearnClassifier
from keras.wrappers import SKLearnRegressor
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from kormos.optimizers import ScipyBatchOptimizer

pytestmark = pytest.mark.usefixtures("unconverged")

RANDOM = np.random.RandomState(0)
# Columns of very different sizes, which the scaler is there for.
X = RANDOM.normal(size=(90, 3)) * [1, 100, 0.01] + [0, 500, 0]
SCALED = (X - X.mean(axis=0)) / X.std(axis=0)
Y = np.tanh(SCALED[:, 0]) + 0.5 * SCALED[:, 1] - SCALED[:, 2]


def regressor(X, y, maxcor=10, optimizer=None, units=4):
    hidden = [layers.Dense(units, "tanh")] if units else []
    model = keras.Sequential(
        [keras.Input((X.shape[1],)), *hidden, layers.Dense(1)]
    )
    options = {"maxcor": maxcor}
    optimizer = optimizer or ScipyBatchOptimizer(options=options)
    model.compile(optimizer=optimizer, loss="mse")
    return model


def classifier(X, y):
    model = keras.Sequential(
        [
            keras.Input((X.shape[1],)),
            layers.Dense(y.shape[1], "softmax", kernel_regularizer="l2"),
        ]
    )
    model.compile(optimizer="l-bfgs-b", loss="categorical_crossentropy")
    return model


def wrapped(how, **kwargs):
    """A regressor from a function, or from a compiled model."""
    model = regressor if how == "callable" else regressor(X, Y)
    return SKLearnRegressor(model, **kwargs)


@pytest.mark.parametrize("how", ["callable", "instance"])
def test_pipeline_with_the_default_epochs(how):
    pipeline = make_pipeline(StandardScaler(), wrapped(how))
    pipeline.fit(X, Y)
    fitted = pipeline[-1]
    assert len(fitted.history_.history["loss"]) == 20
    assert isinstance(fitted.model_.optimizer, ScipyBatchOptimizer)
    assert fitted.model_ is not fitted.model
    assert pipeline.score(X, Y) > 0.95


@pytest.mark.parametrize("how", ["callable", "instance"])
def test_cross_validation(how):
    pipeline = make_pipeline(StandardScaler(), wrapped(how))
    scores = cross_val_score(pipeline, X, Y, cv=3)
    assert scores.shape == (3,)
    # `clone` drops `fit_kwargs`: the default of epochs must do.
    assert scores.min() > 0.9


def test_grid_search_over_the_options_of_the_solver():
    pipeline = make_pipeline(StandardScaler(), wrapped("callable"))
    search = GridSearchCV(
        pipeline,
        {
            "sklearnregressor__model_kwargs": [
                {"maxcor": 3},
                {"maxcor": 20},
                {"optimizer": "bfgs"},
            ],
            "sklearnregressor__fit_kwargs": [{"epochs": 1}, {"epochs": 15}],
        },
        cv=2,
        n_jobs=1,
        error_score="raise",
    )
    search.fit(X, Y)
    kwargs = search.cv_results_["param_sklearnregressor__fit_kwargs"]
    scores = search.cv_results_["mean_test_score"]
    epochs = np.array([k["epochs"] for k in kwargs])
    assert scores[epochs == 15].min() > scores[epochs == 1].max()
    assert search.best_params_["sklearnregressor__fit_kwargs"]["epochs"] == 15
    best = search.best_estimator_[-1]
    chosen = search.best_params_["sklearnregressor__model_kwargs"]
    solver = best.model_.optimizer
    used = {**(solver.options or {}), "optimizer": solver.method}
    assert chosen.items() <= used.items()
    assert len(best.history_.history["loss"]) == 15


def test_epochs_for_a_whole_search():
    search = GridSearchCV(
        SKLearnRegressor(regressor), {"model_kwargs": [{"maxcor": 5}]}, cv=2
    )
    search.fit(SCALED, Y, epochs=3)
    assert len(search.best_estimator_.history_.history["loss"]) == 3


@pytest.mark.parametrize("how", ["callable", "instance"])
def test_pickled_pipeline(how):
    pipeline = make_pipeline(StandardScaler(), wrapped(how)).fit(X, Y)
    twin = pickle.loads(pickle.dumps(pipeline))
    np.testing.assert_allclose(twin.predict(X), pipeline.predict(X), rtol=1e-5)
    optimizer = twin[-1].model_.optimizer
    assert type(optimizer) is ScipyBatchOptimizer
    assert optimizer.options == {"maxcor": 10}
    assert clone(twin).fit(X, Y).score(X, Y) > 0.95


def test_sample_weights_are_those_of_scikit_learn(float64):
    weights = np.random.RandomState(1).uniform(0, 3, size=len(X))
    estimator = SKLearnRegressor(
        regressor,
        model_kwargs={
            "units": 0,
            "optimizer": ScipyBatchOptimizer(options={"gtol": 1e-9, "ftol": 0}),
        },
    )
    estimator.fit(SCALED, Y, sample_weight=weights, epochs=100)
    expected = LinearRegression().fit(SCALED, Y, sample_weight=weights)
    kernel, bias = estimator.model_.get_weights()
    np.testing.assert_allclose(kernel[:, 0], expected.coef_, atol=1e-7)
    np.testing.assert_allclose(bias[0], expected.intercept_, atol=1e-7)


@pytest.mark.parametrize("how", ["callable", "instance"])
def test_classifier(how):
    x, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    model = classifier if how == "callable" else classifier(x, np.eye(3)[y])
    pipeline = make_pipeline(StandardScaler(), SKLearnClassifier(model))
    pipeline.fit(x, names)
    assert pipeline.score(x, names) > 0.8
    assert set(pipeline.predict(x)) == set(names)
    assert cross_val_score(pipeline, x, names, cv=2).min() > 0.7
    twin = pickle.loads(pickle.dumps(pipeline))
    assert (twin.predict(x) == pipeline.predict(x)).all()


@pytest.mark.skipif(
    not hasattr(SKLearnClassifier, "decision_function"),
    reason="from Keras 3.15 on",
)
def test_a_decision_function():
    x, y = load_iris(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), SKLearnClassifier(classifier))
    assert pipeline.fit(x, y).decision_function(x).shape == (150, 3)
