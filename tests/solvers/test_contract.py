"""What every method of kormos must do, for losses of many kinds.

Expected numbers are closed forms, linear algebra or SciPy's.
"""

import warnings

import keras
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import sklearn.datasets
from keras import ops

import kormos
from conftest import BACKEND
from native import eager_only
from native import methods
from native import minimize

pytestmark = pytest.mark.usefixtures("float64")
METHODS = methods("lbfgs")
each_method = pytest.mark.parametrize("method", METHODS)
# A trust region may lead to another minimum than a line search, and its
# failures have other statuses.
each_of_all = pytest.mark.parametrize("method", [*METHODS, "newton"])


def tensor(array):
    return ops.convert_to_tensor(np.asarray(array, dtype="float64"))


def rosenbrock(x):
    return ops.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def quiet(loss, x0, method, **kwargs):
    """Like `minimize`, for a run that may end in any way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kormos.ConvergenceWarning)
        return minimize(loss, x0, method, **kwargs)


@each_of_all
def test_quadratic_of_condition_number_1e8(method):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    matrix = basis * np.logspace(-4, 4, 20) @ basis.T
    root = tensor((basis * np.logspace(-2, 2, 20)).T)
    expected = rng.normal(size=20)

    def loss(x):
        return ops.sum(ops.matmul(root, x - tensor(expected)) ** 2) / 2

    result, x = minimize(loss, np.zeros(20), method)
    assert result.success
    error = x - expected
    np.testing.assert_allclose(
        result.loss, error @ matrix @ error / 2, atol=1e-15
    )
    assert np.linalg.norm(error) <= 1e-6 * np.linalg.norm(expected)


def small_digits():
    """Digits as 4 by 4 images, 16 features from 0 to 1."""
    x, y = sklearn.datasets.load_digits(return_X_y=True)
    x = x.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16) / 16
    return x[:600], y[:600]


def logistic_minimum(x, y, l2):
    """The kernel that SciPy finds, and the loss there."""

    def value_and_grad(flat):
        kernel = flat.reshape(16, 10)
        logits = x @ kernel
        logs = logits - scipy.special.logsumexp(logits, axis=1, keepdims=True)
        residuals = (np.exp(logs) - np.eye(10)[y]) / len(y)
        loss = l2 * np.sum(flat**2) - np.mean(logs[np.arange(len(y)), y])
        return loss, (x.T @ residuals).ravel() + 2 * l2 * flat

    found = scipy.optimize.minimize(
        value_and_grad,
        np.zeros(160),
        jac=True,
        method="L-BFGS-B",
        options={"ftol": 1e-16, "gtol": 1e-10, "maxiter": 5000},
    )
    return found.x.reshape(16, 10), found.fun


@each_of_all
def test_logistic_regression_on_digits(method):
    x, y = small_digits()
    model = keras.Sequential(
        [
            keras.Input((16,)),
            keras.layers.Dense(
                10,
                use_bias=False,
                kernel_initializer="zeros",
                kernel_regularizer=keras.regularizers.L2(1e-3),
            ),
        ]
    )
    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(loss=entropy)
    history = kormos.fit(
        model, x, y, optimizer=method, epochs=20, steps_per_epoch=50, verbose=0
    )
    # TensorFlow rounds a regularizer's factor to float32.
    l2 = float(np.float32(1e-3)) if BACKEND == "tensorflow" else 1e-3
    kernel, loss = logistic_minimum(x, y, l2)
    assert history.result.success
    assert history.result.loss == pytest.approx(loss, rel=1e-9)
    np.testing.assert_allclose(model.get_weights()[0], kernel, atol=1e-6)


@each_of_all
def test_tanh_network_descends(method):
    x = np.linspace(-1, 1, 32)[:, None]
    inputs, targets = tensor(x), tensor(np.sin(np.pi * x))
    network = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dense(1),
        ]
    )
    result = kormos.minimize(
        lambda: ops.mean((network(inputs) - targets) ** 2),
        network.trainable_variables,
        method=method,
        max_iterations=300,
        target_loss=1e-4,
    )
    assert result.status == "target reached"
    assert result.loss <= 1e-4
    losses = [result.initial_loss, *result.history["loss"]]
    assert (np.diff(losses) < 0).all()


@each_of_all
@pytest.mark.parametrize("wall", ["nan", pytest.param("inf", marks=eager_only)])
def test_wall_near_the_minimizer(method, wall):
    # The loss is defined up to 1.001, and lowest at 1.
    outside = tensor(float(wall))

    def loss(x):
        inside = ops.sum(tensor([1.0, 10.0, 100.0]) * (x - 1) ** 2)
        return ops.where(ops.max(x) > 1.001, outside, inside)

    result, x = minimize(loss, [-50.0, -3.0, 0.5], method)
    assert result.success
    np.testing.assert_allclose(x, 1, atol=1e-6)


@each_of_all
def test_logarithmic_barrier(method):
    # Zero or less is NaN or infinite; the derivative vanishes at 1 / rates.
    rates = np.array([1.0, 30.0, 1e3])

    def loss(x):
        return ops.sum(tensor(rates) * x - ops.log(x))

    result, x = minimize(loss, [5.0, 5.0, 5.0], method)
    assert result.success
    np.testing.assert_allclose(x, 1 / rates, rtol=1e-6)


@each_of_all
def test_negative_loss(method):
    # The normal distribution that fits best has the sample's moments.
    sample = np.random.default_rng(0).normal(0.03, 0.02, size=100)
    values = tensor(sample)

    def loss(x):
        z = (values - x[0]) * ops.exp(-x[1])
        return ops.mean(z**2) / 2 + x[1] + np.log(2 * np.pi) / 2

    result, x = minimize(loss, [0.0, 0.0], method)
    scale = sample.std()
    assert result.success
    assert result.loss < 0
    assert result.loss == pytest.approx(
        0.5 + np.log(scale) + np.log(2 * np.pi) / 2, rel=1e-12
    )
    np.testing.assert_allclose(x, [sample.mean(), np.log(scale)], rtol=1e-6)


def plateau(x):
    return ops.sum(1 - ops.exp(-(x**2)))


@eager_only
@each_method
def test_start_on_a_plateau(method):
    # The gradient is 1e-6 of the largest one.
    result, x = minimize(plateau, [4.0, -3.6], method)
    assert result.success
    np.testing.assert_allclose(x, 0, atol=1e-6)


@eager_only
@each_method
def test_leaves_a_plateau_of_no_digits_by_its_slopes(method):
    # The loss is 2 except for rounding, and its slope points downhill.
    result, x = quiet(plateau, [5.9, -5.31], method)
    assert result.loss <= 1 + 1e-12
    np.testing.assert_allclose(x[1], 0, atol=1e-6)


@each_of_all
@pytest.mark.parametrize("constant", [0.0, pytest.param(3.0, marks=eager_only)])
def test_start_at_the_optimum(method, constant):
    result, x = minimize(
        lambda x: ops.sum((x - 1) ** 2) + constant, [1.0, 1.0], method
    )
    assert result.success
    assert (result.iterations, result.evaluations) == (0, 1)
    np.testing.assert_array_equal(x, 1)


@eager_only
@each_of_all
def test_one_parameter(method):
    result, x = minimize(lambda x: ops.sum(ops.exp(x) - 2 * x), [5.0], method)
    assert result.success
    np.testing.assert_allclose(x, np.log(2), rtol=1e-7)


@eager_only
@each_of_all
@pytest.mark.parametrize("factor", [1e-9, 1e9])
def test_loss_times_a_constant_takes_the_same_steps(method, factor):
    x0 = [-1.2, 1.0, -0.5, 0.8]
    first, x = minimize(rosenbrock, x0, method)
    scaled, z = minimize(lambda x: rosenbrock(x) * factor, x0, method)
    assert scaled.status == first.status
    assert scaled.iterations == first.iterations
    np.testing.assert_allclose(z, x, rtol=1e-6)


def sizes(decades):
    return 10.0 ** (decades * np.array([-1.0, -0.5, 0.0, 0.5, 1.0]))


# Twelve decades square to a Hessian's condition number of 1e24: the gradient of
# the largest entry is 1e-12 of the largest one, which `gtol` cannot see. Only
# methods that scale their parameters converge.
OUT_OF_REACH = [("lbfgs", 6), ("dense-bfgs", 6)]

SCALED = {
    "quadratic": lambda z: ops.sum((z - 1) ** 2),
    "rosenbrock": rosenbrock,
}


@eager_only
@pytest.mark.parametrize("decades", [4, 6])
@pytest.mark.parametrize("name", SCALED)
@each_of_all
def test_badly_scaled_parameters(name, method, decades):
    if (method, decades) in OUT_OF_REACH:
        pytest.skip("out of reach")
    expected = sizes(decades)
    scale = tensor(expected)
    result, x = minimize(lambda x: SCALED[name](x / scale), np.zeros(5), method)
    assert result.success
    np.testing.assert_allclose(x, expected, rtol=1e-6)


@eager_only
@each_method
def test_loss_far_from_zero(method):
    # The rest of the loss, 1e6 * 2**-52, moves the point by 1e-5.
    result, x = quiet(
        lambda x: rosenbrock(x) + 1e6, [-1.2, 1.0, -0.5, 0.8], method
    )
    assert result.status in ("converged", "noise floor")
    assert result.loss - 1e6 <= 1e-8
    np.testing.assert_allclose(x, 1, atol=1e-4)


def uphill(x):
    square = ops.sum(x**2)
    return 2 * ops.stop_gradient(square) - square


def half_wrong(x):
    """A loss whose gradient has the wrong sign in the second coordinate."""
    square = x[1] ** 2
    return x[0] ** 2 + 2 * ops.stop_gradient(square) - square


def incomplete(x):
    """A loss whose gradient lacks a term: it is zero at 3, not at 3 / 11."""
    return ops.sum((x - 3) ** 2) + ops.stop_gradient(10 * ops.sum(x**2))


@each_method
@pytest.mark.parametrize(
    "loss",
    [
        uphill,
        pytest.param(half_wrong, marks=eager_only),
        pytest.param(incomplete, marks=eager_only),
    ],
)
def test_wrong_gradient_fails(method, loss):
    with pytest.warns(
        kormos.ConvergenceWarning, match="differences of the loss disagree"
    ):
        result, x = minimize(loss, [1.0, 2.0], method)
    assert result.status == "line search failed"
    assert result.loss <= result.initial_loss
    assert np.isfinite(x).all()


@each_of_all
@pytest.mark.parametrize("x0", [-1.0, pytest.param(0.0, marks=eager_only)])
def test_non_finite_start_is_kept(method, x0):
    # At -1 the loss is NaN; at 0 its derivative alone is infinite.
    with pytest.warns(kormos.ConvergenceWarning, match="non-finite"):
        result, x = minimize(lambda x: ops.sum(ops.sqrt(x)), [1.0, x0], method)
    assert result.status == "non-finite"
    assert (result.iterations, result.evaluations) == (0, 1)
    np.testing.assert_array_equal(x, [1.0, x0])
