"""Parameters that a fit leaves as they are."""

import keras
import numpy as np
import pytest
import statsmodels.api as sm
from keras import layers
from keras import ops

import kormos

pytestmark = pytest.mark.usefixtures("float64")

RNG = np.random.default_rng(5)
X = RNG.normal(size=(60, 2))
Y = X @ [1.0, -2.0] + 0.5 + 0.3 * RNG.normal(size=60)
REST = sm.OLS(Y + X[:, 1], sm.add_constant(X[:, 0])).fit()


def variables():
    b = keras.Variable([0.0, -1.0], dtype="float64", name="b")
    return b, keras.Variable(0.0, dtype="float64", name="offset")


def residuals(b, offset):
    x, y = map(ops.convert_to_tensor, (X, Y))
    return ops.matmul(x, ops.convert_to_tensor(b)) + offset - y


@pytest.mark.parametrize("by_path", [True, False])
@pytest.mark.parametrize("bounds", [None, {"b": (-5, 5)}, [(-5, 5)] * 3])
def test_a_fixed_entry_stays_and_the_summary_marks_it(by_path, bounds):
    b, offset = variables()
    fixed = {"b": [1]} if by_path else [(b, [1])]
    result = kormos.least_squares(
        lambda: residuals(b, offset), [b, offset], fixed=fixed, bounds=bounds
    )
    values = [*ops.convert_to_numpy(b), float(ops.convert_to_numpy(offset))]
    assert values[1] == -1.0
    assert [values[2], values[0]] == pytest.approx(REST.params, rel=1e-9)
    summary = result.summary()
    assert summary.is_held.tolist() == [False, True, False]
    assert summary.standard_errors[[2, 0]] == pytest.approx(REST.bse, rel=1e-9)
    assert summary.parameters == 2
    ends = summary.intervals(method="profile")
    assert ends[[2, 0]] == pytest.approx(REST.conf_int(), rel=1e-5)


@pytest.mark.parametrize("method", ["l-bfgs-b", "lbfgs"])
def test_minimize_holds_them_too(method):
    b, offset = variables()
    kormos.minimize(
        lambda: ops.mean(residuals(b, offset) ** 2),
        [b, offset],
        method,
        fixed={"b": [1]},
    )
    assert ops.convert_to_numpy(b)[1] == -1.0
    assert float(ops.convert_to_numpy(offset)) == pytest.approx(
        REST.params[0], rel=1e-4
    )


def test_fit_and_summary_hold_an_entry_of_a_layer():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, name="out")])
    model.set_weights([np.array([[0.0], [-1.0]]), np.zeros(1)])
    model.compile(optimizer="lm", loss="mse")
    fixed = {".*kernel": [1]}
    model.fit(X, Y, epochs=20, verbose=0, fixed=fixed)
    assert model.get_weights()[0][1] == -1.0
    summary = kormos.summary(model, X, Y, fixed=fixed)
    assert summary.is_held.tolist() == [False, True, False]
    assert summary.standard_errors[[2, 0]] == pytest.approx(REST.bse, rel=1e-9)


@pytest.mark.parametrize(
    "fixed, message",
    [
        ({"c": [0]}, "matches no variable"),
        ({"b": [2]}, "from 0 to 1"),
        ({"b": 0.5}, "flat indices"),
        ({"b": True, "offset": True}, "nothing to optimize"),
        (7, "`fixed` must be a dict"),
    ],
)
def test_what_fixes_nothing_or_everything_is_refused(fixed, message):
    b, offset = variables()
    with pytest.raises(ValueError, match=message):
        kormos.least_squares(
            lambda: residuals(b, offset), [b, offset], fixed=fixed
        )


def test_a_fixed_value_outside_its_bounds_is_refused():
    b, offset = variables()
    with pytest.raises(ValueError, match="within its bounds"):
        kormos.least_squares(
            lambda: residuals(b, offset),
            [b, offset],
            fixed={"b": [1]},
            bounds={"b": (0, None)},
        )
