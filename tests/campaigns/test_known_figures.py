"""Fits whose outcome is known to many digits."""

import keras
import numpy as np
import pytest
from keras import ops

import kormos
from conftest import TIGHT
from conftest import lindata
from conftest import linear
from conftest import readme50
from kormos.solvers.scipy.methods import METHODS

# loss, gradient norm, evaluations, validation loss
LBFGSB = [
    (79.121972803, 17.9462315, 2, 78.418123301),
    (0.192005512, 0.7132404, 3, 0.232165486),
    (0.056429322, 0.186011555, 4, 0.059140551),
    (0.047396919, 0.042760990, 5, 0.047347951),
    (0.047005935, 0.008018481, 6, 0.047006094),
    (0.046990785, 0.001854379, 7, 0.046993522),
    (0.046989697, 0.000349880, 8, 0.046991842),
    (0.046989659, 7.352144e-05, 9, 0.046991625),
    (0.046989658, 2.734455e-05, 10, 0.046991599),
]


def fit_readme50(method):
    train, validation = readme50()
    model = linear(50, l2=1e-3)
    model.compile(optimizer=method, loss="mse")
    return model.fit(*train, epochs=20, verbose=0, validation_data=validation)


def test_lbfgsb_rows_in_float64(float64):
    history = fit_readme50("l-bfgs-b")
    rows = np.array(
        [history.history[k] for k in ("loss", "grad", "fg_evals", "val_loss")]
    ).T
    np.testing.assert_allclose(rows[:9], LBFGSB, rtol=1e-6, atol=5e-9)
    assert history.result.status == "converged"
    assert history.result.success
    assert history.result.iterations == len(rows) == 10
    # Twenty evaluations show that nothing more can be gained.
    assert history.result.evaluations <= 11 + 20
    (x, y), _ = readme50()
    # On TensorFlow Keras rounds the factor to float32.
    l2 = float(keras.regularizers.L2(1e-3)(keras.ops.ones(1)))
    matrix = x.T @ x / 1000 + l2 * np.eye(50)
    w = np.linalg.solve(matrix, x.T @ y[:, 0] / 1000)
    least = np.mean((x @ w - y[:, 0]) ** 2) + l2 * w @ w
    assert history.result.loss == pytest.approx(least, rel=1e-10)


@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
def test_lbfgsb_rows_in_float32():
    history = fit_readme50("l-bfgs-b")
    losses = history.history["loss"][:8]
    rows = np.array([r[0] for r in LBFGSB[:8]])
    # Processors round a step differently. That changes the next loss by about
    # one rounding of the loss before the step.
    before = np.concatenate([rows[:1], rows[:-1]])
    allowed = 1e-5 * rows + np.finfo("float32").eps * before
    assert (np.abs(losses - rows) <= allowed).all()
    assert history.result.status in ("converged", "noise floor")
    assert history.result.evaluations <= 60


def test_newton_cg_rows_in_float64(float64):
    history = fit_readme50("newton-cg")
    losses = [
        4.004315896,
        0.323700117,
        0.071445958,
        0.049484779,
        0.047270675,
        0.047023658,
        0.046989686,
        0.046989658,
        0.046989658,
    ]
    found = history.history["loss"][:9]
    np.testing.assert_allclose(found, losses, atol=5e-9)
    products = history.history["hessp_evals"][:9]
    assert products == [1, 2, 3, 4, 5, 6, 8, 10, 14]


def test_misspelt_option_raises():
    with pytest.raises(ValueError, match="Received: maxcors"):
        kormos.optimizers.ScipyBatchOptimizer(options={"maxcors": 5})


def test_sample_weights(float64):
    x, y = lindata(1000, noise=0.3)
    weights = np.random.RandomState(0).uniform(0, 2, 1000)
    model = linear()
    model.compile(
        optimizer=kormos.optimizers.ScipyBatchOptimizer(
            options={"gtol": 1e-9, "ftol": 0}
        ),
        loss="mse",
    )
    objective = kormos.Objective(model, x, y, sample_weight=weights)
    start = objective.value(objective.initial_position())
    assert start == pytest.approx(10.865052096, abs=5e-10)
    reported = model.evaluate(x, y, sample_weight=weights, verbose=0)
    assert start == pytest.approx(reported, rel=TIGHT)
    kormos.fit(model, x, y, sample_weight=weights, verbose=0)
    optimum = [1.60691333, -0.61960207, -0.53615335, -1.07309998, 0.86147966]
    np.testing.assert_allclose(
        ops.convert_to_numpy(model.weights[0])[:, 0], optimum, atol=1e-8
    )


TOLERANCES = {
    "nelder-mead": {"xatol": 1e-9, "fatol": 1e-12},
    "powell": {"ftol": 1e-12, "xtol": 1e-9},
    "cobyla": {"tol": 1e-8},
    "slsqp": {"ftol": 1e-12},
}


@pytest.mark.parametrize(
    "method", sorted(set(kormos.optimizers.NAMES) - {"scipy"})
)
def test_every_method_reaches_the_ridge_optimum(method, float64):
    x, y = lindata(200, noise=0.3)
    model = linear(l2=1e-3)
    optimizer = method
    if method in METHODS:
        optimizer = kormos.optimizers.ScipyBatchOptimizer(
            method=method.upper(), options=TOLERANCES.get(method)
        )
    model.compile(optimizer=optimizer, loss="mse")
    history = model.fit(x, y, epochs=2000, verbose=0)
    assert history.result.success, history.result
    assert history.result.loss == pytest.approx(0.0895758670, abs=5e-9)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(
        history.result.loss, rel=TIGHT
    )


@pytest.mark.parametrize("method", ["l-bfgs-b", "tnc", "slsqp", "trust-constr"])
def test_bounds(method, float64):
    x, y = lindata(200, noise=0.3)
    model = linear(l2=1e-3)
    model.compile(optimizer=method, loss="mse")
    kormos.fit(
        model, x, y, epochs=200, verbose=0, bounds={".*kernel": (0, 0.1)}
    )
    assert model.evaluate(x, y, verbose=0) == pytest.approx(
        5.369559115, abs=5e-8
    )
    np.testing.assert_allclose(
        model.get_weights()[0][:, 0], [0.1, 0, 0, 0, 0.1], atol=1e-5
    )


@pytest.mark.parametrize("method", ["slsqp", "trust-constr"])
def test_equality_constraint(method, float64):
    x, y = lindata(200, noise=0.3)
    model = linear(l2=1e-3)
    kernel = model.weights[0]
    optimizer = kormos.optimizers.ScipyBatchOptimizer(
        method=method,
        constraints={"type": "eq", "fun": lambda: kernel[0] - 5},
        options={"ftol": 1e-12} if method == "slsqp" else None,
    )
    model.compile(optimizer=optimizer, loss="mse")
    history = model.fit(x, y, epochs=200, verbose=0)
    assert history.result.success
    assert history.result.loss == pytest.approx(10.678813342, abs=1e-7)
    assert model.get_weights()[0][0, 0] == pytest.approx(5, abs=1e-8)


def test_minimize_sum_of_squares():
    v = keras.Variable([7.0, 7.0])
    result = kormos.minimize(lambda: ops.sum(v**2), [v])
    assert result.success
    np.testing.assert_allclose(v.numpy(), [0, 0], atol=1e-5)


def test_minimize_within_bounds():
    v = keras.Variable([7.0, 7.0])
    kormos.minimize(lambda: ops.sum(v**2), [v], bounds=[(v, ([1, 2], np.inf))])
    np.testing.assert_allclose(v.numpy(), [1, 2], atol=1e-6)


def test_minimize_with_constraints():
    v = keras.Variable([7.0, 7.0])
    kormos.minimize(
        lambda: ops.sum(v**2),
        [v],
        method="SLSQP",
        constraints=[
            {"type": "eq", "fun": lambda: v[1] - 1},
            {"type": "ineq", "fun": lambda: v[0] - 1},
        ],
    )
    np.testing.assert_allclose(v.numpy(), [1, 1], atol=1e-6)


def test_minimize_in_float32():
    v = keras.Variable(np.ones(5, "float32"))
    result = kormos.minimize(lambda: ops.sum((v - 2) ** 2), [v])
    assert result.success
    assert result.iterations <= 3
    assert result.evaluations <= 20
    np.testing.assert_allclose(v.numpy(), 2, atol=2e-7)


def test_two_outputs_with_loss_weights(float64):
    x, y = lindata(200, noise=0.3)
    inputs = keras.Input((5,))
    outputs = [
        keras.layers.Dense(1, name=name)(inputs) for name in ("plus", "minus")
    ]
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer="l-bfgs-b", loss=["mse", "mse"], loss_weights=[1, 0.5]
    )
    history = model.fit(x, [y, -y], epochs=50, verbose=0)
    assert history.result.loss == pytest.approx(0.1264935520, abs=5e-9)
