"""Summaries of Keras models, against those of statsmodels."""

import keras
import numpy as np
import pytest
import statsmodels.api as sm
from keras import layers

import kormos
from conftest import BACKEND

ROWS = 120
# The features and the constant.
SIZE = 4
# The sandwich estimators of a linear model, all of which statsmodels has.
SANDWICHES = ["HC0", "HC1", "HC2", "HC3"]

pytestmark = pytest.mark.usefixtures("float64")


class Case:
    """Random data of a regression, three features and a constant."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.x = self.rng.normal(size=(ROWS, SIZE - 1))
        self.design = sm.add_constant(self.x)
        self.groups = self.rng.integers(0, 15, ROWS)
        self.slope = self.design @ self.rng.normal(size=SIZE) / 2

    def continuous(self):
        spread = 0.3 + self.rng.uniform(size=ROWS)
        return self.slope + spread * self.rng.normal(size=ROWS)

    def binary(self):
        return self.rng.binomial(1, 1 / (1 + np.exp(-self.slope)))

    def counts(self):
        return self.rng.poisson(np.exp(0.5 + self.slope / 2))

    def classes(self):
        scores = np.stack([0 * self.slope, self.slope, -self.slope], 1)
        chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        return np.array([self.rng.choice(3, p=p) for p in chances])


# JAX and TensorFlow take seconds to compile each.
SEEDS = [1, 2, 3] if BACKEND == "torch" else [1]


@pytest.fixture(params=SEEDS)
def case(request):
    return Case(request.param)


def fitted(case, y, loss, activation=None, weights=None, **options):
    """A layer with a bias, at the optimum of its loss."""
    model = keras.Sequential(
        [
            keras.Input((SIZE - 1,)),
            layers.Dense(1, activation=activation, kernel_initializer="zeros"),
        ]
    )
    optimizer = kormos.optimizers.LevenbergMarquardt()
    model.compile(optimizer=optimizer, loss=loss)
    history = model.fit(
        case.x, y, sample_weight=weights, epochs=100, verbose=0, **options
    )
    assert history.result.success
    return model


def in_order(values):
    """Moves the constant, first in statsmodels, to the end, as in a layer."""
    return np.roll(np.asarray(values), -1)


def assert_same(summary, expected, covariance=None):
    """Asserts that a summary has all numbers of a table of statsmodels."""
    close = {"rel": 1e-6, "abs": 1e-9}
    assert summary.estimates == pytest.approx(
        in_order(expected.params), **close
    )
    errors = np.sqrt(np.diag(expected.cov_params()))
    assert summary.standard_errors == pytest.approx(in_order(errors), **close)
    assert summary.log_likelihood == pytest.approx(expected.llf, **close)
    assert summary.aic == pytest.approx(expected.aic, **close)
    assert summary.bic == pytest.approx(expected.bic, **close)
    assert summary.statistics == pytest.approx(
        in_order(expected.tvalues), **close
    )
    assert summary.p_values == pytest.approx(
        in_order(expected.pvalues), rel=1e-4, abs=1e-9
    )
    intervals = np.roll(np.asarray(expected.conf_int()), -1, axis=0)
    assert summary.intervals() == pytest.approx(intervals, **close)


def assert_linear(summary, expected):
    assert_same(summary, expected)
    assert summary.r_squared == pytest.approx(expected.rsquared, rel=1e-9)
    assert summary.adjusted_r_squared == pytest.approx(
        expected.rsquared_adj, rel=1e-9
    )
    deviation = np.sqrt(expected.scale)
    assert summary.residual_standard_error == pytest.approx(deviation, rel=1e-9)


def test_least_squares_agree(case):
    y = case.continuous()
    model = fitted(case, y, "mse")
    expected = sm.OLS(y, case.design).fit()
    summary = kormos.summary(model, case.x, y)
    assert_linear(summary, expected)
    assert summary.condition_number == pytest.approx(
        expected.condition_number, rel=1e-6
    )
    for kind in SANDWICHES:
        summary = kormos.summary(model, case.x, y, covariance=kind)
        assert_same(summary, sm.OLS(y, case.design).fit(cov_type=kind))
    summary = kormos.summary(
        model, case.x, y, covariance="cluster", groups=case.groups[:, None]
    )
    by_group = sm.OLS(y, case.design).fit(
        cov_type="cluster", cov_kwds={"groups": case.groups}
    )
    assert_same(summary, by_group)


def test_weighted_least_squares_agree(case):
    y, weights = case.continuous(), case.rng.uniform(0.2, 3, ROWS)
    model = fitted(case, y, "mse", weights=weights)
    summary = kormos.summary(model, case.x, y, weights)
    expected = sm.WLS(y, case.design, weights=weights)
    assert_linear(summary, expected.fit())
    for kind in SANDWICHES:
        summary = kormos.summary(model, case.x, y, weights, covariance=kind)
        assert_same(summary, expected.fit(cov_type=kind))


def test_a_line_through_the_origin_has_the_r_squared_of_statsmodels():
    case = Case(1)
    y = case.continuous() + 3
    model = keras.Sequential(
        [keras.Input((SIZE - 1,)), layers.Dense(1, use_bias=False)]
    )
    model.compile(optimizer="lm", loss="mse")
    model.fit(case.x, y, epochs=50, verbose=0)
    summary = kormos.summary(model, case.x, y)
    expected = sm.OLS(y, case.x).fit()
    assert summary.r_squared == pytest.approx(expected.rsquared, rel=1e-9)
    adjusted = expected.rsquared_adj
    assert summary.adjusted_r_squared == pytest.approx(adjusted, rel=1e-9)


@pytest.mark.parametrize("from_logits", [True, False])
def test_a_logit_agrees(case, from_logits):
    y = case.binary()
    loss = keras.losses.BinaryCrossentropy(from_logits=from_logits)
    model = fitted(case, y, loss, None if from_logits else "sigmoid")
    logit = sm.Logit(y, case.design)
    expected = logit.fit(disp=0, tol=1e-12)
    assert_same(kormos.summary(model, case.x, y), expected)
    observed = kormos.summary(model, case.x, y, covariance="hessian")
    assert_same(observed, expected)
    summary = kormos.summary(model, case.x, y, covariance="HC0")
    assert_same(summary, logit.fit(disp=0, tol=1e-12, cov_type="HC0"))
    summary = kormos.summary(
        model, case.x, y, covariance="cluster", groups=case.groups
    )
    by_group = logit.fit(
        disp=0,
        tol=1e-12,
        cov_type="cluster",
        cov_kwds={"groups": case.groups},
    )
    assert_same(summary, by_group)


def test_a_poisson_regression_agrees(case):
    y = case.counts()
    model = fitted(case, y, "poisson", "exponential")
    poisson = sm.Poisson(y, case.design)
    expected = poisson.fit(disp=0, tol=1e-12)
    summary = kormos.summary(model, case.x, y)
    assert_same(summary, expected)
    summary = kormos.summary(model, case.x, y, covariance="HC0")
    assert_same(summary, poisson.fit(disp=0, tol=1e-12, cov_type="HC0"))


def test_weights_of_a_likelihood_count_rows():
    case = Case(1)
    y, counts = case.binary(), case.rng.integers(1, 5, ROWS)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model = fitted(case, y, loss, weights=counts.astype("float64"))
    summary = kormos.summary(model, case.x, y, counts.astype("float64"))
    repeated = np.repeat(np.arange(ROWS), counts)
    expected = sm.Logit(y[repeated], case.design[repeated])
    assert_same(summary, expected.fit(disp=0, tol=1e-12))


def multinomial(case, outputs, from_logits):
    """A multinomial logit whose first class is the reference, or has its own.

    Args:
        case: the data.
        outputs: 2 for logits of the other classes, 3 for all.
        from_logits: whether the loss applies the softmax.
    """
    inputs = keras.Input((SIZE - 1,))
    scores = layers.Dense(outputs, kernel_initializer="zeros")(inputs)
    if outputs == 2:
        scores = keras.ops.pad(scores, [[0, 0], [1, 0]])
    if not from_logits:
        scores = layers.Activation("softmax")(scores)
    model = keras.Model(inputs, scores)
    y = case.classes()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)
    model.compile(optimizer="lm", loss=loss)
    history = model.fit(case.x, y, epochs=100, verbose=0)
    assert history.result.success
    expected = sm.MNLogit(y, case.design).fit(disp=0, tol=1e-12, maxiter=99)
    return model, y, expected


def of_layer(values):
    """A matrix by constant and features, in the order of a layer's values."""
    return np.roll(np.asarray(values), -1, axis=0).reshape(-1)


def test_a_multinomial_logit_agrees(case):
    model, y, expected = multinomial(case, 2, True)
    summary = kormos.summary(model, case.x, y)
    assert summary.estimates == pytest.approx(
        of_layer(expected.params), rel=1e-6, abs=1e-9
    )
    assert summary.standard_errors == pytest.approx(
        of_layer(expected.bse), rel=1e-6
    )
    assert summary.log_likelihood == pytest.approx(expected.llf, rel=1e-9)
    assert summary.aic == pytest.approx(expected.aic, rel=1e-9)
    assert summary.bic == pytest.approx(expected.bic, rel=1e-9)


def multinomial_errors(case, y, params, kind):
    """Standard errors of a sandwich, in NumPy, in a layer's order.

    A row has a leverage matrix. With the covariance S of the row's classes and
    F its root without the first class, it is F'A^-1 F.
    """
    scores = np.column_stack([np.zeros(ROWS), case.design @ params])
    chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    rows = np.einsum("np,kj->npkj", case.design, np.eye(3)[1:])
    rows = rows.transpose(0, 2, 1, 3).reshape(ROWS, -1, 3)
    spread = np.einsum("nk,kj->nkj", chances, np.eye(3))
    spread -= chances[:, :, None] * chances[:, None]
    inverse = np.linalg.inv(
        np.einsum("npi,nij,nqj->pq", rows, spread, rows, optimize=True)
    )
    left = np.eye(3)[y] - chances
    power = {"HC2": -0.5, "HC3": -1.0}.get(kind, 0.0)
    own = []
    for i in range(ROWS):
        values, vectors = np.linalg.eigh(spread[i])
        root = vectors[:, 1:] * np.sqrt(values[1:])
        turned = rows[i] @ root
        lever, basis = np.linalg.eigh(np.eye(2) - turned.T @ inverse @ turned)
        error = vectors[:, 1:].T @ left[i] / np.sqrt(values[1:])
        own.append(turned @ basis @ (lever**power * (basis.T @ error)))
    own = np.array(own)
    count = params.size
    factor = ROWS / (ROWS - count) if kind == "HC1" else 1.0
    if kind == "cluster":
        own = np.array(
            [own[case.groups == g].sum(axis=0) for g in set(case.groups)]
        )
        factor = len(own) / (len(own) - 1) * (ROWS - 1) / (ROWS - count)
    errors = np.sqrt(factor * np.diag(inverse @ own.T @ own @ inverse))
    return of_layer(errors.reshape(2, SIZE).T)


@pytest.mark.parametrize("kind", [*SANDWICHES, "cluster"])
def test_a_multinomial_logit_has_the_sandwiches_of_numpy(kind):
    case = Case(3)
    model, y, expected = multinomial(case, 2, True)
    groups = {"groups": case.groups} if kind == "cluster" else {}
    summary = kormos.summary(model, case.x, y, covariance=kind, **groups)
    params = np.roll(summary.estimates.reshape(SIZE, 2), 1, axis=0)
    errors = multinomial_errors(case, y, params, kind)
    assert summary.standard_errors == pytest.approx(errors, rel=1e-8)
    assert params == pytest.approx(np.asarray(expected.params), rel=1e-6)


def test_a_softmax_of_all_classes_determines_differences_of_them():
    # Adding the same number to the scores of all classes changes nothing.
    case = Case(2)
    model, y, expected = multinomial(case, 3, False)
    summary = kormos.summary(model, case.x, y)
    assert not summary.is_identified.any()
    assert np.isnan(summary.standard_errors).all()
    assert len(summary.undetermined) == SIZE
    names = summary.names[:3]
    assert summary.undetermined[0] == " + ".join(names)
    # The difference of each class from the first.
    contrast = np.kron(np.eye(SIZE), [[-1.0, 1, 0], [-1, 0, 1]])
    covariance = contrast @ summary.covariance @ contrast.T
    errors = np.sqrt(np.diag(covariance))
    assert errors == pytest.approx(of_layer(expected.bse), rel=1e-5)
    assert summary.parameters == 2 * SIZE
    assert summary.bic == pytest.approx(expected.bic, rel=1e-6)
