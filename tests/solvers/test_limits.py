"""`max_evals` is not exceeded, not even to verify an end."""

import keras
import numpy as np
import pytest
from keras import ops

import kormos
from native import eager_only

pytestmark = [eager_only, pytest.mark.usefixtures("unconverged")]

X = np.linspace(0, 1, 20, dtype="float32")
DATA = {"x": X, "y": (2 * np.exp(-3 * X)).astype("float32")}


def fitted(method, most, **settings):
    b = keras.Variable([1.0, 1.0])
    return kormos.least_squares(
        lambda d: b[0] * ops.exp(-b[1] * d["x"]) - d["y"],
        [b],
        method,
        data=DATA,
        max_evals=most,
        **settings,
    )


@pytest.mark.parametrize("method", ["lm", "lbfgs", "ssbroyden", "newton"])
def test_the_limit_holds_at_an_end(method):
    for most in range(1, 32):
        result = fitted(method, most)
        assert result.evaluations <= most
        if not result.success:
            assert result.status == "evaluation limit"


@pytest.mark.parametrize("most", [1, 5, 17, 40])
def test_the_limit_holds_for_all_starts_together(most):
    result = fitted(
        "lm",
        most,
        restarts=4,
        starts=lambda count, rng: rng.uniform(0, 5, (count, 2)),
    )
    assert result.evaluations <= most


def test_calls_of_a_function_of_the_user_are_within_the_limit(float64):
    points = []

    class Exponential:
        size = 2

        def rows(self, theta):
            power = np.exp(-theta[1] * DATA["x"].astype(float))
            rows = theta[0] * power - DATA["y"]
            return rows, np.column_stack([power, -theta[0] * X * power])

        def value_and_grad(self, theta):
            points.append(tuple(theta))
            rows, slopes = self.rows(theta)
            return rows @ rows / 2, slopes.T @ rows

        def gauss_newton(self, theta):
            _, slopes = self.rows(theta)
            return slopes.T @ slopes

    result = kormos.solve(Exponential(), [1.0, 1.0], "lm", max_evals=25)
    # One more call checks the gradient.
    assert len(points) <= result.evaluations + 1 <= 26
    np.testing.assert_allclose(result.theta, [2, 3], rtol=1e-5)
