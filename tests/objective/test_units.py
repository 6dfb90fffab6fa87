"""Units: fits are right in the whole range of float32, 1e-38 to 1e38.

Expected numbers are closed forms, NumPy's or SciPy's in float64.
"""

import keras
import numpy as np
import pytest
import scipy.optimize
from keras import layers
from keras import ops

import kormos
from kormos.optimizers import LevenbergMarquardt
from native import eager_only

pytestmark = pytest.mark.usefixtures("unconverged")

UNITS = [1e-25, 1e-15, 1.0, 1e15, 1e25]
SMALL_AND_LARGE = [1e-25, 1e15]

RNG = np.random.default_rng(0)
T = np.linspace(0, 4, 30)
DECAY = 3 * np.exp(-1.1 * T) + 0.02 * RNG.normal(size=30)


def by_scipy(loss="linear"):
    """The parameters of a decay, in float64."""
    return scipy.optimize.least_squares(
        lambda p: p[0] * np.exp(-p[1] * T) - DECAY,
        [1, 0.5],
        loss=loss,
        f_scale=0.05,
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
    ).x


def array(variable):
    return np.array(ops.convert_to_numpy(variable), "float64")


@pytest.mark.parametrize("unit", [*UNITS, 1e-30, 1e20])
def test_residuals_in_units_of_a_parameter(unit):
    p = keras.Variable([unit, 0.5])
    result = kormos.least_squares(
        lambda d: p[0] * ops.exp(-p[1] * d["t"]) - d["y"],
        [p],
        data={"t": T, "y": DECAY * unit},
        reduction="sum",
    )
    expected = by_scipy()
    np.testing.assert_allclose(array(p) / [unit, 1], expected, rtol=2e-5)
    residuals = expected[0] * np.exp(-expected[1] * T) - DECAY
    assert result.loss / unit**2 == pytest.approx(
        residuals @ residuals, rel=1e-4
    )


def decay_in(unit, method, **settings):
    """A decay of which only the residuals are in units."""
    p = keras.Variable([1.0, 0.5])
    result = kormos.least_squares(
        lambda d: unit * p[0] * ops.exp(-p[1] * d["t"]) - d["y"],
        [p],
        method,
        data={"t": T, "y": DECAY * unit},
        **settings,
    )
    return array(p), result


@pytest.mark.parametrize("unit", SMALL_AND_LARGE)
@pytest.mark.parametrize(
    "method", ["lm", "lbfgs", pytest.param("ssbroyden", marks=eager_only)]
)
def test_residuals_in_units(method, unit):
    p, _ = decay_in(unit, method)
    np.testing.assert_allclose(p, by_scipy(), rtol=1e-4)


@pytest.mark.parametrize("unit", [1e15, 1e25])
@pytest.mark.parametrize("method", ["l-bfgs-b", "trust-ncg", "newton-cg"])
def test_residuals_in_units_by_scipy(method, unit):
    # Small ones are beyond what tolerances of SciPy's can be scaled to.
    p, _ = decay_in(unit, method)
    np.testing.assert_allclose(p, by_scipy(), rtol=1e-3)


@pytest.mark.parametrize("unit", SMALL_AND_LARGE)
@pytest.mark.parametrize(
    "method", ["lm", pytest.param("lbfgs", marks=eager_only)]
)
@pytest.mark.parametrize("loss", ["soft_l1", "huber", "cauchy", "arctan"])
def test_robust_losses_in_units(loss, method, unit):
    p, _ = decay_in(unit, method, loss=loss, f_scale=0.05 * unit)
    np.testing.assert_allclose(p, by_scipy(loss), rtol=1e-3)


@pytest.mark.parametrize("solver", ["rows", "dense", "cg"])
@pytest.mark.parametrize("unit", SMALL_AND_LARGE)
def test_all_solvers_in_units(solver, unit):
    p, _ = decay_in(unit, LevenbergMarquardt(linear_solver=solver))
    np.testing.assert_allclose(p, by_scipy(), rtol=1e-4)


@pytest.mark.parametrize("power", [-80, 50])
@pytest.mark.parametrize("method", ["lm", "lbfgs"])
def test_powers_of_two_change_nothing(method, power):
    expected, one = decay_in(1.0, method)
    p, result = decay_in(2.0**power, method)
    np.testing.assert_array_equal(p, expected)
    losses = np.array(result.history["loss"]) / 4.0**power
    np.testing.assert_array_equal(losses, one.history["loss"])
    assert result.evaluations == one.evaluations


def test_arctan_keeps_float64(float64):
    """A loss in float64 is not rounded to float32 anywhere."""
    p = keras.Variable([1.0, 0.5], dtype="float64")
    kormos.least_squares(
        lambda d: p[0] * ops.exp(-p[1] * d["t"]) - d["y"],
        [p],
        data={"t": T, "y": DECAY},
        loss="arctan",
        f_scale=0.05,
    )
    np.testing.assert_allclose(array(p), by_scipy("arctan"), rtol=1e-7)


# Keras models


X = RNG.normal(size=(60, 4))
Y = X @ RNG.normal(size=(4, 1)) + 0.5 + 0.1 * RNG.normal(size=(60, 1))
WEIGHTS = RNG.uniform(0.5, 2, 60)


def regression(sample_weight=None):
    """Kernel and bias of the weighted least squares."""
    roots = np.ones(60) if sample_weight is None else np.sqrt(sample_weight)
    columns = np.c_[X, np.ones(60)] * roots[:, None]
    return np.linalg.lstsq(columns, Y[:, 0] * roots)[0]


def straight(loss, optimizer="lm"):
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(1, kernel_initializer="zeros")]
    )
    model.compile(optimizer=optimizer, loss=loss)
    return model


def parameters(model):
    return np.concatenate([w.ravel() for w in model.get_weights()]).astype(
        "float64"
    )


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_targets_in_units(loss, unit):
    is_huber = loss == "huber"
    model = straight(keras.losses.Huber(10 * unit) if is_huber else loss)
    history = model.fit(X, Y * unit, epochs=50, verbose=0)
    found = parameters(model)
    np.testing.assert_allclose(found / unit, regression(), rtol=1e-5)
    error = X @ found[:4] + found[4] - Y[:, 0] * unit
    least = np.mean((error / unit) ** 2) / (2 if is_huber else 1)
    assert history.result.loss / unit**2 == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize("unit", SMALL_AND_LARGE)
@pytest.mark.parametrize("weight", [1e-20, 1.0, 1e20])
def test_targets_and_weights_in_units(weight, unit):
    model = straight("mse")
    model.fit(X, Y * unit, sample_weight=WEIGHTS * weight, epochs=50, verbose=0)
    np.testing.assert_allclose(
        parameters(model) / unit, regression(WEIGHTS), rtol=1e-5
    )


@pytest.mark.parametrize("unit", [1e-15, 1e15])
def test_two_outputs_in_units_of_their_own(unit):
    inputs = keras.Input((4,))
    outputs = [
        layers.Dense(1, name=name, kernel_initializer="zeros")(inputs)
        for name in ("a", "b")
    ]
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer="lm",
        loss={"a": "mse", "b": "mse"},
        loss_weights={"a": 1.0, "b": unit**-2},
    )
    model.fit(X, {"a": Y, "b": Y * unit}, epochs=50, verbose=0)
    for name, scale in (("a", 1), ("b", unit)):
        kernel, bias = model.get_layer(name).get_weights()
        found = np.append(kernel.astype("float64"), bias) / scale
        np.testing.assert_allclose(found, regression(), rtol=1e-5)


def scaled(unit, loss="mse", optimizer="lbfgs"):
    """A model of which only the outputs are in units."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3, "tanh"),
            layers.Dense(1),
            layers.Rescaling(unit),
        ]
    )
    model.compile(optimizer=optimizer, loss=loss)
    return model


@pytest.mark.parametrize("power", [-50, 80])
@pytest.mark.parametrize("optimizer", ["lbfgs", "lm"])
def test_powers_of_two_change_no_fit(optimizer, power):
    histories = []
    for unit in (1.0, 2.0**power):
        model = scaled(unit, optimizer=optimizer)
        history = model.fit(X, Y * unit, epochs=15, verbose=0)
        losses = np.array(history.history["loss"]) / unit**2
        histories.append((losses, model.get_weights()))
    (one, expected), (losses, found) = histories
    np.testing.assert_array_equal(losses, one)
    for now, then in zip(found, expected, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("unit", UNITS)
def test_derivatives_in_units(unit):
    """Derivatives of a float32 model agree with those of it in float64."""
    model = scaled(unit)
    narrow, wide = (
        kormos.Objective(model, X, Y * unit, precision=precision)
        for precision in (None, "float64")
    )
    theta = narrow.initial_position()
    vector = RNG.normal(size=theta.size)
    loss, grad = narrow.value_and_grad(theta)
    expected_loss, expected_grad = wide.value_and_grad(theta)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert narrow.value(theta) == pytest.approx(expected_loss, rel=1e-5)
    size = np.abs(expected_grad).max()
    np.testing.assert_allclose(grad / size, expected_grad / size, atol=1e-5)
    for length in (1e-20, 1.0, 1e20):
        product = narrow.hvp(theta, length * vector) / length
        expected = wide.hvp(theta, vector)
        size = np.abs(expected).max()
        np.testing.assert_allclose(product / size, expected / size, atol=1e-4)


@pytest.mark.parametrize("unit", [1e-12, 1e15])
def test_derivatives_of_a_vector_that_is_a_tensor(unit):
    objective = kormos.Objective(scaled(unit), X, Y * unit)
    theta = objective.initial_position()
    loss, grad = objective.value_and_grad(
        ops.convert_to_tensor(theta, dtype="float32")
    )
    expected_loss, expected = objective.value_and_grad(theta)
    assert float(ops.convert_to_numpy(loss)) == pytest.approx(
        expected_loss, rel=1e-5
    )
    np.testing.assert_allclose(array(grad), expected, rtol=1e-3)


@pytest.mark.parametrize("loss", ["mse", "huber", "mae", "log_cosh"])
def test_the_loss_is_what_evaluate_reports(loss):
    model = straight(loss, "adam")
    model.set_weights([RNG.normal(size=(4, 1)), np.ones(1)])
    for unit in (1e-8, 1.0, 1e8) if loss in ("mse", "mae") else (1.0,):
        objective = kormos.Objective(model, X, Y * unit)
        value = objective.value(objective.initial_position())
        evaluated = model.evaluate(X, Y * unit, verbose=0)
        assert value == pytest.approx(evaluated, rel=2e-5)


def test_a_loss_of_ones_own_is_called():
    """A subclass of a Keras loss may compute another loss."""

    class Doubled(keras.losses.MeanSquaredError):
        def call(self, y_true, y_pred):
            return 2 * super().call(y_true, y_pred)

    values = []
    for loss in (keras.losses.MeanSquaredError(), Doubled()):
        model = straight(loss)
        objective = kormos.Objective(model, X, Y)
        values.append(objective.value(objective.initial_position()))
    assert values[1] == pytest.approx(2 * values[0], rel=1e-6)
