"""Short runs that show whether a point is an optimum, in NumPy alone."""

import numpy as np
import pytest
from scipy.optimize import rosen
from scipy.optimize import rosen_der

from kormos.solvers.fresh_run import try_to_gain

EPSILON = 2.0**-52
# Few enough parameters for Newton steps, and too many.
SIZES = (1, 3, 10, 25)


def counted(value_and_grad):
    points = []

    def evaluate(theta):
        points.append(theta)
        return value_and_grad(theta)

    return evaluate, points


def quadratic(size, scale):
    """`1 + |scale (theta - best)|^2 / 2` through a correlated matrix."""
    rng = np.random.default_rng(size)
    root = np.eye(size) + 0.2 * rng.normal(size=(size, size)) / size**0.5
    best = rng.normal(size=size) / scale

    def value_and_grad(theta):
        residual = root @ (scale * (theta - best))
        return 1 + residual @ residual / 2, scale * (root.T @ residual)

    return value_and_grad, best


def run(value_and_grad, theta, **settings):
    evaluate, points = counted(value_and_grad)
    loss, grad = value_and_grad(theta)
    gain = try_to_gain(evaluate, theta, loss, grad, EPSILON, **settings)
    assert gain.evaluations == len(points)
    assert gain.loss == value_and_grad(gain.theta)[0] <= loss
    np.testing.assert_array_equal(gain.grad, value_and_grad(gain.theta)[1])
    return gain


@pytest.mark.parametrize("size", SIZES)
def test_a_quadratic_in_units_that_are_far_apart(size):
    # The condition of the Hessian is 1e16.
    scale = np.logspace(-4, 4, size)
    value_and_grad, best = quadratic(size, scale)
    start = best + 1e-2 / scale
    before = value_and_grad(start)[0] - 1
    # With more parameters, ten steps are only enough in the right units.
    units = None if size <= 10 else 1 / scale
    gain = run(value_and_grad, start, units=units)
    assert gain.loss - 1 < (1e-8 if size <= 10 else 1e-3) * before
    assert gain.evaluations <= 2 * size + 10


@pytest.mark.parametrize("size", [size for size in SIZES if size <= 10])
def test_the_promise_of_newton_is_what_is_left(size):
    value_and_grad, best = quadratic(size, np.ones(size))
    start = best + 1e-3
    gain = run(value_and_grad, start, most=0)
    assert gain.loss == value_and_grad(start)[0]
    assert gain.promise == pytest.approx(gain.loss - 1, rel=1e-4)


@pytest.mark.parametrize("size", [size for size in SIZES if size > 10])
def test_the_promise_of_a_few_steps_is_about_what_is_left(size):
    value_and_grad, best = quadratic(size, np.ones(size))
    gain = run(value_and_grad, best + 1e-3, most=3)
    left = gain.loss - 1
    assert left / 3 < gain.promise < 10 * left


@pytest.mark.parametrize("size", SIZES)
def test_an_exact_minimum_gains_nothing(size):
    value_and_grad, best = quadratic(size, np.logspace(-4, 4, size))
    gain = run(value_and_grad, best)
    assert gain.loss == 1
    assert gain.promise < 1e-25


@pytest.mark.parametrize("size", [2, 6, 25])
def test_the_valley_of_rosenbrock(size):
    # The slope is small at the bottom of the valley, and the end is far away.
    theta = np.full(size, 0.9)
    theta[1:] = 0.9 ** (2 ** np.arange(1, size))
    gain = run(lambda x: (rosen(x), rosen_der(x)), theta)
    assert gain.loss < 0.99 * rosen(theta)
    # At the minimum nothing is left to gain.
    gain = run(lambda x: (rosen(x), rosen_der(x)), np.ones(size))
    assert gain.loss == gain.promise == 0


@pytest.mark.parametrize("size", [4, 24])
def test_bounds_hold_at_every_evaluation(size):
    # The least of a sum of squares in a box is its projection.
    best = np.linspace(-1, 1, size)
    lower, upper = np.full(size, -0.5), np.full(size, 0.5)

    def value_and_grad(theta):
        assert (theta >= lower).all() and (theta <= upper).all()
        return np.sum((theta - best) ** 2), 2 * (theta - best)

    expected = np.clip(best, lower, upper)
    for start in (np.zeros(size), lower, upper):
        gain = run(value_and_grad, start, lower=lower, upper=upper)
        np.testing.assert_allclose(gain.theta, expected, atol=1e-9)
        assert gain.promise < 1e-12
    gain = run(value_and_grad, expected, lower=lower, upper=upper)
    assert gain.promise < 1e-20
    # If a bound cuts off a step, the promise is the decrease up to the bound.
    near = np.clip(expected, lower + 1e-9, upper - 1e-9)
    gain = run(value_and_grad, near, lower=lower, upper=upper, most=0)
    assert gain.promise < 2e-9 * size


@pytest.mark.parametrize("size", [4, 24])
def test_what_is_not_finite_is_no_gain(size):
    # The logarithm ends at zero; the least is at one.
    def value_and_grad(theta):
        with np.errstate(invalid="ignore", divide="ignore"):
            loss = np.sum(theta - np.log(theta))
        return loss, np.where(theta > 0, 1 - 1 / theta, np.nan)

    gain = run(value_and_grad, np.full(size, 20.0))
    assert gain.loss < 0.9 * size * (20 - np.log(20))
    assert gain.non_finite > 0


@pytest.mark.parametrize("size", [4, 24])
def test_a_kink_keeps_a_promise(size):
    # The sum of absolute values has no curvature to see.
    target = np.arange(size) + 0.5

    def value_and_grad(theta):
        return np.abs(theta - target).sum(), np.sign(theta - target)

    gain = run(value_and_grad, target + 3.0)
    assert gain.loss < 3.0 * size
    gain = run(value_and_grad, target + 3.0, most=0)
    assert gain.promise > 0.1 * size
