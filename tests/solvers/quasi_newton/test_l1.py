"""L1 regularizers, without their kinks."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from lasso import lasso
from lasso import loss_at

METHODS = ["lbfgs", "dense-bfgs", "ssbroyden"]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 30))
    slope = np.r_[1.0, -2.0, 1.5, 0.7, -0.5, np.zeros(25)]
    return x, (x @ slope + rng.logistic(size=300) > 0).astype("float64")


def logit(factor, **settings):
    model = keras.Sequential(
        [
            keras.Input((30,)),
            layers.Dense(
                1,
                use_bias=False,
                kernel_initializer=settings.pop("initializer", "zeros"),
                kernel_regularizer=keras.regularizers.L1(factor),
                **settings,
            ),
        ]
    )
    model.compile(loss=keras.losses.BinaryCrossentropy(from_logits=True))
    return model


# A power of two, which float32 does not round.
FACTOR = 2.0**-5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("initializer", ["zeros", "ones"])
def test_the_optimum_of_a_lasso(method, initializer, data, float64):
    x, y = data
    model = logit(FACTOR, initializer=initializer)
    history = kormos.fit(
        model, x, y[:, None], optimizer=method, epochs=300, verbose=0
    )
    expected = lasso(FACTOR, x, y)
    least = loss_at(expected, FACTOR, x, y)
    assert history.result.success, history.result
    assert history.result.loss == pytest.approx(least, rel=1e-9)
    found = model.get_weights()[0][:, 0]
    np.testing.assert_array_equal(found == 0, abs(expected) < 1e-9)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(least, rel=1e-7)
    zeros = history.history["active"][-1]
    assert zeros == np.sum(found == 0)


def test_an_optimum_in_few_evaluations(data, float64):
    x, y = data
    history = kormos.fit(
        logit(FACTOR), x, y[:, None], optimizer="lbfgs", epochs=300, verbose=0
    )
    least = loss_at(lasso(FACTOR, x, y), FACTOR, x, y)
    near = np.array(history.history["loss"]) <= least + 1e-9
    assert np.array(history.history["fg_evals"])[near][0] <= 30


def test_both_penalties_and_a_constraint_on_the_sign(data, float64):
    # At zero, the slope that counts is that of positive weights.
    x, y = data
    model = logit(FACTOR, kernel_constraint="non_neg")
    result = kormos.fit(
        model, x, y[:, None], optimizer="lbfgs", epochs=300, verbose=0
    ).result
    weights = model.get_weights()[0][:, 0]
    chance = 1 / (1 + np.exp(-x @ weights))
    grad = x.T @ (chance - y) / len(x) + FACTOR
    assert result.success, result
    assert (weights >= 0).all() and (weights == 0).any()
    np.testing.assert_allclose(grad[weights > 0], 0, atol=1e-8)
    assert (grad[weights == 0] >= 0).all()


def test_bounds_on_both_sides_of_zero(data, float64):
    x, y = data
    model = logit(FACTOR)
    result = kormos.fit(
        model,
        x,
        y[:, None],
        optimizer="lbfgs",
        bounds={".*": (-0.25, 0.5)},
        epochs=300,
        verbose=0,
    ).result
    weights = model.get_weights()[0][:, 0]
    chance = 1 / (1 + np.exp(-x @ weights))
    grad = x.T @ (chance - y) / len(x)
    inside = (weights > -0.25) & (weights < 0.5) & (weights != 0)
    slopes = grad[inside] + FACTOR * np.sign(weights[inside])
    assert result.success, result
    assert weights.min() == -0.25 and weights.max() == 0.5
    np.testing.assert_allclose(slopes, 0, atol=1e-8)
    assert (abs(grad[weights == 0]) <= FACTOR).all()


def test_an_equality_beside_the_penalty(data, float64):
    x, y = data
    model = logit(FACTOR)
    kernel = model.weights[0]
    result = kormos.fit(
        model,
        x,
        y[:, None],
        optimizer="lbfgs",
        constraints={"type": "eq", "fun": lambda: ops.sum(kernel) - 1},
        epochs=300,
        verbose=0,
    ).result
    weights = model.get_weights()[0][:, 0]
    chance = 1 / (1 + np.exp(-x @ weights))
    grad = x.T @ (chance - y) / len(x)
    (multiplier,) = result.multipliers[0]
    slopes = grad - multiplier
    assert result.success, result
    assert weights.sum() == pytest.approx(1, abs=1e-8)
    chosen = weights != 0
    np.testing.assert_allclose(
        slopes[chosen], -FACTOR * np.sign(weights[chosen]), atol=1e-6
    )
    assert (abs(slopes[~chosen]) <= FACTOR + 1e-9).all()


def test_float32(data):
    x, y = data
    model = logit(FACTOR)
    result = kormos.fit(
        model, x, y[:, None], optimizer="lbfgs", epochs=300, verbose=0
    ).result
    expected = lasso(FACTOR, x, y)
    least = loss_at(expected, FACTOR, x, y)
    assert result.success, result
    assert result.loss == pytest.approx(least, rel=1e-5)
    found = model.get_weights()[0][:, 0]
    np.testing.assert_array_equal(found == 0, abs(expected) < 1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_of_each_epoch_is_that_of_evaluate(method, data, float64):
    x, y = data[0], data[1][:, None]
    model, found = logit(FACTOR, initializer="ones"), []
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: found.append(model.evaluate(x, y, verbose=0))
    )
    history = kormos.fit(
        model,
        x,
        y,
        optimizer=method,
        epochs=6,
        callbacks=[look],
        verbose=0,
    )
    np.testing.assert_allclose(history.history["loss"], found, rtol=1e-7)
    assert history.result.loss == pytest.approx(found[-1], rel=1e-7)


def test_a_target_is_reached_where_evaluate_says_so(data, float64):
    x, y = data[0], data[1][:, None]
    model = logit(FACTOR, initializer="ones")
    history = kormos.fit(
        model, x, y, optimizer="lbfgs", epochs=50, target_loss=0.6, verbose=0
    )
    *before, last = history.history["loss"]
    assert history.result.status == "target reached"
    assert last <= 0.6 < min(before)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(last, rel=1e-7)
