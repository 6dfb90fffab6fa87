"""Parameters that data do not determine, or that constraints hold."""

import keras
import numpy as np
import pytest
import scipy.optimize
import statsmodels.api as sm
from keras import layers
from keras import ops

import kormos

pytestmark = pytest.mark.usefixtures("float64")

RNG = np.random.default_rng(5)
X = RNG.normal(size=(60, 2))
Y = X @ [1.0, -2.0] + 0.5 + 0.3 * RNG.normal(size=60)
DESIGN = np.column_stack([X, np.ones(60)])


def least_squares(design, y, bounds=None, **settings):
    v = keras.Variable(np.zeros(design.shape[1]), dtype="float64", name="b")
    x, targets = map(ops.convert_to_tensor, (design, y))
    result = kormos.least_squares(
        lambda: ops.matmul(x, ops.convert_to_tensor(v)) - targets,
        [v],
        bounds=bounds,
    )
    return result.summary(**settings)


def test_a_repeated_column_leaves_the_others_their_errors():
    design = np.column_stack([X[:, 0], X[:, 1], 3 * X[:, 1], np.ones(60)])
    summary = least_squares(design, Y, names=["a", "b", "c", "d"])
    expected = sm.OLS(Y, DESIGN).fit()
    assert summary.is_identified.tolist() == [True, False, False, True]
    assert summary.standard_errors[[0, 3]] == pytest.approx(
        expected.bse[[0, 2]], rel=1e-9
    )
    assert np.isnan(summary.standard_errors[[1, 2]]).all()
    # c may fall by a third of what b rises by.
    assert summary.undetermined == ["b - 0.3333 c"]
    assert summary.degrees_of_freedom == 57
    assert summary.log_likelihood == pytest.approx(expected.llf)
    # The effect of both together is determined.
    both = np.array([0, 1.0, 3, 0])
    error = np.sqrt(both @ summary.covariance @ both)
    assert error == pytest.approx(expected.bse[1], rel=1e-9)
    assert "not determined" in str(summary)


def test_units_do_not_decide_what_is_determined():
    units = np.array([1e-12, 1e9, 1.0])
    summary = least_squares(DESIGN * units, Y)
    expected = sm.OLS(Y, DESIGN).fit().bse / units
    assert summary.is_identified.all()
    assert summary.standard_errors == pytest.approx(expected, rel=1e-8)


def test_a_parameter_without_effect_is_named():
    design = np.column_stack([X, np.zeros(60), np.ones(60)])
    summary = least_squares(design, Y)
    assert summary.is_identified.tolist() == [True, True, False, True]
    assert summary.undetermined == [summary.names[2]]


def test_more_parameters_than_rows_determine_few_combinations():
    summary = least_squares(DESIGN[:2], Y[:2])
    assert summary.parameters == 2
    assert summary.degrees_of_freedom == 0
    assert "Summary" in str(summary)


def test_a_parameter_at_a_bound_is_held():
    bounds = [(None, None), (-1.0, None), (None, None)]
    summary = least_squares(DESIGN, Y, bounds=bounds)
    rest = sm.OLS(Y + X[:, 1], DESIGN[:, [0, 2]]).fit()
    assert summary.is_held.tolist() == [False, True, False]
    assert np.isnan(summary.standard_errors[1])
    assert summary.standard_errors[[0, 2]] == pytest.approx(rest.bse, rel=1e-6)
    assert not summary.covariance[1].any()
    assert not summary.notes
    assert "held" in str(summary)


def test_parameters_held_equal_have_one_error():
    v = keras.Variable(np.zeros(3), dtype="float64")
    x, targets = map(ops.convert_to_tensor, (DESIGN, Y))

    def by_row():
        z = ops.matmul(x, ops.convert_to_tensor(v)) - targets
        return z**2 / 2 + 0.5 * np.log(2 * np.pi)

    tie = scipy.optimize.LinearConstraint([[1.0, -1, 0]], 0, 0)
    result = kormos.minimize(
        lambda: ops.mean(by_row()), [v], "slsqp", constraints=tie, tol=1e-14
    )
    summary = result.summary(losses=by_row)
    tied = sm.OLS(Y, np.column_stack([X.sum(axis=1), np.ones(60)])).fit()
    errors = (tied.bse / np.sqrt(tied.scale))[[0, 0, 1]]
    assert summary.standard_errors == pytest.approx(errors, rel=1e-5)
    assert summary.correlation[0, 1] == pytest.approx(1)
    assert summary.parameters == 2
    with pytest.raises(ValueError, match="not under constraints"):
        summary.intervals(method="profile")


def test_dead_units_of_a_network_are_named():
    model = keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(2, activation="relu", name="hidden"),
            layers.Dense(1, name="out"),
        ]
    )
    kernel = np.array([[1.0, 1], [1, 1]])
    start = [kernel, np.array([9.0, -9]), np.ones((2, 1)), np.zeros(1)]
    model.set_weights(start)
    model.compile(optimizer="lm", loss="mse")
    summary = kormos.summary(model, X, Y)
    # The second unit is never active.
    dead = [1, 3, 5, 7]
    assert not summary.is_identified[dead].any()
    assert "not at its optimum" in " ".join(summary.notes)
