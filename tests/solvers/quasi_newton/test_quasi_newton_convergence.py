"""Ends of kormos' quasi-Newton methods are minima, from any start.

Expected numbers are certified ones of NIST, closed forms, or those of another
solver, in NumPy.
"""

import re

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
import nist
from lasso import lasso
from lasso import loss_at
from likelihoods import weibull
from native import eager_only
from native import methods
from native import minimize

pytestmark = pytest.mark.slow

LIMITS = {"max_iterations": 10_000, "max_evals": 10_000}

each_method = pytest.mark.parametrize("method", methods("lbfgs"))


def tensor(values):
    return ops.convert_to_tensor(np.asarray(values, dtype="float64"))


# Gradients that are far larger at the start than near the end


def hyperbolic(b, x):
    return b[0] * (1 - (1 + b[1] * x / 2) ** -2)


def rational(b, x):
    return b[0] * b[1] * x / (1 + b[1] * x)


# Two starts, the parameters and the sum of squares that NIST certifies. All
# four are fitted to the data of the first.
MISRA = {
    "Misra1a": (
        nist.saturation,
        [(500, 1e-4), (250, 5e-4)],
        (2.3894212918e2, 5.5015643181e-4),
        1.2455138894e-1,
    ),
    "Misra1b": (
        hyperbolic,
        [(500, 1e-4), (300, 2e-4)],
        (3.3799746163e2, 3.9039091287e-4),
        7.5464681533e-2,
    ),
    "Misra1c": (
        nist.misra1c,
        [(500, 1e-4), (600, 2e-4)],
        (6.3642725809e2, 2.0813627256e-4),
        4.0966836971e-2,
    ),
    "Misra1d": (
        rational,
        [(500, 1e-4), (450, 3e-4)],
        (4.3736970754e2, 3.0227324449e-4),
        5.6419295283e-2,
    ),
}
(DATA,) = (p for p in nist.problems() if p.name == "Misra1a")


@pytest.mark.parametrize("far", [pytest.param(False, marks=eager_only), True])
@pytest.mark.parametrize("name", MISRA)
@each_method
def test_the_certified_minimum_of_a_scalar_loss(name, far, method, float64):
    model, starts, certified, least = MISRA[name]
    result, b = minimize(
        lambda b: ops.sum((model(b, tensor(DATA.x)) - tensor(DATA.y)) ** 2),
        starts[0 if far else 1],
        method,
        **LIMITS,
    )
    assert result.success, result
    assert result.loss == pytest.approx(least, rel=1e-9)
    np.testing.assert_allclose(b, certified, rtol=1e-5)


# Rate constants whose sizes are nine decades apart

RATES = np.array([0.04, 3e7, 1e4])
STEPS = np.diff(np.r_[0, np.logspace(-4, 2, 12)])


def robertson(rates, scan, array):
    """Robertson's reaction by implicit Euler steps, Newton's unrolled.

    Args:
        rates: the three rate constants.
        scan: function of a step, a state and the lengths of the steps, which
            gives all outputs.
        array: function that makes a zero.
    """

    def step(state, length):
        _, old_b, old_c = state
        _, b, c = state
        for _ in range(4):
            first = (
                b
                - old_b
                - length
                * (rates[0] * (1 - b - c) - rates[1] * b * b - rates[2] * b * c)
            )
            second = c - old_c - length * rates[1] * b * b
            bb = 1 + length * (rates[0] + 2 * rates[1] * b + rates[2] * c)
            bc = length * (rates[0] + rates[2] * b)
            cb = -2 * length * rates[1] * b
            determinant = bb - bc * cb
            b, c = (
                b - (first - bc * second) / determinant,
                c - (bb * second - cb * first) / determinant,
            )
        return (1 - b - c, b, c), (1 - b - c, 1e4 * b, c)

    start = (array(1.0), array(0.0), array(0.0))
    return scan(step, start, array(STEPS))


def numpy_scan(step, state, lengths):
    outputs = []
    for length in lengths:
        state, output = step(state, length)
        outputs.append(output)
    return np.array(outputs)


def keras_scan(step, state, lengths):
    # TensorFlow's outputs have the structure of the state.
    return ops.stack(ops.scan(step, state, lengths)[1], axis=1)


def fit_rate_constants(method):
    """Fits from a distant start, whose loss is 0.002."""
    observed = tensor(robertson(RATES, numpy_scan, np.asarray))
    return minimize(
        lambda k: ops.mean((robertson(k, keras_scan, tensor) - observed) ** 2),
        [0.05, 1e7, 2e4],
        method,
        **LIMITS,
    )


def test_rate_constants_from_a_start_whose_first_step_is_far(float64):
    result, rates = fit_rate_constants("ssbroyden")
    # The loss of the true rates is zero.
    assert result.success and result.loss < 1e-12, result
    np.testing.assert_allclose(rates, RATES, rtol=1e-3)


@eager_only
@pytest.mark.usefixtures("unconverged")
def test_rate_constants_are_no_false_success(float64):
    result, _ = fit_rate_constants("lbfgs")
    assert result.status != "line search failed", result
    assert not result.success or result.loss < 1e-12, result


# A gradient that is not the loss's own


@each_method
def test_weights_whose_gradient_is_stopped(method, float64):
    """The model weights the residuals, but the weights have no gradient."""
    x = np.linspace(0.2, 2, 20)
    y = np.exp(0.7 * x) + 0.3 * np.sin(9 * x)

    def loss(v):
        model = v[0] * ops.exp(v[1] * tensor(x))
        weights = ops.stop_gradient(1 / model**2)
        return ops.mean(weights * (model - tensor(y)) ** 2)

    with pytest.warns(kormos.ConvergenceWarning, match="disagree"):
        result, v = minimize(loss, [2.0, 0.2], method)
    assert not result.success
    found, said = map(
        float,
        re.search(
            r"changes by (\S+), and the gradient says (\S+)\. ", result.message
        ).groups(),
    )
    # The ratio of the true slope along the gradient to the gradient's own.
    model = v[0] * np.exp(v[1] * x)
    turn = model * np.array([np.ones(20) / v[0], x])
    own = 2 * turn @ ((model - y) / model**2) / 20
    true = own - 2 * turn @ ((model - y) ** 2 / model**3) / 20
    assert found / said == pytest.approx(true @ own / (own @ own), rel=0.3)


# An exact optimum


@each_method
def test_exact_data_leave_no_loss(method, float64):
    x = np.linspace(0, 2, 12)
    y = 1.5 * np.exp(-0.8 * x)
    result, v = minimize(
        lambda v: ops.mean(
            (v[0] * ops.exp(-v[1] * tensor(x)) - tensor(y)) ** 2
        ),
        [1.45, 0.85],
        method,
    )
    assert result.success, result
    assert result.loss < 1e-24 * result.initial_loss
    np.testing.assert_allclose(v, [1.5, 0.8], rtol=1e-10)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("method", [*methods("ssbroyden"), "newton"])
def test_exact_data_with_a_loss_that_is_coarse_near_zero(method, dtype):
    """The terms of a log-cosh are about log 2, and round so."""
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(dtype)
    y = 1e-3 * x @ np.array([1.0, -2.0, 0.5], dtype)
    with kormos.precision(dtype):
        v = keras.Variable(np.zeros(3), dtype=dtype)

        def loss():
            r = ops.matmul(ops.convert_to_tensor(x), v)
            r = r - ops.convert_to_tensor(y)
            return ops.mean(r + ops.softplus(-2 * r) - np.log(2))

        result = kormos.minimize(loss, [v], method, max_iterations=500)
        errors = x @ ops.convert_to_numpy(v) - y
    assert result.success, result
    # An error e of a row adds e^2 / 2, which is rounded to some `eps`.
    assert np.sqrt(np.mean(errors**2)) <= 2 * np.finfo(dtype).eps ** 0.5


@each_method
def test_a_loss_that_underflows_leaves_nothing_to_search(method, float64):
    result, end = minimize(lambda v: ops.sum(v**2), [1e-161, -2e-161], method)
    assert result.status == "converged" and result.evaluations <= 8
    assert np.abs(end).max() < 1e-140
    value, least = re.search(r", (\S+) <= (\S+)\.$", result.message).groups()
    assert float(value) <= float(least)


# Kinks


@pytest.mark.parametrize(
    "method",
    ["lm", "l-bfgs-b", "cg"],
)
@pytest.mark.usefixtures("unconverged")
def test_no_success_above_the_optimum_of_an_l1_penalty(method, float64):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 10))
    slope = np.r_[1.2, -0.9, 0.5, np.zeros(7)]
    y = (x @ slope + rng.logistic(size=200) > 0).astype("float64")
    model = keras.Sequential(
        [
            keras.Input((10,)),
            layers.Dense(
                1,
                use_bias=False,
                kernel_initializer="zeros",
                kernel_regularizer=keras.regularizers.L1(0.0625),
            ),
        ]
    )
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(optimizer=method, loss=loss)
    result = model.fit(x, y[:, None], epochs=300, verbose=0).result
    least = loss_at(lasso(0.0625, x, y), 0.0625, x, y)
    assert result.loss >= least * (1 - 1e-9)
    assert not result.success or result.loss <= least * (1 + 1e-6), result


# No maximum, and fits that are cut short


@each_method
@pytest.mark.usefixtures("unconverged")
def test_a_likelihood_without_a_maximum_is_no_success(method, float64):
    result, _ = minimize(weibull, [np.log(1e4), 0.0], method, **LIMITS)
    assert not result.success, result
    assert result.loss < result.initial_loss


@each_method
def test_the_parameter_that_runs_away_is_named(method, float64):
    v = keras.Variable(np.array([np.log(1e4), 0.0]), name="log_shape")
    with pytest.warns(kormos.ConvergenceWarning, match="log_shape"):
        result = kormos.minimize(lambda: weibull(v), [v], method, **LIMITS)
    assert result.status == "unbounded"


@pytest.mark.parametrize("method", ["lm", "lbfgs", "l-bfgs-b"])
@pytest.mark.usefixtures("unconverged")
def test_a_parameter_far_from_its_start_is_named_at_a_limit(method, float64):
    """The first residual only vanishes as its parameter goes to infinity."""
    v = keras.Variable(np.array([1.0, 2.0]), dtype="float64", name="rate")

    def residuals():
        return ops.stack([(1 + v[0] ** 2) ** -0.05, v[1] - 3])

    def fit(count):
        return kormos.least_squares(
            residuals, [v], method, max_iterations=count
        )

    result = fit(100)
    assert result.status == "iteration limit"
    assert "rate[0] ran from 1 to " in result.message
    # Wherever the next run begins, its own way is short.
    assert "ran from" not in fit(2).message


def cut_short(method, epochs):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 2))
    y = np.sin(2 * x[:, :1]) * x[:, 1:]
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(5, "tanh"), layers.Dense(1)]
    )
    model.compile(optimizer=method, loss="mse")
    return model.fit(x, y, epochs=epochs, verbose=0).result


@pytest.mark.parametrize("epochs", range(1, 6))
@pytest.mark.parametrize("method", ["lbfgs", "lm"])
@pytest.mark.usefixtures("unconverged")
def test_ten_fits_that_are_cut_short_are_no_successes(method, epochs):
    result = cut_short(method, epochs)
    assert result.status == "iteration limit"
    assert not result.success


@pytest.mark.parametrize("method", ["lbfgs", "lm", "l-bfgs-b"])
@pytest.mark.filterwarnings("error::kormos.ConvergenceWarning")
def test_epochs_that_are_given_run_out_without_a_warning(method):
    assert not cut_short(method, 3).success
