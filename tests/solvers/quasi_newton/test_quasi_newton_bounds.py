"""Bounds in kormos' own methods: SciPy's optima, and no point outside.

The independent answers are those of `scipy.optimize.nnls` and `lsq_linear`,
which solve the linear problems exactly, of L-BFGS-B with its tolerances at
rounding, and of mathematics.
"""

import keras
import numpy as np
import pytest
import scipy.optimize
from keras import ops

import kormos
import native
from conftest import BACKEND
from native import METHODS
from native import eager_only
from native import methods

# Newton's method holds parameters by the same rules, but compiles longer.
NEWTON = ["newton"] if BACKEND == "torch" else []


class Recorded:
    """A loss of a vector that remembers where it was evaluated."""

    def __init__(self, fn, size, curvature=None):
        self.size, self._fn, self.points = size, fn, []
        self._curvature = curvature

    def value_and_grad(self, theta):
        self.points.append(np.array(theta))
        return self._fn(theta)

    def hvp(self, theta, vector):
        self.points.append(np.array(theta))
        return self._curvature(theta) * vector


def minimize(*args, **kwargs):
    """Like `native.minimize`, for a vector that is float64 on JAX, too."""
    with kormos.precision("float64"):
        return native.minimize(*args, **kwargs)


def product(matrix, vector):
    return ops.einsum("ij,j->i", ops.convert_to_tensor(matrix), vector)


def outside(points, lower, upper):
    points = np.array(points)
    return int(((points < lower) | (points > upper)).any(axis=1).sum())


def overlapping(rows, columns, seed=0):
    """A matrix and a vector whose least squares have negative entries."""
    random = np.random.default_rng(seed)
    matrix = random.normal(size=(rows, columns)) + 0.5
    return matrix, matrix @ random.normal(size=columns)


def squares_of(matrix, vector):
    def loss(x):
        return ops.sum(
            (product(matrix, x) - ops.convert_to_tensor(vector)) ** 2
        )

    return loss


@pytest.mark.parametrize("method", [*methods("lbfgs", "ssbroyden"), *NEWTON])
def test_non_negative_least_squares_end_at_those_of_nnls(method):
    matrix, vector = overlapping(40, 12)
    exact, residual = scipy.optimize.nnls(matrix, vector)
    assert 0 < np.count_nonzero(exact == 0) < 12
    result, x = minimize(
        squares_of(matrix, vector), np.ones(12), method, bounds=[(0, None)] * 12
    )
    assert result.success
    assert result.loss == pytest.approx(residual**2, rel=1e-12)
    np.testing.assert_allclose(x, exact, atol=1e-7)
    assert (x[exact == 0] == 0).all()


def test_the_history_counts_the_parameters_that_are_held():
    matrix, vector = overlapping(40, 12)
    exact, _ = scipy.optimize.nnls(matrix, vector)
    result, _ = minimize(
        squares_of(matrix, vector),
        np.ones(12),
        "lbfgs",
        bounds=[(0, None)] * 12,
    )
    assert result.history["active"][-1] == np.count_nonzero(exact == 0)


def test_a_run_without_bounds_counts_nothing():
    result, _ = minimize(lambda x: ops.sum((x - 1) ** 2), [3.0], "lbfgs")
    assert "active" not in result.history


@pytest.mark.parametrize("method", [*METHODS, "newton"])
def test_nothing_outside_the_box_is_evaluated_not_even_the_start(method):
    # Its logarithms are NaN below zero, where the start is.
    def fn(x):
        with np.errstate(invalid="raise", divide="raise"):
            return np.sum(x - np.log(x + 1e-3)), 1 - 1 / (x + 1e-3)

    objective = Recorded(fn, 3, lambda x: 1 / (x + 1e-3) ** 2)
    lower, upper = np.zeros(3), np.array([0.5, 2.0, 2.0])
    result = kormos.solve(
        objective,
        np.array([-4.0, 0.1, 7.0]),
        method,
        bounds=scipy.optimize.Bounds(lower, upper),
    )
    assert result.success
    assert outside(objective.points, lower, upper) == 0
    np.testing.assert_allclose(result.theta, [0.5, 0.999, 0.999], atol=1e-6)


@pytest.mark.parametrize("method", [*methods("lbfgs", "ssbfgs"), *NEWTON])
def test_a_curved_valley_that_meets_a_bound(method):
    # Hock and Schittkowski's problem 2 from a start beside the optimum, whose
    # first coordinate then is a root of a cubic.
    def loss(x):
        return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2

    roots = np.roots([400.0, 0.0, 2.0 - 600.0, -2.0])
    first = roots[np.argmin(np.abs(roots - 1.2))].real
    result, x = minimize(
        loss, [1.3, 1.6], method, bounds=[(None, None), (1.5, None)]
    )
    assert result.success
    np.testing.assert_allclose(x, [first, 1.5], rtol=1e-8)


@pytest.mark.parametrize("method", [*methods("lbfgs"), *NEWTON])
def test_an_obstacle_holds_a_membrane_where_quadratic_programs_say(method):
    size, load = 40, -8.0
    spacing = 1 / (size + 1)
    stiffness = (
        2 * np.eye(size) - np.eye(size, k=1) - np.eye(size, k=-1)
    ) / spacing
    force = np.full(size, load * spacing)
    place = np.arange(1, size + 1) * spacing
    obstacle = -0.3 - (place - 0.4) ** 2
    root = np.linalg.cholesky(stiffness).T
    exact = scipy.optimize.lsq_linear(
        root,
        np.linalg.solve(root.T, force),
        (obstacle, np.inf),
        method="bvls",
        tol=1e-14,
    ).x
    touching = np.isclose(exact, obstacle, atol=1e-12)
    assert 3 < touching.sum() < size - 3

    def energy(x):
        bent = product(stiffness, x)
        return ops.sum(x * bent) / 2 - ops.sum(ops.convert_to_tensor(force) * x)

    result, x = minimize(
        energy, np.zeros(size), method, bounds=[(o, None) for o in obstacle]
    )
    assert result.success
    np.testing.assert_allclose(x, exact, atol=1e-6)
    assert (x[touching] == obstacle[touching]).all()


def logit():
    random = np.random.default_rng(3)
    x = random.normal(size=(200, 8))
    y = random.uniform(size=200) < 1 / (1 + np.exp(-3 * x @ np.arange(-4, 4)))
    return x, np.where(y, 1.0, -1.0)


@pytest.mark.parametrize("method", [*methods("lbfgs", "dense-bfgs"), *NEWTON])
def test_a_logit_in_a_box_ends_at_the_optimum_of_scipy(method):
    x, y = logit()

    def fn(w):
        margins = y * (x @ w)
        grad = -(y / (1 + np.exp(margins))) @ x
        return np.logaddexp(0, -margins).sum(), grad

    exact = scipy.optimize.minimize(
        fn,
        np.zeros(8),
        jac=True,
        method="L-BFGS-B",
        bounds=[(-2, 2)] * 8,
        options={"ftol": 0, "gtol": 1e-10},
    )
    held = np.abs(exact.x) == 2
    assert 0 < held.sum() < 8
    rows = y[:, None] * x
    result, w = minimize(
        lambda w: ops.sum(ops.softplus(-product(rows, w))),
        np.zeros(8),
        method,
        bounds=[(-2, 2)] * 8,
    )
    assert result.success
    assert result.loss == pytest.approx(exact.fun, rel=1e-12)
    np.testing.assert_allclose(w, exact.x, atol=1e-6)
    assert (np.abs(w[held]) == 2).all()


@pytest.mark.parametrize("method", [*methods("lbfgs"), *NEWTON])
def test_non_negative_factors_are_at_a_kuhn_tucker_point(method):
    random = np.random.default_rng(1)
    matrix = random.uniform(size=(12, 4)) @ random.uniform(size=(4, 9))
    matrix *= random.uniform(size=matrix.shape) < 0.6

    def loss(theta):
        left = ops.reshape(theta[:36], (12, 3))
        right = ops.reshape(theta[36:], (3, 9))
        rest = ops.einsum("ik,kj->ij", left, right)
        return ops.sum((rest - ops.convert_to_tensor(matrix)) ** 2)

    result, theta = minimize(
        loss, random.uniform(size=63), method, bounds=[(0, None)] * 63
    )
    assert result.success
    left, right = theta[:36].reshape(12, 3), theta[36:].reshape(3, 9)
    # Given one factor, the other one is that of non-negative least squares.
    others = [scipy.optimize.nnls(left, column)[1] ** 2 for column in matrix.T]
    assert result.loss == pytest.approx(sum(others), rel=1e-8)
    others = [scipy.optimize.nnls(right.T, row)[1] ** 2 for row in matrix]
    assert result.loss == pytest.approx(sum(others), rel=1e-8)


@pytest.mark.parametrize("method", [*methods("lbfgs"), *NEWTON])
def test_a_linear_loss_ends_in_the_corner(method):
    result, x = minimize(
        lambda x: x[0] - 2 * x[1] + 3 * x[2] + 10,
        [0.2, 0.3, 0.4],
        method,
        bounds=[(0, 1)] * 3,
    )
    assert result.status == "converged"
    assert x.tolist() == [0, 1, 0]


@eager_only
@pytest.mark.parametrize("method", [*METHODS, "newton"])
def test_parameters_that_bounds_fix_stay(method):
    result, x = minimize(
        lambda x: ops.sum((x - 3) ** 4),
        [1.0, 1.0, 1.0],
        method,
        bounds=[(1, 1), (None, None), (2, 2)],
    )
    assert result.success
    assert x[0] == 1 and x[2] == 2
    assert x[1] == pytest.approx(3, abs=1e-2)


def test_a_non_negative_layer_ends_at_nnls():
    x, y = overlapping(50, 6)
    exact, residual = scipy.optimize.nnls(x, y)
    with kormos.precision("float64"):
        model = keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(
                    1, use_bias=False, kernel_constraint="non_neg"
                ),
            ]
        )
        model.compile(optimizer="lbfgs", loss="mse")
        history = model.fit(x, y[:, None], epochs=200, verbose=0)
    kernel = ops.convert_to_numpy(model.layers[0].kernel)[:, 0]
    assert history.result.success
    np.testing.assert_allclose(kernel, exact, atol=1e-5)
    assert (kernel >= 0).all()
    assert history.history["active"][-1] == np.count_nonzero(exact == 0)


@eager_only
def test_a_resumed_run_keeps_to_bounds_that_have_changed():
    matrix, vector = overlapping(40, 12)

    def fn(x):
        rest = matrix @ x - vector
        return rest @ rest, 2 * matrix.T @ rest

    objective, method = Recorded(fn, 12), kormos.optimizers.LBFGS()
    first = kormos.solve(
        objective, np.ones(12), method, bounds=[(0, 1)] * 12, max_iterations=5
    )
    objective.points.clear()
    result = kormos.solve(
        objective, first.theta, method, bounds=[(0.1, 0.5)] * 12, resume=True
    )
    exact = scipy.optimize.lsq_linear(matrix, vector, (0.1, 0.5), "bvls")
    assert outside(objective.points, 0.1, 0.5) == 0
    assert result.loss == pytest.approx(2 * exact.cost, rel=1e-10)
