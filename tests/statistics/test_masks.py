"""What masks, `ignore_class` and zero weights hide is no data of a summary."""

import keras
import numpy as np
import pytest
import statsmodels.api as sm
from keras import layers

import kormos

pytestmark = pytest.mark.usefixtures("float64")

RNG = np.random.default_rng(12)
ROWS, STEPS = 30, 4
LENGTHS = RNG.integers(1, STEPS + 1, ROWS)
IS_THERE = np.arange(STEPS) < LENGTHS[:, None]
X = RNG.normal(size=(ROWS, STEPS, 2)) * IS_THERE[:, :, None]
Y = X @ [1.0, -0.5] + 0.3 + 0.2 * RNG.normal(size=(ROWS, STEPS))
WORDS = RNG.integers(1, 4, (ROWS, STEPS)) * IS_THERE


def fitted(parts, x, y, weights=None):
    model = keras.Sequential(parts)
    model.compile(optimizer="lm", loss="mse")
    history = model.fit(x, y, sample_weight=weights, epochs=50, verbose=0)
    assert history.result.success
    return model


def assert_same(summary, expected, order):
    assert summary.observations == expected.nobs
    assert summary.estimates == pytest.approx(expected.params[order], rel=1e-8)
    assert summary.standard_errors == pytest.approx(
        expected.bse[order], rel=1e-8
    )
    assert summary.log_likelihood == pytest.approx(expected.llf, rel=1e-8)


def test_masked_steps_are_no_observations():
    x = np.where(IS_THERE[:, :, None], X, 0.0)
    parts = [keras.Input((STEPS, 2)), layers.Masking(), layers.Dense(1)]
    model = fitted(parts, x, Y[:, :, None])
    design = sm.add_constant(x[IS_THERE])
    expected = sm.OLS(Y[IS_THERE], design).fit()
    summary = kormos.summary(model, x, Y[:, :, None])
    assert_same(summary, expected, [1, 2, 0])


def test_padded_words_are_no_observations():
    parts = [
        keras.Input((STEPS,), dtype="int32"),
        layers.Embedding(4, 1, mask_zero=True),
    ]
    model = fitted(parts, WORDS, Y[:, :, None])
    summary = kormos.summary(model, WORDS, Y[:, :, None])
    words = WORDS[IS_THERE]
    expected = sm.OLS(Y[IS_THERE], np.eye(4)[words][:, 1:]).fit()
    # The data say nothing about the word zero.
    assert summary.is_identified.tolist() == [False, True, True, True]
    assert summary.observations == expected.nobs
    assert summary.estimates[1:] == pytest.approx(expected.params, rel=1e-8)
    assert summary.standard_errors[1:] == pytest.approx(expected.bse, rel=1e-8)


@pytest.mark.parametrize("kind", ["classical", "HC0", "HC3"])
def test_rows_of_weight_zero_are_left_out(kind):
    x, y = X[:, 0], Y[:, 0]
    weights = np.where(np.arange(ROWS) % 3 > 0, 1.5, 0.0)
    parts = [keras.Input((2,)), layers.Dense(1)]
    model = fitted(parts, x, y, weights)
    kept = weights > 0
    design = sm.add_constant(x[kept])
    cov_type = "nonrobust" if kind == "classical" else kind
    expected = sm.OLS(y[kept], design).fit(cov_type=cov_type)
    summary = kormos.summary(model, x, y, weights, covariance=kind)
    assert summary.observations == expected.nobs
    assert summary.standard_errors == pytest.approx(
        expected.bse[[1, 2, 0]], rel=1e-8
    )


CHANCES = 1 / (1 + np.exp(-X @ [1.0, -0.5]))
FAMILIES = {
    "poisson": (sm.families.Poisson(), "exponential", RNG.poisson(CHANCES)),
    "binary_crossentropy": (
        sm.families.Binomial(),
        "sigmoid",
        RNG.binomial(1, CHANCES),
    ),
}


@pytest.mark.parametrize("loss", FAMILIES)
def test_masked_steps_of_other_distributions(loss):
    family, activation, y = FAMILIES[loss]
    x = np.where(IS_THERE[:, :, None], X, 0.0)
    model = keras.Sequential(
        [
            keras.Input((STEPS, 2)),
            layers.Masking(),
            layers.Dense(1, activation=activation),
        ]
    )
    model.compile(optimizer="newton", loss=loss)
    data = x, y[:, :, None].astype("float64")
    # Several chunks of rows, the last of which is short.
    result = model.fit(*data, batch_size=7, epochs=50, verbose=0).result
    assert result.success
    design = sm.add_constant(x[IS_THERE])
    expected = sm.GLM(y[IS_THERE], design, family=family).fit()
    summary = kormos.summary(model, *data)
    assert summary.observations == expected.nobs
    # Keras adds 1e-7 to the logarithm's argument in Poisson's loss.
    assert summary.estimates == pytest.approx(
        expected.params[[1, 2, 0]], rel=1e-6
    )
    assert summary.standard_errors == pytest.approx(
        expected.bse[[1, 2, 0]], rel=1e-6
    )
    assert summary.log_likelihood == pytest.approx(expected.llf, rel=1e-6)
    assert summary.bic == pytest.approx(expected.bic_llf, rel=1e-6)


@pytest.mark.parametrize("has_weights", [False, True])
def test_ignored_classes_are_no_observations(has_weights):
    x = X.reshape(-1, 2)
    classes = RNG.integers(0, 3, len(x))
    counts = RNG.integers(1, 4, len(x)) if has_weights else np.ones(len(x), int)
    labels = np.where(np.arange(len(x)) % 4, classes, 3)
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=3
    )
    model.compile(optimizer="newton", loss=loss)
    data = {"x": x, "y": labels, "sample_weight": counts.astype("float64")}
    assert model.fit(**data, epochs=50, verbose=0).result.success
    rows = np.repeat(np.flatnonzero(labels < 3), counts[labels < 3])
    expected = sm.MNLogit(labels[rows], sm.add_constant(x[rows])).fit(disp=0)
    summary = kormos.summary(model, **data)
    assert summary.observations == len(rows)
    assert summary.log_likelihood == pytest.approx(expected.llf, rel=1e-8)
    assert summary.bic == pytest.approx(expected.bic, rel=1e-8)
