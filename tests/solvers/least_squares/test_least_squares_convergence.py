"""Ends of least squares are minima, from any start and in any units.

Expected numbers are certified ones of NIST, closed forms, or SciPy's, from a
near start and in units of one.
"""

from typing import Any
from typing import NamedTuple

import keras
import numpy as np
import pytest
import scipy.optimize
from keras import layers
from keras import ops

import kormos
import nist
from conftest import BACKEND
from native import eager_only

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(7)
ENDS = ("converged", "noise floor")
OURS = [
    "lm",
    pytest.param("lbfgs", marks=eager_only),
    pytest.param("ssbroyden", marks=eager_only),
]
LIMITS = {"max_iterations": 5000, "max_evals": 10_000}


def array(variable):
    return np.array(ops.convert_to_numpy(variable), "float64")


class Curve(NamedTuple):
    """A model of one predictor, with data.

    Attributes:
        model: function of the parameters, the predictor and an `exp`.
        x: the predictor.
        y: the response, of size one.
        near: a start from which SciPy finds the minimum.
    """

    model: Any
    x: np.ndarray
    y: np.ndarray
    near: list

    def best(self):
        """The parameters at the minimum and the sum of squares, by SciPy."""
        found = scipy.optimize.least_squares(
            lambda p: self.model(p, self.x, np.exp) - self.y,
            self.near,
            method="lm",
            x_scale="jac",
            xtol=1e-15,
            ftol=1e-15,
            gtol=1e-15,
        )
        return found.x, 2 * found.cost

    def fit(self, start, method, unit=1.0, dtype="float64", **settings):
        """A fit by kormos to the response in units."""
        p = keras.Variable(np.array(start, dtype), dtype=dtype)
        result = kormos.least_squares(
            lambda d: self.model(p, d["x"], ops.exp) - d["y"],
            [p],
            method,
            data={"x": self.x, "y": unit * self.y},
            reduction="sum",
            **{**LIMITS, **settings},
        )
        return array(p), result


def peak():
    w = np.linspace(1, 2, 30_000)
    noise = 0.01 * np.random.default_rng(0).normal(size=w.size)
    return Curve(
        lambda p, x, exp: p[0] * exp(-0.5 * ((x - p[1]) / p[2]) ** 2),
        w,
        np.exp(-0.5 * ((w - 1.4) / 0.11) ** 2) + noise,
        [1.0, 1.4, 0.1],
    )


def growth():
    x = np.linspace(0, 40, 41)
    return Curve(
        lambda p, x, exp: p[0] * exp(p[1] * x),
        x,
        2 * np.exp(0.1 * x) + 0.05 * np.sin(7 * x),
        [2.0, 0.1],
    )


def decay(level=0.0):
    x = np.linspace(0, 4, 30)
    y = 3 * np.exp(-1.1 * x) + level
    return Curve(
        lambda p, x, exp: p[0] * exp(-p[1] * x) + p[2],
        x,
        y + 0.02 * np.random.default_rng(0).normal(size=30),
        [3.0, 1.0, 0.4],
    )


# Starts that are far away, in size or in units


@pytest.mark.parametrize("method", OURS)
def test_a_peak_of_1e_9_from_a_height_of_one(method, float64):
    curve = peak()
    best, least = curve.best()
    p, result = curve.fit([1.0, 1.6, 0.2], method, unit=1e-9)
    assert result.success
    # The width counts as its square.
    np.testing.assert_allclose(np.abs(p) / [1e-9, 1, 1], best, rtol=1e-4)
    assert result.loss == pytest.approx(1e-18 * least, rel=1e-6)


@pytest.mark.parametrize(
    "start", [(1.0, 1.0), pytest.param((1.0, 0.3), marks=eager_only)]
)
@pytest.mark.parametrize("method", OURS)
def test_growth_that_is_too_fast_at_the_start(method, start, float64):
    curve = growth()
    best, least = curve.best()
    p, result = curve.fit(start, method)
    assert result.success, result
    assert least == pytest.approx(0.049175, rel=1e-4)
    assert result.loss == pytest.approx(least, rel=1e-6)
    np.testing.assert_allclose(p, best, rtol=1e-4)


@pytest.mark.parametrize("method", OURS)
def test_a_rate_at_which_all_but_one_point_has_decayed(method, float64):
    x = np.arange(5.0)
    curve = Curve(
        lambda p, x, exp: p[0] * exp(-p[1] * x), x, np.exp(-x), [1.0, 1.0]
    )
    _, result = curve.fit([0.5, 182.0], method)
    # The height alone, 1, leaves this; the rate has no slope to speak of.
    height_alone = np.sum(np.exp(-2 * x[1:]))
    assert height_alone == pytest.approx(0.1565, rel=1e-3)
    assert result.loss <= height_alone * (1 + 1e-12), result


@pytest.mark.parametrize("start", [1e-20, pytest.param(0.0, marks=eager_only)])
@pytest.mark.parametrize("method", OURS)
def test_starts_near_zero(method, start, float64):
    curve = decay(level=0.5)
    best, least = curve.best()
    p, result = curve.fit([start] * 3, method)
    assert result.success, result
    assert result.loss == pytest.approx(least, rel=1e-6)
    np.testing.assert_allclose(p, best, rtol=1e-3)


@pytest.mark.parametrize("start", [1e-10, 0.0])
def test_starts_near_zero_in_float32(start):
    curve = decay(level=0.5)
    best, least = curve.best()
    p, result = curve.fit([start] * 3, "lm", dtype="float32")
    assert result.success, result
    assert result.loss == pytest.approx(least, rel=1e-5)
    np.testing.assert_allclose(p, best, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", OURS)
def test_a_linear_problem_of_sizes_1e_9_and_1e9(method, dtype):
    with kormos.precision(dtype):
        v = keras.Variable(np.ones(2, dtype), dtype=dtype)
        result = kormos.least_squares(
            lambda: ops.stack([1e-9 * v[0] - 1, 1e9 * v[1] - 1]),
            [v],
            method,
            reduction="sum",
            **LIMITS,
        )
    # A residual of 1e-9 of the other does not count as zero.
    assert result.success, result
    assert result.loss <= 1e-12
    np.testing.assert_allclose(array(v), [1e9, 1e-9], rtol=1e-6)


# Networks in units


def fit_of_a_wave(method, unit, epochs):
    """1-12-1 on a sine: the result and R squared."""
    x = np.random.default_rng(0).uniform(-1, 1, size=(200, 1))
    y = unit * np.sin(3 * x)
    model = keras.Sequential(
        [keras.Input((1,)), layers.Dense(12, "tanh"), layers.Dense(1)]
    )
    model.compile(optimizer=method, loss="mse")
    result = model.fit(x, y, epochs=epochs, verbose=0).result
    error = model.predict(x, verbose=0).astype("float64") - y
    return result, 1 - np.mean(error**2) / y.var()


@pytest.mark.usefixtures("unconverged", "float64")
def test_a_network_on_targets_of_1e_7():
    result, determination = fit_of_a_wave("lm", 1e-7, epochs=60)
    assert determination > 0.9999, result


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize("dtype, unit", [("float64", 1e-7), ("float64", 1e-12)])
@pytest.mark.usefixtures("unconverged")
def test_no_success_of_a_network_on_tiny_targets_that_it_misses(
    dtype, unit, method
):
    with kormos.precision(dtype):
        result, determination = fit_of_a_wave(method, unit, epochs=60)
    assert not result.success or determination > 0.9999, result


# Powers of two

FACTORS = [-60, -7, 40]
POWERS = FACTORS if BACKEND == "torch" else [-7]


def same(result, other, unit):
    assert other.status == result.status
    np.testing.assert_array_equal(
        np.array(other.history["loss"]) / unit**2, result.history["loss"]
    )


def units_of(rows, scale, unit):
    """Units as data, so that compiled code and rounding are the same."""
    return {"scale": np.tile(scale, (rows, 1)), "unit": np.full(rows, unit)}


def regression_in(problem, method, powers, unit):
    """A NIST problem with parameters and response times powers of two."""
    scale = 2.0 ** np.array(powers)
    p = keras.Variable(np.array(problem.starts[0]) * scale, dtype="float64")
    units = units_of(len(problem.x), scale, unit)

    def residuals(d):
        b = ops.transpose(p / d["scale"])
        return d["unit"] * (nist.saturation(b, d["x"]) - d["y"])

    result = kormos.least_squares(
        residuals,
        [p],
        method,
        data={"x": np.array(problem.x), "y": np.array(problem.y), **units},
        reduction="sum",
        **LIMITS,
    )
    return array(p) / scale, result


@pytest.mark.parametrize("method", OURS)
@pytest.mark.parametrize("name", ["Misra1a", "BoxBOD"])
def test_powers_of_two_change_no_regression(name, method, float64):
    problem = {p.name: p for p in nist.problems()}[name]
    expected, one = regression_in(problem, method, [0, 0], 1.0)
    assert one.success, one
    assert problem.digits(expected) > 4
    for power in POWERS:
        # All methods adapt to a common unit, and `lm` also to one of each
        # parameter.
        powers = [power, -power // 2] if method == "lm" else [power, power]
        p, result = regression_in(problem, method, powers, 2.0**power)
        np.testing.assert_array_equal(p, expected)
        same(one, result, 2.0**power)
        # `lm` tries an end once more if columns of J differ by much.
        assert method == "lm" or result.evaluations == one.evaluations


def network_in(method, power):
    """A small network by hand, its parameters and targets in a unit."""
    unit = 2.0**power
    x = np.linspace(-1, 1, 40)
    theta = np.random.default_rng(1).normal(size=13) * unit
    v = keras.Variable(theta, dtype="float64")

    def residuals(d):
        w = v / d["scale"]
        hidden = ops.tanh(d["x"] * w[:, :4] + w[:, 4:8])
        outputs = ops.sum(hidden * w[:, 8:12], axis=1) + w[:, 12]
        return d["unit"] * (outputs - d["y"])

    result = kormos.least_squares(
        residuals,
        [v],
        method,
        data={"x": x[:, None], "y": x**2, **units_of(40, [unit] * 13, unit)},
        max_iterations=25,
    )
    return array(v) / unit, result


@pytest.mark.parametrize("method", ["lm", "lbfgs"])
@pytest.mark.usefixtures("unconverged", "float64")
def test_powers_of_two_change_no_network(method):
    expected, one = network_in(method, 0)
    for power in POWERS:
        theta, result = network_in(method, power)
        np.testing.assert_array_equal(theta, expected)
        same(one, result, 2.0**power)
        assert result.evaluations == one.evaluations


# A Jacobian that is not finite


def steep_logistic(precision):
    """A fit in which `exp` overflows, and the quotient is still zero."""
    x = np.arange(0, 1001, 10.0)
    y = 2 * (x > 505) + 0.05 * np.random.default_rng(0).normal(size=x.size)
    curve = Curve(
        lambda p, x, exp: p[0] / (1 + exp(-p[1] * (x - p[2]))), x, y, None
    )
    _, result = curve.fit(
        [1.0, 0.1, 450.0], "lm", dtype="float32", precision=precision
    )
    assert result.status != "non-finite"
    assert result.loss < result.initial_loss / 10
    return result


# By SciPy, from a step of the right place.
LEAST_LOGISTIC = 0.229266


@pytest.mark.parametrize("precision", ["auto", "float64"])
@pytest.mark.usefixtures("unconverged")
def test_a_loss_without_a_jacobian_is_no_end(precision):
    result = steep_logistic(precision)
    assert result.success
    assert result.loss == pytest.approx(LEAST_LOGISTIC, rel=1e-5)


@pytest.mark.usefixtures("unconverged")
def test_a_loss_without_a_jacobian_in_float32_is_told():
    result = steep_logistic(None)
    is_least = result.loss == pytest.approx(LEAST_LOGISTIC, rel=1e-5)
    assert is_least or not result.success
    # The step is steeper than what float32 can differentiate.
    is_told = "its derivatives were not finite" in result.message
    assert is_told or result.success
