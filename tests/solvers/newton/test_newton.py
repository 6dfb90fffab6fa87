"""The trust-region Newton method, against closed forms and SciPy."""

import keras
import numpy as np
import pytest
import scipy.optimize
from keras import layers
from keras import ops

import kormos
from conftest import BACKEND
from kormos.objective.gauss_newton.host import HostGaussNewton
from native import eager_only
from native import minimize

# https://www.itl.nist.gov/div898/strd/nls/data/mgh10.shtml
MGH10 = [
    *(34780.0, 28610.0, 23650.0, 19630.0, 16370.0, 13720.0, 11540.0, 9744.0),
    *(8261.0, 7030.0, 6005.0, 5147.0, 4427.0, 3820.0, 3307.0, 2872.0),
]


def rosenbrock(x):
    return ops.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def test_rosenbrock_in_100_dimensions(float64):
    x0 = np.tile([-1.2, 1.0], 50)
    result, x = minimize(rosenbrock, x0, "newton")
    assert result.success
    # It has a second minimum, with a negative first parameter.
    second = np.ones(100)
    second[0] = -1
    found = scipy.optimize.minimize(
        scipy.optimize.rosen,
        second,
        jac=scipy.optimize.rosen_der,
        hess=scipy.optimize.rosen_hess,
        method="trust-exact",
    )
    assert np.abs(result.loss - np.array([0, found.fun])).min() <= 1e-9
    assert np.abs(scipy.optimize.rosen_der(x)).max() <= 1e-6


def test_a_quadratic_takes_steps_of_conjugate_gradients(float64):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    matrix = basis * np.logspace(0, 4, 30) @ basis.T
    target = rng.normal(size=30)
    # Its minimum is not zero, so the residuals are far from linear.
    a, b = (ops.convert_to_tensor(v) for v in (matrix, matrix @ target))

    def loss(x):
        return ops.sum(x * ops.matmul(a, x)) / 2 - ops.sum(b * x)

    result, x = minimize(loss, np.zeros(30), "newton")
    assert result.success
    assert np.linalg.norm(x - target) <= 1e-6 * np.linalg.norm(target)
    assert result.loss == pytest.approx(-target @ matrix @ target / 2, 1e-12)


@pytest.mark.parametrize("offset", [1e-3, 1e-9])
def test_negative_curvature_leads_away_from_a_saddle(offset, float64):
    # (x^2 - y^2) / 2 + y^4 / 4 is lowest, at -1/4, where y is 1 or -1. One
    # step of gradient descent goes closer to the saddle than it started.
    def loss(x):
        return (x[0] ** 2 - x[1] ** 2) / 2 + x[1] ** 4 / 4

    result, x = minimize(loss, [1e-6, offset], "newton")
    assert result.success
    np.testing.assert_allclose([x[0], abs(x[1])], [0, 1], atol=1e-7)
    assert result.loss == pytest.approx(-0.25, rel=1e-14)
    assert result.iterations <= 40


def test_radius_and_units_follow_the_scale_of_the_loss(float64):
    x0 = np.array([-1.2, 1.0])
    result, x = minimize(rosenbrock, x0, "newton")
    assert result.success
    for power in (-100, 30):
        c = 2.0**power
        scaled, z = minimize(lambda x, c=c: rosenbrock(x) * c, x0, "newton")
        assert scaled.status == result.status
        assert scaled.evaluations == result.evaluations
        np.testing.assert_array_equal(z, x)


@eager_only
def test_a_wall_of_nan_shortens_the_radius(float64):
    factors = ops.convert_to_tensor(np.array([1.0, 100.0]))
    wall = ops.convert_to_tensor(np.array(np.nan))

    def loss(x):
        inside = ops.sum((x - 1) ** 2 * factors)
        return ops.where(ops.max(x) > 1.001, wall, inside)

    result, x = minimize(loss, [-50.0, 0.5], "newton")
    assert result.success
    np.testing.assert_allclose(x, 1, atol=1e-6)


def network(seed=1, dtype=None):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((1,)),
            layers.Dense(6, activation="tanh", dtype=dtype),
            layers.Dense(
                1, kernel_regularizer=keras.regularizers.L2(1e-3), dtype=dtype
            ),
        ]
    )


def data():
    x = np.linspace(-1, 1, 40)[:, None]
    return x, np.sin(3 * x) + 0.1 * np.cos(17 * x)


def fit(method, model=None, epochs=1000, **settings):
    model = network() if model is None else model
    model.compile(optimizer=method, loss="mse")
    return model.fit(*data(), epochs=epochs, verbose=0, **settings)


def test_a_network_ends_where_trust_exact_ends(float64):
    model = network()
    expected = fit("trust-exact", model).result
    # The network has several minima: it starts beside this one.
    rng = np.random.default_rng(0)
    model.set_weights(
        [w + 1e-2 * rng.normal(size=w.shape) for w in model.get_weights()]
    )
    result = fit("newton", model, epochs=20, steps_per_epoch=50).result
    assert result.success
    assert result.initial_loss > 1.01 * expected.loss
    assert result.loss == pytest.approx(expected.loss, rel=1e-8)
    # From there, a step with a dense Hessian does not lower the loss.
    exact = fit("trust-exact", model).result
    assert result.loss == pytest.approx(exact.loss, rel=1e-9)


def test_a_float32_network_says_converged_only_at_its_optimum():
    model = network()
    result = fit("newton", model, epochs=20, steps_per_epoch=50).result
    assert result.success
    exact = fit("trust-exact", model, precision="float64").result
    # No claim allows more than this: docs/how_it_works.md.
    assert result.loss <= exact.loss * (1 + 1e-6)


def test_history_counts_evaluations_and_products(float64):
    model = network()
    history = fit("newton", model, epochs=5)
    assert set(history.history) == {
        "loss",
        "grad",
        "fg_evals",
        "hessp_evals",
        "step",
        "resets",
    }
    products = np.array(history.history["hessp_evals"])
    assert (np.diff(products) >= 1).all()
    assert history.result.hessian_products >= products[-1]
    losses = history.history["loss"]
    assert (np.diff(losses) < 0).all()
    assert losses[-1] == pytest.approx(
        model.evaluate(*data(), verbose=0), rel=1e-12
    )


def test_a_resumed_fit_has_the_same_bits(float64):
    whole, parts = network(), network()
    fit("newton", whole, epochs=12)
    fit("newton", parts, epochs=5)
    parts.fit(*data(), epochs=7, verbose=0, resume=True)
    for a, b in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_options_are_saved_and_checked():
    optimizer = kormos.optimizers.Newton(memory=7, max_products=11, gtol=1e-5)
    again = kormos.optimizers.Newton.from_config(optimizer.get_config())
    assert (again.memory, again.max_products, again.gtol) == (7, 11, 1e-5)
    for wrong in ({"memory": 0}, {"max_products": 1.5}):
        with pytest.raises(ValueError, match="1 or more. Received"):
            kormos.optimizers.Newton(**wrong)


def test_constraints_are_refused(float64):
    v = keras.Variable([0.5], dtype="float64")
    constraint = {"type": "eq", "fun": lambda: v - 1}
    with pytest.raises(ValueError, match="does not support constraints"):
        kormos.minimize(
            lambda: ops.sum(v**2), [v], "newton", constraints=[constraint]
        )


METHODS = [
    "newton",
    "gauss-newton",
    kormos.optimizers.LevenbergMarquardt(linear_solver="cg"),
]


def regression():
    """Thirty correlated columns in units that differ by 10,000."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 30)) @ (np.eye(30) + 0.5 * rng.random((30, 30)))
    return x * np.logspace(-2, 2, 30), rng.normal(size=(80, 1))


def line(method, **settings):
    model = keras.Sequential(
        [
            keras.Input((30,)),
            layers.Dense(1, use_bias=False, kernel_initializer="zeros"),
        ]
    )
    model.compile(optimizer=method, loss="mse")
    fit = kormos.fit(model, epochs=500, verbose=0, **settings)
    return fit, model.get_weights()[0][:, 0]


@pytest.mark.parametrize(
    "method", METHODS, ids=["newton", "gauss-newton", "cg"]
)
def test_bounds_hold_parameters_where_scipy_does(method, float64):
    x, y = regression()
    reach = 1 / np.linalg.norm(x, axis=0)
    expected = scipy.optimize.lsq_linear(
        x, y[:, 0], (-reach, 2 * reach), tol=1e-14
    )
    sides = -reach[:, None], 2 * reach[:, None]
    history, kernel = line(method, x=x, y=y, bounds={".*kernel": sides})
    assert history.result.success
    assert (kernel >= -reach).all() and (kernel <= 2 * reach).all()
    assert history.result.loss == pytest.approx(expected.cost / 40, rel=1e-12)
    np.testing.assert_allclose(kernel / reach, expected.x / reach, atol=1e-5)
    is_held = expected.active_mask != 0
    assert 5 <= is_held.sum() <= 25
    assert history.history["active"][-1] == is_held.sum()


@pytest.mark.parametrize(
    "method", METHODS, ids=["newton", "gauss-newton", "cg"]
)
def test_streamed_data_end_at_the_solution(method, float64):
    x, y = regression()

    class Rows(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, i):
            return x[40 * i : 40 * i + 40], y[40 * i : 40 * i + 40]

    history, kernel = line(method, x=Rows(), stream=True)
    squares = np.linalg.lstsq(x, y)[1]
    assert history.result.success
    assert history.result.loss == pytest.approx(squares[0] / 80, rel=1e-12)


def test_conjugate_gradients_of_lm_are_gauss_newton(float64):
    of_lm, same = network(), network()
    lm = kormos.optimizers.LevenbergMarquardt(linear_solver="cg")
    result = fit(lm, of_lm, epochs=12).result
    fit("gauss-newton", same, epochs=12)
    assert "conjugate gradients" in result.message
    for a, b in zip(of_lm.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_steps_on_batches_go_on_from_one_to_the_next(float64):
    losses = []
    for counts in ((10,), (4, 6)):
        model = network()
        model.compile(
            optimizer=kormos.optimizers.LevenbergMarquardt(
                linear_solver="cg", stochastic=True
            ),
            loss="mse",
        )
        found = [
            model.fit(
                *data(), epochs=n, batch_size=10, verbose=0, resume=True
            ).history["loss"]
            for n in counts
        ]
        losses.append(sum(found, []))
    # A mean of the targets leaves their variance, about a half.
    assert losses[0][-1] <= 0.1
    assert losses[0] == losses[1]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a fault of TensorFlow's")
def test_wrong_second_derivatives_are_refused():
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4), layers.LayerNormalization()]
    )
    model.compile(optimizer="newton", loss="mse")
    with pytest.raises(ValueError, match="wrong second derivatives"):
        model.fit(np.eye(3), np.ones((3, 4)), epochs=2, verbose=0)


def test_gauss_newton_solves_linear_least_squares(float64):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 8)), rng.normal(size=(50, 1))
    x = x * np.logspace(-2, 2, 8)
    model = keras.Sequential(
        [keras.Input((8,)), layers.Dense(1, use_bias=False)]
    )
    model.compile(optimizer="gauss-newton", loss="mse")
    result = model.fit(x, y, epochs=50, verbose=0).result
    expected, squares, _, _ = np.linalg.lstsq(x, y, rcond=None)
    assert result.success
    assert result.loss == pytest.approx(squares[0] / 50, rel=1e-12)
    np.testing.assert_allclose(model.get_weights()[0], expected, rtol=1e-6)


def test_products_for_the_units_of_parameters_are_counted(
    monkeypatch, unconverged
):
    calls = []
    product = HostGaussNewton.product

    def counted(self, theta, vector):
        calls.append(theta)
        return product(self, theta, vector)

    monkeypatch.setattr(HostGaussNewton, "product", counted)
    x = np.random.default_rng(0).normal(size=(20, 3))
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.compile(optimizer="gauss-newton", loss="mse")
    # Products with a stream's matrix are made outside of compiled loops.
    history = model.fit(x, x[:, :1], epochs=2, stream=True, verbose=0)
    assert history.result.hessian_products == len(calls) > 8


def test_gauss_newton_takes_residuals(float64):
    # Meyer's curve, in the parameters of NIST's MGH10.
    v = keras.Variable([0.02, 4000.0, 250.0], dtype="float64")
    t = ops.convert_to_tensor(50.0 + 5.0 * np.arange(16))
    y = ops.convert_to_tensor(np.array(MGH10))

    def residuals():
        return v[0] * ops.exp(v[1] / (t + v[2])) - y

    result = kormos.least_squares(
        residuals, [v], method="gauss-newton", max_iterations=2000
    )
    certified = [5.6096364710e-03, 6.1813463463e03, 3.4522363462e02]
    assert result.success
    np.testing.assert_allclose(ops.convert_to_numpy(v), certified, rtol=1e-6)


def test_gauss_newton_has_no_negative_curvature(float64):
    # From beside the saddle of (x^2 - 1)^2, whose residual is x^2 - 1.
    v = keras.Variable([1e-3], dtype="float64")
    result = kormos.least_squares(
        lambda: v**2 - 1, [v], method="gauss-newton", max_iterations=200
    )
    assert result.success
    assert float(ops.convert_to_numpy(v)[0]) == pytest.approx(1, rel=1e-9)


def test_gauss_newton_refuses_a_loss_of_no_outputs(float64):
    v = keras.Variable([1.0], dtype="float64")
    with pytest.raises(ValueError, match="need residuals"):
        kormos.minimize(lambda: ops.sum(v**2), [v], method="gauss-newton")


def test_gauss_newton_fits_go_on_with_the_same_bits(float64):
    whole, parts = network(), network()
    fit("gauss-newton", whole, epochs=12)
    fit("gauss-newton", parts, epochs=5)
    parts.fit(*data(), epochs=7, verbose=0, resume=True)
    for a, b in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
