"""A fitted curve, against `scipy.optimize.curve_fit` and lmfit."""

import keras
import lmfit
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from keras import ops

import kormos

pytestmark = pytest.mark.usefixtures("float64")

RNG = np.random.default_rng(3)
X = np.linspace(0, 4, 40)
SIGMA = 0.05 + 0.1 * RNG.uniform(size=40)
Y = 2 * np.exp(-1.3 * X) + 0.5 + SIGMA * RNG.normal(size=40)
NEW = np.linspace(-0.5, 5, 11)


def curve(x, a, b, c):
    return a * np.exp(-b * x) + c


class Decay:
    """A fit of the decay, with points as data or inside of the residuals."""

    def __init__(self, sigma=None, holds_data=False):
        self.b = keras.Variable([1.0, 1.0, 0.0], dtype="float64", name="b")
        own = {"x": X, "y": Y}
        tensors = {k: ops.convert_to_tensor(a) for k, a in own.items()}
        self.result = kormos.least_squares(
            lambda d=tensors: self.predict(d) - d["y"],
            [self.b],
            data=None if holds_data else own,
            sigma=sigma,
        )

    def predict(self, data):
        b = ops.convert_to_tensor(self.b)
        return b[0] * ops.exp(-b[1] * data["x"]) + b[2]


@pytest.mark.parametrize("absolute_sigma", [False, True])
@pytest.mark.parametrize("holds_data", [False, True])
def test_known_and_relative_sigma_agree_with_curve_fit(
    absolute_sigma, holds_data
):
    decay = Decay(SIGMA, holds_data)
    summary = decay.result.summary(absolute_sigma=absolute_sigma)
    best, covariance = scipy.optimize.curve_fit(
        curve,
        X,
        Y,
        sigma=SIGMA,
        absolute_sigma=absolute_sigma,
        ftol=1e-14,
        xtol=1e-14,
        gtol=1e-14,
    )
    assert summary.estimates == pytest.approx(best, rel=1e-6)
    assert summary.covariance == pytest.approx(covariance, rel=1e-5)


@pytest.fixture(scope="module")
def peer():
    """The same fit by lmfit: the model's result.

    Its covariance uses differences and is right to 2e-5. It is replaced by one
    from derivatives.
    """
    model = lmfit.Model(curve)
    tight = {"ftol": 1e-14, "xtol": 1e-14, "gtol": 1e-14}
    found = model.fit(Y, x=X, a=1, b=1, c=0, fit_kws=tight)
    exact = lmfit.minimize(
        lambda p: curve(X, *p.valuesdict().values()) - Y,
        model.make_params(a=1, b=1, c=0),
        Dfun=lambda p: derivatives(X, p["a"].value, p["b"].value),
        col_deriv=False,
        **tight,
    )
    found.covar = exact.covar
    return found


def test_profile_intervals_agree_with_lmfit(peer):
    summary = Decay().result.summary()
    level = 0.95
    expected = peer.conf_interval(sigmas=[level], maxiter=500, prob_func=None)
    ends = [
        [expected[name][0][1], expected[name][2][1]] for name in ("a", "b", "c")
    ]
    found = summary.intervals(level, method="profile")
    assert found == pytest.approx(np.array(ends), rel=1e-6)
    # They are asymmetric, unlike those from standard errors.
    below, above = (np.abs(found - summary.estimates[:, None])).T
    assert np.all(np.abs(above / below - 1) > 1e-3)


def test_bands_agree_with_lmfit(peer):
    decay = Decay()
    prediction = decay.result.summary().predict(
        {"x": NEW}, 0.9, function=decay.predict
    )
    # Differences at a thousandth of an error.
    width = peer.eval_uncertainty(x=NEW, sigma=0.9, dscale=1e-3)
    mean = peer.eval(x=NEW)
    assert prediction.mean[:, 0] == pytest.approx(mean, rel=1e-6)
    low, high = prediction.confidence[:, 0].T
    assert high - mean == pytest.approx(width, rel=2e-6)
    assert mean - low == pytest.approx(width, rel=2e-6)
    low, high = prediction.prediction[:, 0].T
    assert (high - low) / 2 == pytest.approx(peer.dely_predicted, rel=1e-6)


def derivatives(x, a, b):
    return np.stack([np.exp(-b * x), -a * x * np.exp(-b * x), 0 * x + 1], 1)


def test_errors_of_predictions_are_those_of_the_formula():
    decay = Decay()
    summary = decay.result.summary()
    found = summary.predict({"x": NEW}, function=decay.predict)
    a, b, c = summary.estimates
    left = curve(X, a, b, c) - Y
    jacobian, new = derivatives(X, a, b), derivatives(NEW, a, b)
    variance = left @ left / (X.size - 3)
    covariance = variance * np.linalg.inv(jacobian.T @ jacobian)
    errors = np.sqrt(np.einsum("np,pq,nq->n", new, covariance, new))
    assert found.standard_error[:, 0] == pytest.approx(errors, rel=1e-9)
    reach = scipy.stats.t(X.size - 3).ppf(0.975) * np.sqrt(errors**2 + variance)
    assert found.prediction[:, 0, 1] == pytest.approx(
        curve(NEW, a, b, c) + reach, rel=1e-9
    )


def test_a_bootstrap_has_about_the_standard_errors():
    decay = Decay()
    summary = decay.result.summary()
    draws = summary.bootstrap(n=100, seed=1)
    again = summary.bootstrap(n=3, seed=1)
    assert np.array_equal(draws[:3], again)
    ratio = draws.std(axis=0) / summary.standard_errors
    assert np.all((0.6 < ratio) & (ratio < 1.6))
    # The variables keep the estimate.
    assert np.array_equal(ops.convert_to_numpy(decay.b), summary.estimates)


def test_one_number_for_sigma_is_that_of_all_residuals():
    summary = Decay(0.1).result.summary(absolute_sigma=True)
    plain = Decay().result.summary()
    scale = 0.1 / plain.residual_standard_error
    assert summary.standard_errors == pytest.approx(
        scale * plain.standard_errors, rel=1e-6
    )


def test_what_sigma_cannot_divide_is_refused():
    with pytest.raises(ValueError, match="positive, finite numbers"):
        Decay(0.0)
    v = keras.Variable([1.0], dtype="float64")
    with pytest.raises(ValueError, match="returns one tensor"):
        kormos.least_squares(lambda: {"a": v, "b": v - 1}, [v], sigma=2.0)
    with pytest.raises(ValueError, match="are not known"):
        kormos.least_squares(
            lambda d: v - d, [v], data=X, sigma=2.0, validation_data=X
        )
