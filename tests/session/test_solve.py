"""`kormos.solve`: a loss of neither a model nor a function of variables."""

import multiprocessing

import keras
import numpy as np
import pytest
import scipy.optimize

import kormos
from helpers import nist


class Rosenbrock:
    """Rosenbrock's function, by NumPy."""

    size = 2

    def value_and_grad(self, theta):
        return scipy.optimize.rosen(theta), scipy.optimize.rosen_der(theta)

    def hvp(self, theta, vector):
        return scipy.optimize.rosen_hess_prod(theta, vector)


START = np.array([-1.2, 1.0])


@pytest.mark.parametrize(
    "method",
    [
        "lbfgs",
        "dense-bfgs",
        "ssbroyden",
        "l-bfgs-b",
        "newton",
        "newton-cg",
        "trust-exact",
    ],
)
def test_a_loss_by_numpy(method):
    start = START.copy()
    result = kormos.solve(Rosenbrock(), start, method)
    assert result.success
    np.testing.assert_allclose(result.theta, 1, rtol=1e-5)
    assert result.loss == scipy.optimize.rosen(result.theta)
    np.testing.assert_array_equal(start, START)
    assert result.history["loss"][-1] <= result.history["loss"][0]


def test_bounds_and_linear_constraints():
    bounds = scipy.optimize.Bounds(-2.0, 0.5)
    result = kormos.solve(Rosenbrock(), START, "l-bfgs-b", bounds=bounds)
    peer = scipy.optimize.minimize(
        scipy.optimize.rosen,
        np.minimum(START, 0.5),
        jac=scipy.optimize.rosen_der,
        bounds=bounds,
        options={"ftol": 0, "gtol": 1e-9, "maxiter": 1000},
    )
    np.testing.assert_allclose(result.theta, peer.x, rtol=1e-5, atol=1e-7)
    held = scipy.optimize.LinearConstraint(np.ones((1, 2)), 1.5, 1.5)
    result = kormos.solve(Rosenbrock(), START, "slsqp", constraints=held)
    assert result.theta.sum() == pytest.approx(1.5, rel=1e-8)


class Misra1a:
    """The sum of squares of NIST's Misra1a, b1 (1 - exp(-b2 x))."""

    size = 2

    def __init__(self):
        (problem,) = (p for p in nist.problems() if p.name == "Misra1a")
        self.certified, self.rss = problem.certified, problem.rss
        self._x, self._y = np.array(problem.x), np.array(problem.y)

    def _residuals(self, theta):
        decay = np.exp(-theta[1] * self._x)
        jacobian = np.stack([1 - decay, theta[0] * self._x * decay], axis=1)
        return theta[0] * (1 - decay) - self._y, jacobian

    def value_and_grad(self, theta):
        residuals, jacobian = self._residuals(theta)
        return residuals @ residuals, 2 * jacobian.T @ residuals

    def gauss_newton(self, theta):
        _, jacobian = self._residuals(theta)
        return 2 * jacobian.T @ jacobian


@pytest.mark.parametrize("start", [(500.0, 1e-4), (250.0, 5e-4)])
@pytest.mark.parametrize("linear_solver", ["auto", "rows", "dense"])
def test_least_squares_by_numpy(start, linear_solver):
    problem = Misra1a()
    method = kormos.optimizers.LevenbergMarquardt(linear_solver=linear_solver)
    result = kormos.solve(problem, np.array(start), method)
    assert result.success
    np.testing.assert_allclose(result.theta, problem.certified, rtol=1e-6)
    assert result.loss == pytest.approx(problem.rss, rel=1e-9)
    # It computes no second derivative of the outputs.
    assert result.hessian_products == 0 < result.jacobians


def test_products_at_a_point_take_one_matrix():
    class Counted(Misra1a):
        matrices = 0

        def gauss_newton(self, theta):
            self.matrices += 1
            return super().gauss_newton(theta)

    problem = Counted()
    result = kormos.solve(problem, np.array([250.0, 5e-4]), "gauss-newton")
    assert result.success
    np.testing.assert_allclose(result.theta, problem.certified, rtol=1e-6)
    assert problem.matrices <= result.evaluations < result.hessian_products


@pytest.mark.parametrize("method", ["slsqp", "trust-constr"])
@pytest.mark.parametrize("type", ["eq", "ineq"])
def test_a_constraint_that_is_not_linear(method, type):
    # The minimum lies outside of the unit disk.
    held = {
        "type": type,
        "fun": lambda theta: 1 - theta @ theta,
        "jac": lambda theta: -2 * theta,
    }
    start = np.array([0.3, 0.2])
    result = kormos.solve(Rosenbrock(), start, method, constraints=held)
    # On the circle the loss is a function of the angle alone.
    angle = scipy.optimize.minimize_scalar(
        lambda a: scipy.optimize.rosen([np.cos(a), np.sin(a)]),
        bounds=(0, 1.5),
        options={"xatol": 1e-12},
    ).x
    expected = np.cos(angle), np.sin(angle)
    np.testing.assert_allclose(result.theta, expected, atol=1e-5)


def part_of_the_loss(args):
    """Sum of squares and its gradient, of some rows."""
    rows, theta = args
    residuals = rows[:, :-1] @ theta - rows[:, -1]
    return residuals @ residuals, 2 * rows[:, :-1].T @ residuals


class Spread:
    """A sum of squares whose rows are in other processes."""

    size = 5

    def __init__(self, pool, rows, parts):
        self._pool = pool
        self._parts = np.array_split(rows, parts)

    def value_and_grad(self, theta):
        found = self._pool.map(
            part_of_the_loss, [(part, theta) for part in self._parts]
        )
        losses, gradients = zip(*found, strict=True)
        return sum(losses), sum(gradients)


def test_a_loss_spread_over_processes():
    rows = np.random.default_rng(0).normal(size=(200, 6))
    expected = np.linalg.lstsq(rows[:, :-1], rows[:, -1], rcond=None)[0]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        result = kormos.solve(Spread(pool, rows, 4), np.zeros(5), "lbfgs")
    assert result.success
    np.testing.assert_allclose(result.theta, expected, rtol=1e-6)


def test_limits_callbacks_and_resume():
    seen = []
    result = kormos.solve(
        Rosenbrock(),
        START,
        callbacks=[
            lambda iteration, logs: seen.append(logs["loss"]),
            keras.callbacks.EarlyStopping("loss", min_delta=1e9, patience=4),
        ],
    )
    assert result.status == "stopped by callback"
    assert seen == result.history["loss"] and len(seen) == 5
    optimizer = kormos.optimizers.LBFGS()
    whole = kormos.solve(Rosenbrock(), START, max_iterations=20)
    first = kormos.solve(Rosenbrock(), START, optimizer, max_iterations=8)
    second = kormos.solve(
        Rosenbrock(), first.theta, optimizer, max_iterations=12, resume=True
    )
    np.testing.assert_array_equal(second.theta, whole.theta)


class Nothing:
    pass


class Short(Rosenbrock):
    def value_and_grad(self, theta):
        return 0.0, np.zeros(3)


class First:
    size = 2
    value_and_grad = Rosenbrock.value_and_grad


@pytest.mark.parametrize(
    "objective, theta, method, message",
    [
        (Nothing(), START, "lbfgs", "attribute `size`"),
        (Rosenbrock(), START[:1], "lbfgs", r"vector of the 2 .*\(1,\)"),
        (Short(), START, "lbfgs", r"shape \(2,\).*\(3,\)"),
        (First(), START, "newton-cg", r"`hvp\(theta, vector\)`"),
        (Rosenbrock(), START, "lm", r"`gauss_newton\(theta\)`"),
    ],
)
def test_what_cannot_be_solved(objective, theta, method, message):
    with pytest.raises(ValueError, match=message):
        kormos.solve(objective, theta, method)


@pytest.mark.parametrize(
    "constraint",
    [{"type": "eq", "fun": np.sum}, {"type": "le"}, np.sum],
    ids=["no derivatives", "no function", "only a function"],
)
def test_constraints_that_cannot_be_used(constraint):
    with pytest.raises(ValueError, match="'jac', a function of `theta`"):
        kormos.solve(Rosenbrock(), START, "slsqp", constraints=constraint)
