"""`kormos.summary`: its arguments, its numbers and its display."""

import pickle

import keras
import numpy as np
import pytest
import scipy.stats
import statsmodels.api as sm
from keras import layers
from keras import ops

import kormos
from kormos import free_memory

pytestmark = pytest.mark.usefixtures("float64")

RNG = np.random.default_rng(11)
X = RNG.normal(size=(80, 2))
Y = X @ [1.0, -0.5] + 0.3 + 0.4 * RNG.normal(size=80)
DESIGN = np.column_stack([X, np.ones(80)])


def line(loss="mse", y=Y, activation=None, units=1, **options):
    """A layer at the optimum of a loss."""
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(units, activation, **options)]
    )
    model.compile(optimizer="lm", loss=loss)
    model.fit(X, y, epochs=100, verbose=0)
    return model


def test_the_table_says_what_statsmodels_readers_expect():
    text = str(kormos.summary(line(), X, Y))
    for part in (
        "likelihood: Gaussian",
        "Observations:",
        "Degrees of freedom:",
        "Residual std. error:",
        "R-squared:",
        "Adj. R-squared:",
        "Log-likelihood:",
        "AICc:",
        "BIC:",
        "Condition number:",
        "P>|t|",
        "low 95%",
        "kernel[0, 0]",
        "bias[0]",
    ):
        assert part in text
    assert max(map(len, text.split("\n"))) <= 100


def test_a_notebook_and_pandas_show_the_same_numbers():
    summary = kormos.summary(line(), X, Y, names=["a", "b", "<c>"])
    page = summary._repr_html_()
    assert "&lt;c&gt;" in page and "<c>" not in page
    frame = summary.to_frame()
    assert list(frame.index) == ["a", "b", "<c>"]
    assert frame["standard_error"].to_numpy() == pytest.approx(
        summary.standard_errors
    )
    assert frame[["low", "high"]].to_numpy() == pytest.approx(
        summary.intervals()
    )


def test_the_corrected_criterion_and_the_correlation_follow_their_formulas():
    summary = kormos.summary(line(), X, Y)
    expected = sm.OLS(Y, DESIGN).fit()
    assert summary.aicc == pytest.approx(expected.aic + 2 * 3 * 4 / (80 - 4))
    covariance = expected.cov_params()
    errors = np.sqrt(np.diag(covariance))
    assert summary.correlation == pytest.approx(
        covariance / np.outer(errors, errors), rel=1e-6, abs=1e-9
    )


@pytest.mark.parametrize("reduction", ["sum", "mean", None])
def test_the_reduction_changes_nothing(reduction):
    loss = keras.losses.MeanSquaredError(reduction=reduction)
    model, expected = line(loss), sm.OLS(Y, DESIGN).fit()
    summary = kormos.summary(model, X, Y)
    assert summary.standard_errors == pytest.approx(expected.bse, rel=1e-6)
    assert summary.log_likelihood == pytest.approx(expected.llf, rel=1e-9)


def test_a_model_without_a_loss_takes_one():
    model = line()
    other = keras.Sequential([keras.Input((2,)), *model.layers])
    summary = kormos.summary(other, X, Y, loss="mse")
    assert summary.standard_errors == pytest.approx(
        kormos.summary(model, X, Y).standard_errors
    )
    with pytest.raises(ValueError, match="no loss yet"):
        kormos.summary(other, X, Y)


def test_two_outputs_of_one_row_add_up_to_two_observations():
    y = np.column_stack([Y, 2 - Y**2])
    summary = kormos.summary(line(y=y, units=2), X, y)
    assert summary.observations == 160
    parts = [sm.OLS(column, DESIGN).fit() for column in y.T]
    variance = sum(part.ssr for part in parts) / (160 - 6)
    errors = [part.bse * np.sqrt(variance / part.scale) for part in parts]
    assert summary.standard_errors == pytest.approx(
        np.stack(errors, 1).reshape(-1), rel=1e-6
    )
    # By rows, each output has the sandwich of its own regression.
    sandwich = kormos.summary(line(y=y, units=2), X, y, covariance="HC0")
    robust = [sm.OLS(c, DESIGN).fit(cov_type="HC0").bse for c in y.T]
    assert sandwich.standard_errors == pytest.approx(
        np.stack(robust, 1).reshape(-1), rel=1e-6
    )


def test_rows_without_weight_are_no_observations():
    weights = np.ones(80)
    weights[:30] = 0
    model = line()
    model.fit(X, Y, sample_weight=weights, epochs=100, verbose=0)
    summary = kormos.summary(model, X, Y, weights)
    expected = sm.OLS(Y[30:], DESIGN[30:]).fit()
    assert summary.observations == 50
    assert summary.standard_errors == pytest.approx(expected.bse, rel=1e-6)
    assert summary.log_likelihood == pytest.approx(expected.llf, rel=1e-9)


def test_a_ridge_has_the_sandwich_and_effective_parameters():
    strength = 0.1
    model = line(
        kernel_regularizer=keras.regularizers.L2(strength), use_bias=False
    )
    summary = kormos.summary(model, X, Y)
    # The loss is |y - Xw|^2 / n + strength |w|^2.
    data, penalty = X.T @ X, strength * 80 * np.eye(2)
    inverse = np.linalg.inv(data + penalty)
    weights = inverse @ X.T @ Y
    effective = np.trace(inverse @ data)
    left = Y - X @ weights
    variance = left @ left / (80 - effective)
    covariance = variance * inverse @ data @ inverse
    assert summary.estimates == pytest.approx(weights, rel=1e-6)
    assert summary.parameters == pytest.approx(effective, rel=1e-6)
    assert summary.covariance == pytest.approx(covariance, rel=1e-6)
    likelihood = scipy.stats.norm(0, np.sqrt(left @ left / 80)).logpdf(left)
    assert summary.log_likelihood == pytest.approx(likelihood.sum(), rel=1e-6)
    assert "effective parameters" in " ".join(str(summary).split())


def test_weights_that_l1_holds_at_zero_are_at_the_optimum():
    regularizer = keras.regularizers.L1(0.5)
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(1, kernel_regularizer=regularizer)]
    )
    y = X[:, :1] + 1.0
    model.compile(optimizer="lbfgs", loss="mse")
    assert model.fit(X, y, epochs=200, verbose=0).result.success
    summary = kormos.summary(model, X, y)
    assert summary.estimates[1] == 0.0 != summary.estimates[0]
    assert "not at its optimum" not in " ".join(summary.notes)
    model.set_weights([w + 0.1 for w in model.get_weights()])
    notes = " ".join(kormos.summary(model, X, y).notes)
    assert "not at its optimum" in notes


def test_a_loss_that_is_no_likelihood_gets_a_sandwich():
    model = line("huber")
    summary = kormos.summary(model, X, Y)
    assert summary.kind == "HC0"
    assert np.isnan(summary.log_likelihood)
    assert "is not a likelihood" in str(summary)
    with pytest.raises(ValueError, match="needs a likelihood"):
        kormos.summary(model, X, Y, covariance="hessian")
    # The sandwich estimator of an M-estimate, from its formula.
    left = Y - DESIGN @ summary.estimates
    inside = (np.abs(left) <= 1).astype(float)
    bread = np.linalg.inv((DESIGN * inside[:, None]).T @ DESIGN)
    scores = DESIGN * np.clip(left, -1, 1)[:, None]
    covariance = bread @ scores.T @ scores @ bread
    assert summary.covariance == pytest.approx(covariance, rel=1e-6)


def exponential(y_true, y_pred):
    """The negative log-likelihood of exponential durations, from log means."""
    return ops.sum(y_pred + y_true * ops.exp(-y_pred), axis=-1)


def test_a_stated_likelihood_has_the_observed_information():
    y = RNG.exponential(np.exp(0.5 * X[:, 0]))
    model = line(exponential, y=y[:, None])
    summary = kormos.summary(model, X, y[:, None], loss="nll")
    mean = np.exp(DESIGN @ summary.estimates)
    hessian = (DESIGN * (y / mean)[:, None]).T @ DESIGN
    assert summary.covariance == pytest.approx(np.linalg.inv(hessian), rel=1e-6)
    likelihood = scipy.stats.expon(scale=mean).logpdf(y).sum()
    assert summary.log_likelihood == pytest.approx(likelihood, rel=1e-9)
    scores = DESIGN * (1 - y / mean)[:, None]
    inverse = np.linalg.inv(hessian)
    sandwich = inverse @ scores.T @ scores @ inverse
    robust = kormos.summary(model, X, y[:, None], loss="nll", covariance="HC0")
    assert robust.covariance == pytest.approx(sandwich, rel=1e-6)


def test_observed_information_of_a_curve_has_its_second_derivatives():
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(1, activation="tanh")]
    )
    model.compile(optimizer="lm", loss="mse")
    y = np.tanh(X @ [0.8, -0.5] + 0.2) + 0.3 * RNG.normal(size=80)
    model.fit(X, y, epochs=200, verbose=0)
    summary = kormos.summary(model, X, y, covariance="hessian")
    t = np.tanh(DESIGN @ summary.estimates)
    left, slope = t - y, 1 - t**2
    weights = slope**2 + left * -2 * t * slope
    hessian = (DESIGN * weights[:, None]).T @ DESIGN
    variance = left @ left / 77
    covariance = variance * np.linalg.inv(hessian)
    assert summary.covariance == pytest.approx(covariance, rel=1e-6)


def test_a_bound_of_a_model_holds_its_parameter():
    model = keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(1, kernel_constraint=keras.constraints.NonNeg()),
        ]
    )
    model.compile(optimizer="lm", loss="mse")
    model.fit(X, Y, epochs=100, verbose=0)
    summary = kormos.summary(model, X, Y)
    rest = sm.OLS(Y, DESIGN[:, [0, 2]]).fit()
    assert summary.is_held.tolist() == [False, True, False]
    assert summary.standard_errors[[0, 2]] == pytest.approx(rest.bse, rel=1e-6)


def test_a_float32_model_is_evaluated_in_float64():
    keras.config.set_floatx("float32")
    model = line()
    expected = sm.OLS(Y, DESIGN).fit()
    summary = kormos.summary(model, X, Y)
    # The weights are right to float32, and errors depend on them to second
    # order only.
    assert summary.standard_errors == pytest.approx(expected.bse, rel=1e-6)


def test_predictions_of_a_model_have_the_bands_of_a_regression():
    model = line()
    new = RNG.normal(size=(5, 2))
    found = kormos.summary(model, X, Y).predict(new, 0.9)
    design = np.column_stack([new, np.ones(5)])
    expected = sm.OLS(Y, DESIGN).fit().get_prediction(design)
    frame = expected.summary_frame(alpha=0.1)
    assert found.mean[:, 0] == pytest.approx(frame["mean"].to_numpy())
    for bands, columns in (
        (found.confidence, ["mean_ci_lower", "mean_ci_upper"]),
        (found.prediction, ["obs_ci_lower", "obs_ci_upper"]),
    ):
        assert bands[:, 0] == pytest.approx(frame[columns].to_numpy(), rel=1e-6)


def test_a_bootstrap_by_residuals_has_about_the_standard_errors():
    summary = kormos.summary(line(), X, Y)
    draws = summary.bootstrap(n=100, resample="residuals", seed=2)
    ratio = draws.std(axis=0) / summary.standard_errors
    assert np.all((0.8 < ratio) & (ratio < 1.2))
    ends = summary.intervals(0.9, "bootstrap", n=20, seed=2)
    assert np.all(ends[:, 0] < ends[:, 1])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"covariance": "HC9"}, "`covariance` must be one of"),
        ({"covariance": "cluster"}, "pass both or neither"),
        ({"groups": np.zeros(80)}, "pass both or neither"),
        ({"sample_weight": -np.ones(80)}, "a `sample_weight` of -1"),
        (
            {"covariance": "cluster", "groups": [None, "a"] * 40},
            "40 missing values, the first in row 0",
        ),
        (
            {"covariance": "cluster", "groups": np.full((80, 2), 1)},
            r"shape `\(rows,\)`",
        ),
        (
            {"covariance": "cluster", "groups": np.zeros(80)},
            "at least two groups",
        ),
        (
            {"covariance": "cluster", "groups": np.arange(7)},
            "an entry for each row",
        ),
        ({"level": 95}, "between 0 and 1"),
        ({"names": ["a"]}, "3 different names"),
    ],
)
def test_wrong_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        kormos.summary(line(), X, Y, **settings)


def test_a_summary_after_a_fit_asks_for_the_targets():
    with pytest.raises(ValueError, match="pass `y`"):
        kormos.summary(line(), X)


def test_what_cannot_be_drawn_again_is_refused():
    v = keras.Variable(np.zeros(3), dtype="float64")
    x, y = map(ops.convert_to_tensor, (DESIGN, Y))
    result = kormos.least_squares(lambda: ops.matmul(x, v) - y, [v])
    with pytest.raises(ValueError, match="draws rows of the data"):
        result.summary().bootstrap(n=2)
    with pytest.raises(ValueError, match="a value for each residual"):
        result.summary(targets=Y[1:])
    with pytest.raises(ValueError, match="pass `function`"):
        result.summary().predict(X)
    other = pickle.loads(pickle.dumps(result))
    assert other.loss == result.loss
    with pytest.raises(ValueError, match="has a summary"):
        other.summary()
    solved = kormos.solve(_Bowl(), np.zeros(2))
    with pytest.raises(ValueError, match="has a summary"):
        solved.summary()


class _Bowl:
    size = 2

    def value_and_grad(self, theta):
        return ((theta - 1) ** 2).sum(), 2 * (theta - 1)


def test_too_many_parameters_are_refused_with_the_memory_they_need(
    monkeypatch,
):
    monkeypatch.setattr(free_memory, "free_bytes", lambda: 1e9)
    model = keras.Sequential([keras.Input((90,)), layers.Dense(100)])
    model.compile(loss="mse")
    x, y = np.zeros((2, 90)), np.zeros((2, 100))
    with pytest.raises(ValueError, match=r"5\.3 GB .* 1\.0 GB are free"):
        kormos.summary(model, x, y)


def test_nested_models_are_compared_as_statsmodels_does():
    small = keras.Sequential([keras.Input((1,)), layers.Dense(1)])
    small.compile(optimizer="lm", loss="mse")
    small.fit(X[:, :1], Y, epochs=50, verbose=0)
    summaries = {
        "both": kormos.summary(line(), X, Y),
        "one": kormos.summary(small, X[:, :1], Y),
    }
    comparison = kormos.compare(summaries)
    full = sm.OLS(Y, DESIGN).fit()
    part = sm.OLS(Y, DESIGN[:, [0, 2]]).fit()
    first, second = comparison.models
    assert (first.name, second.name) == ("one", "both")
    ratio, p_value, _ = full.compare_lr_test(part)
    assert second.ratio == pytest.approx(ratio, rel=1e-6)
    assert second.ratio_p_value == pytest.approx(p_value, rel=1e-5)
    f, p_value, _ = full.compare_f_test(part)
    assert second.f == pytest.approx(f, rel=1e-6)
    assert second.f_p_value == pytest.approx(p_value, rel=1e-5)
    assert comparison.best == "both"
    assert "both" in str(comparison)
    assert comparison.to_frame().loc["one", "aic"] == pytest.approx(part.aic)
    with pytest.raises(ValueError, match="Only models of the same data"):
        kormos.compare([summaries["one"], kormos.summary(line(), X[1:], Y[1:])])


def test_a_fit_is_drawn(tmp_path):
    small = keras.Sequential([keras.Input((1,)), layers.Dense(1)])
    small.compile(optimizer="lm", loss="mse")
    small.fit(X[:, :1], Y, epochs=50, verbose=0)
    path = tmp_path / "fit.png"
    figure = kormos.plot_fit(kormos.summary(small, X[:, :1], Y), path=path)
    assert path.stat().st_size > 10_000
    labels = [axis.get_ylabel() for axis in figure.axes[:3]]
    assert labels == ["y", "residual", "residual"]
    several = kormos.plot_fit(kormos.summary(line(), X, Y))
    assert several.axes[0].get_ylabel() == "observed"
    two = np.column_stack([Y, Y**2])
    with pytest.raises(ValueError, match="single output"):
        kormos.plot_fit(kormos.summary(line(y=two, units=2), X, two))


@pytest.mark.parametrize("call", ["least_squares", "minimize"])
def test_a_function_that_has_changed_since_the_fit_is_refused(call):
    x = np.linspace(0.1, 1.0, 30)
    y = 1 + 2 * x + 0.1 * np.random.default_rng(0).normal(size=30)
    b = keras.Variable(np.zeros(2), dtype="float32")
    power = 1

    def errors(data):
        return b[0] + b[1] * data["x"] ** power - data["y"]

    data = {"x": x, "y": y}
    if call == "least_squares":
        result = kormos.least_squares(errors, [b], data=data)
    else:
        result = kormos.minimize(lambda d: errors(d) ** 2, [b], data=data)
    before = result.summary().estimates.copy()
    b.assign(np.zeros(2))  # The summary has the values of the fit's end.
    np.testing.assert_array_equal(result.summary().estimates, before)
    power = 2
    with pytest.raises(ValueError, match="has changed since the fit"):
        result.summary()


@pytest.mark.parametrize("kind", ["all the same", "of rows", "without data"])
def test_deviations_are_the_weights_of_statsmodels(kind):
    rng = np.random.default_rng(0)
    x = np.linspace(0.0, 1.0, 50)
    sigma = np.exp(rng.normal(size=50)) if kind != "all the same" else 0.1
    y = 1 + 2 * x + sigma * rng.normal(size=50)
    b = keras.Variable(np.zeros(2), dtype="float32")
    given = {"data": {"x": x, "y": y}}

    def residuals(data=given["data"]):
        x, y = (ops.convert_to_tensor(data[name]) for name in "xy")
        return b[0] + b[1] * ops.cast(x, b.dtype) - ops.cast(y, b.dtype)

    if kind == "without data":
        given = {}
    result = kormos.least_squares(
        residuals, [b], sigma=sigma, precision="float64", **given
    )
    peer = sm.WLS(y, sm.add_constant(x), np.broadcast_to(sigma**-2, 50)).fit()
    summary = result.summary(targets=y)
    for own, expected in (
        (summary.r_squared, peer.rsquared),
        (summary.adjusted_r_squared, peer.rsquared_adj),
        (summary.log_likelihood, peer.llf),
        (summary.bic - summary.aic, peer.bic - peer.aic),
    ):
        assert own == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(summary.standard_errors, peer.bse, rtol=1e-5)
    absolute = result.summary(absolute_sigma=True).log_likelihood
    density = scipy.stats.norm.logpdf(y, peer.fittedvalues, sigma)
    assert absolute == pytest.approx(density.sum(), rel=1e-6)


def test_means_of_blocks_count_as_relative_precisions():
    rng = np.random.default_rng(4)
    t = np.linspace(0.0, 1.0, 60)
    y = 1 + 2 * t + 0.1 * rng.normal(size=60)
    b = keras.Variable(np.zeros(2), dtype="float32")

    def residuals():
        left = b[0] + b[1] * ops.cast(t, b.dtype) - ops.cast(y, b.dtype)
        return {"few": left[:10] / 0.1, "many": left[10:] / 0.1}

    result = kormos.least_squares(residuals, [b], precision="float64")
    precisions = np.where(np.arange(60) < 10, 1 / 10, 1 / 50)
    peer = sm.WLS(y, sm.add_constant(t), precisions).fit()
    summary = result.summary()
    np.testing.assert_allclose(summary.standard_errors, peer.bse, rtol=1e-5)
    assert "relative precisions" in " ".join(summary.notes)
    # This is not the likelihood of residuals with a variance of one each.
    with pytest.raises(ValueError, match="reduction='sum'"):
        result.summary(absolute_sigma=True)
    result = kormos.least_squares(
        residuals, [b], precision="float64", reduction="sum"
    )
    summary = result.summary(absolute_sigma=True)
    assert not summary.notes
    design = sm.add_constant(t)
    errors = np.sqrt(np.diag(0.1**2 * np.linalg.inv(design.T @ design)))
    np.testing.assert_allclose(summary.standard_errors, errors, rtol=1e-5)


def test_rounding_of_other_directions_does_not_matter_to_predictions():
    """A softmax has free directions; a row of a dummy of zero is determined."""
    rng = np.random.default_rng(0)
    z = np.column_stack([rng.normal(size=40), np.arange(40) % 2])
    y = rng.integers(0, 3, 40)
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(3, activation="softmax")]
    )
    model.compile("lm", loss="sparse_categorical_crossentropy")
    kormos.fit(model, z, y, epochs=50, verbose=0)
    summary = kormos.summary(model, z, y)
    errors = summary.predict(z).standard_error
    assert np.isfinite(errors).all()
    partial = kormos.summary(model, z, y, parameters=[]).predict(z)
    np.testing.assert_allclose(errors, partial.standard_error, rtol=1e-4)


def test_fewer_rows_than_parameters_have_a_table():
    rng = np.random.default_rng(0)
    b = keras.Variable(np.zeros(6), dtype="float32")
    data = {"x": rng.normal(size=(4, 6)), "y": rng.normal(size=4)}
    result = kormos.least_squares(
        lambda d: ops.sum(d["x"] * b, axis=-1) - d["y"], [b], data=data
    )
    summary = result.summary(targets=data["y"])
    assert "not determine" in str(summary)


def test_targets_are_those_of_the_rows_that_were_fitted():
    rng = np.random.default_rng(0)
    x = rng.normal(size=30)
    y = 1 + 2 * x + rng.normal(size=30)
    holes = x.copy()
    holes[[0, 7, 20]] = np.nan
    b = keras.Variable(np.zeros(2), dtype="float32")
    result = kormos.least_squares(
        lambda d: b[0] + b[1] * d["x"] - d["y"],
        [b],
        data={"x": holes, "y": y},
        nan_policy="omit",
        precision="float64",
    )
    with pytest.raises(ValueError, match="30 targets for 27 rows"):
        result.summary(targets=y)
    kept = ~np.isnan(holes)
    peer = sm.OLS(y[kept], sm.add_constant(x[kept])).fit()
    found = result.summary(targets=y[kept]).r_squared
    assert found == pytest.approx(peer.rsquared, rel=1e-6)


def test_the_reduction_of_the_fit_is_that_of_its_summary():
    rng = np.random.default_rng(0)
    y = rng.poisson(3.0, size=40).astype("float32")
    b = keras.Variable(np.zeros(1), dtype="float32")
    errors = []
    for reduction in ("mean", "sum"):
        result = kormos.minimize(
            lambda rows: ops.exp(b[0]) - rows * b[0],
            [b],
            data=y,
            reduction=reduction,
        )
        errors.append(result.summary(observations=40).standard_errors)
    # The variance of the logarithm of the mean.
    np.testing.assert_allclose(errors, y.sum() ** -0.5, rtol=1e-3)


def test_bounds_of_a_fit_are_given_to_its_summary():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2))
    y = 2 * x[:, 0] - x[:, 1] + rng.normal(size=40)
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile("lm", loss="mse")
    bounds = [(model.layers[0].kernel, (0, None))]
    kormos.fit(model, x, y, epochs=50, bounds=bounds, verbose=0)
    summary = kormos.summary(model, x, y, bounds=bounds)
    peer = sm.OLS(y, sm.add_constant(x[:, :1])).fit()
    np.testing.assert_allclose(
        summary.standard_errors[[2, 0]], peer.bse, rtol=1e-4
    )
    assert summary.degrees_of_freedom == 38


def test_steps_of_a_sequence_share_a_mean():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3, 2))
    y = x @ [1.0, -1.0] + np.array([0.0, 5.0, -5.0]) + rng.normal(size=(40, 3))
    model = keras.Sequential([keras.Input((3, 2)), layers.Dense(1)])
    model.compile("lm", loss="mse")
    kormos.fit(model, x, y[..., None], epochs=50, verbose=0)
    summary = kormos.summary(model, x, y[..., None])
    flat = sm.OLS(y.reshape(-1), sm.add_constant(x.reshape(-1, 2))).fit()
    assert summary.r_squared == pytest.approx(flat.rsquared, rel=1e-5)
    assert summary.adjusted_r_squared == pytest.approx(
        flat.rsquared_adj, rel=1e-5
    )


def counts_and_classes():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2))
    counts = rng.poisson(np.exp(0.3 * x[:, 0] + 0.5)).astype("float32")
    is_high = (x[:, 1] + rng.logistic(size=40) > 0).astype("float32")
    return x, counts[:, None], is_high[:, None]


def model_of(outputs):
    x = keras.Input((2,))
    layer = {"poisson": "exponential", "binary_crossentropy": "sigmoid"}
    return keras.Model(
        x, [layers.Dense(1, activation=layer[loss])(x) for loss in outputs]
    )


def test_outputs_with_other_distributions_add_their_log_likelihoods():
    x, counts, is_high = counts_and_classes()
    rng = np.random.default_rng(1)
    weights = [rng.integers(1, 4, 40), rng.integers(1, 3, 40)]
    losses = ["poisson", "binary_crossentropy"]
    model = model_of(losses)
    model.compile("lm", loss=losses)
    targets = [counts, is_high]
    kormos.fit(model, x, targets, sample_weight=weights, epochs=50, verbose=0)
    summary = kormos.summary(model, x, targets, weights)
    design = sm.add_constant(x)
    peers = [
        sm.GLM(y[:, 0], design, family, freq_weights=w).fit()
        for y, w, family in zip(
            targets,
            weights,
            (sm.families.Poisson(), sm.families.Binomial()),
            strict=True,
        )
    ]
    expected = sum(peer.llf for peer in peers)
    assert summary.log_likelihood == pytest.approx(expected, rel=1e-5)
    assert summary.observations == sum(w.sum() for w in weights)


def test_weights_of_the_steps_of_counts():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4, 2))
    y = rng.poisson(np.exp(0.3 * x[..., :1])).astype("float32")
    weights = rng.integers(1, 4, (30, 4)).astype("float32")
    model = keras.Sequential(
        [keras.Input((4, 2)), layers.Dense(1, activation="exponential")]
    )
    model.compile("lm", loss="poisson")
    kormos.fit(model, x, y, sample_weight=weights, epochs=50, verbose=0)
    summary = kormos.summary(model, x, y, weights)
    peer = sm.GLM(
        y.reshape(-1),
        sm.add_constant(x.reshape(-1, 2)),
        sm.families.Poisson(),
        freq_weights=weights.reshape(-1),
    ).fit()
    assert summary.log_likelihood == pytest.approx(peer.llf, rel=1e-5)
    np.testing.assert_allclose(
        summary.standard_errors[[2, 0, 1]], peer.bse, rtol=1e-4
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"activity_regularizer": keras.regularizers.L2(0.1)},
        {"kernel_regularizer": keras.regularizers.OrthogonalRegularizer(0.1)},
    ],
)
def test_penalties_of_outputs_are_refused(settings):
    x = np.random.default_rng(0).normal(size=(20, 2))
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(2, **settings), layers.Dense(1)]
    )
    model.compile("lm", loss="mse")
    with pytest.raises(ValueError, match="penalties of single parameters"):
        kormos.summary(model, x, x[:, :1])
