"""Missing data of residuals, and the errors that name them."""

import keras
import numpy as np
import pandas
import pytest
from keras import ops

import kormos

T = np.linspace(0, 1, 20)
Y = 2 * np.exp(-3 * T)
MISSING = np.where(np.isin(np.arange(20), [7, 12]), np.nan, Y)


def residuals(variable):
    def fn(data):
        t, y = (data["t"], data["y"]) if isinstance(data, dict) else data
        return variable[0] * ops.exp(-variable[1] * t) - y

    return fn


def fitted(data, **kwargs):
    b = keras.Variable([1.0, 1.0])
    result = kormos.least_squares(residuals(b), [b], data=data, **kwargs)
    return ops.convert_to_numpy(b), result


@pytest.mark.parametrize(
    "data, name",
    [
        ((T, MISSING), r"data\[1\]"),
        ({"t": T, "y": MISSING}, r"data\['y'\]"),
        ((np.where(T > 0.5, np.inf, T), Y), r"data\[0\]"),
        (pandas.DataFrame({"t": T, "y": MISSING}), r"data\['y'\]"),
    ],
)
def test_what_is_not_finite_is_named(data, name):
    with pytest.raises(ValueError, match=f"{name}. .*'omit'.* row (7|10) "):
        fitted(data)


def test_validation_data_are_named():
    with pytest.raises(ValueError, match=r"validation_data\[1\]. .* row 7 "):
        fitted((T, Y), validation_data=(T, MISSING))


@pytest.mark.parametrize("method", ["lm", "lbfgs"])
def test_rows_with_nan_are_omitted(method):
    data = {"t": T, "y": MISSING}
    b, result = fitted(
        data,
        method=method,
        nan_policy="omit",
        validation_data=data,
        max_iterations=100,
    )
    np.testing.assert_allclose(b, [2, 3], rtol=1e-4)
    # The result is that of the 18 rows alone.
    rows = np.isfinite(MISSING)
    start = np.mean(np.square(np.exp(-T[rows]) - Y[rows]))
    assert result.initial_loss == pytest.approx(start, rel=1e-5)
    assert result.history["val_loss"][-1] == pytest.approx(result.loss)


def test_groups_of_which_as_many_rows_are_left():
    # 20 rows without two, and 18 others.
    b = keras.Variable([1.0, 1.0])
    other = np.linspace(1, 2, 18)

    def both(data):
        return {
            "fit": b[0] * ops.exp(-b[1] * data["t"]) - data["y"],
            "far": b[0] * ops.exp(-b[1] * data["far"][:, 0])
            - data["far"][:, 1],
        }

    far = np.stack([other, 2 * np.exp(-3 * other)], axis=1)
    data = {"t": T, "y": MISSING, "far": far}
    kormos.least_squares(both, [b], data=data, nan_policy="omit")
    np.testing.assert_allclose(ops.convert_to_numpy(b), [2, 3], rtol=1e-4)


def test_a_function_may_mask_what_is_missing():
    b = keras.Variable([1.0, 1.0])

    def masked(data):
        t, y = data
        fit = b[0] * ops.exp(-b[1] * t) - y
        return ops.where(ops.isnan(y), ops.zeros_like(fit), fit)

    result = kormos.least_squares(masked, [b], data=(T, MISSING))
    assert result.success
    np.testing.assert_allclose(ops.convert_to_numpy(b), [2, 3], rtol=1e-4)


@pytest.mark.parametrize("precision", ["auto", "float64"])
def test_what_is_finite_in_float64_alone(precision):
    b = keras.Variable([1.0])
    kormos.least_squares(
        lambda data: b[0] * data[0] - data[1] / 1e300,
        [b],
        data=(T + 1, (T + 1) * 3e300),
        precision=precision,
    )
    np.testing.assert_allclose(ops.convert_to_numpy(b), [3], rtol=1e-5)


def test_nothing_is_left():
    with pytest.raises(ValueError, match="NaN in each of 20 rows"):
        fitted((T, np.full(20, np.nan)), nan_policy="omit")


def test_policies():
    with pytest.raises(ValueError, match="`nan_policy` must be .*'drop'"):
        fitted((T, Y), nan_policy="drop")


# Frames


def test_a_frame_is_its_columns():
    b, _ = fitted(pandas.DataFrame({"y": Y, "t": T}))
    np.testing.assert_allclose(b, [2, 3], rtol=1e-4)
    b, _ = fitted((pandas.Series(T), pandas.Series(Y)))
    np.testing.assert_allclose(b, [2, 3], rtol=1e-4)


@pytest.mark.parametrize(
    "use",
    [lambda d: d[:, 0], lambda d: d.t, lambda d: d["other"]],
    ids=["matrix", "attribute", "other"],
)
def test_other_uses_of_a_frame_are_refused(use):
    b = keras.Variable([1.0])
    frame = pandas.DataFrame({"t": T, "y": Y})
    with pytest.raises(ValueError, match="dict of its columns.*Received: "):
        kormos.least_squares(lambda d: b * use(d), [b], data=frame)


@pytest.mark.parametrize(
    "values", [np.array(["a"] * 20), Y + 1j, Y.astype(object), list(Y), 3.0]
)
def test_what_are_no_real_numbers_is_named(values):
    with pytest.raises(ValueError, match=r"`data\[1\].* real numbers"):
        fitted((T, values))
