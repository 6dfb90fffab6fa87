"""Steps by conjugate gradients, against dense linear algebra in NumPy."""

import numpy as np
import pytest

from kormos.solvers.least_squares.steihaug import Products
from kormos.solvers.least_squares.steihaug import diagonal

SIZES = [1, 2, 5, 20]
RADII = [1e-3, 0.1, 1.0, 10.0]


class Dense:
    """A model F + g'p + p'Ap / 2, and what its steps are by definition.

    Args:
        size: the number of parameters.
        least: the smallest eigenvalue of D^-1 A D^-1; the largest is 2.
    """

    def __init__(self, size, least=0.5):
        rng = np.random.default_rng(size)
        basis, _ = np.linalg.qr(rng.normal(size=(size, size)))
        self.scale = 10 ** rng.uniform(-3, 3, size)
        # In the scaled variables Dp.
        self.values = np.linspace(least, 2, size) if size > 1 else [least]
        self.scaled = (basis * self.values) @ basis.T
        self.slope = rng.normal(size=size)
        self.matrix = self.scaled * self.scale * self.scale[:, None]
        self.grad = self.scale * self.slope

    def model(self):
        return Products(lambda v: self.matrix @ v, self.scale, self.grad)

    def decrease(self, step):
        return -(self.grad @ step + step @ self.matrix @ step / 2)

    def best_decrease(self, radius):
        """By bisection for the damping whose step has the radius' length."""

        def step(damping):
            matrix = self.scaled + damping * np.eye(len(self.slope))
            return -np.linalg.solve(matrix, self.slope) / self.scale

        def length(damping):
            return np.linalg.norm(self.scale * step(damping))

        low, high = 0.0, np.linalg.norm(self.slope) / radius
        if length(0.0) <= radius:
            return self.decrease(step(0.0))
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (
                (middle, high) if length(middle) > radius else (low, middle)
            )
        return self.decrease(step(high))


def assert_is_told_truly(case, step):
    """The length and the promise of a step are those of dense algebra."""
    scaled = case.scale * step.vector
    assert step.length == pytest.approx(np.linalg.norm(scaled), rel=1e-12)
    assert step.promised == pytest.approx(case.decrease(step.vector), rel=1e-9)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("damping", [0.0, 0.1, 10.0])
def test_a_damped_step_solves_the_linear_system(size, damping):
    case = Dense(size)
    step = case.model().damped(damping)
    assert step.damping == damping
    damped = case.scaled + damping * np.eye(size)
    solution = -np.linalg.solve(damped, case.slope)
    # A residual of a hundredth of the gradient, times the norm of the inverse.
    allowed = 0.01 * np.linalg.norm(case.slope) / (case.values[0] + damping)
    distance = np.linalg.norm(case.scale * step.vector - solution)
    assert distance <= allowed * (1 + 1e-9)
    residual = damped @ (case.scale * step.vector) + case.slope
    limit = 0.01 * np.linalg.norm(case.slope)
    assert np.linalg.norm(residual) <= limit * (1 + 1e-9)
    assert step.length == pytest.approx(
        np.linalg.norm(case.scale * step.vector), rel=1e-12
    )


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("size", SIZES)
def test_a_step_within_a_radius_gains_half_of_what_the_best_does(size, radius):
    """Yuan's theorem: Math. Program. 87, 2000, 561-573."""
    case = Dense(size)
    step = case.model().within(radius, guess=0.0)
    assert step.length <= radius * (1 + 1e-12)
    assert_is_told_truly(case, step)
    best = case.best_decrease(radius)
    assert best / 2 <= step.promised <= best * (1 + 1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_a_short_step_goes_down_the_scaled_gradient_to_the_radius(size):
    case = Dense(size)
    step = case.model().within(1e-6, guess=0.0)
    expected = -1e-6 * case.slope / np.linalg.norm(case.slope)
    np.testing.assert_allclose(case.scale * step.vector, expected, rtol=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_a_long_radius_holds_nothing_back(size):
    model = Dense(size).model()
    free, held = model.damped(0.0), model.within(1e6, guess=0.0)
    np.testing.assert_array_equal(held.vector, free.vector)


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("size", [1, 5])
def test_along_a_negative_curvature_it_goes_to_the_radius(size, radius):
    case = Dense(size, least=-1.0)
    step = case.model().within(radius, guess=0.0)
    assert step.length <= radius * (1 + 1e-12)
    assert_is_told_truly(case, step)
    # Down the gradient alone, the decrease is this much at least.
    assert step.promised >= radius * np.linalg.norm(case.slope) - radius**2


def test_a_negative_curvature_without_a_radius_is_not_followed():
    case = Dense(1, least=-1.0)
    step = case.model().damped(0.0)
    np.testing.assert_array_equal(step.vector, [0.0])
    assert step.length == step.promised == 0
    # As damped, the curvature is 1: p = -g.
    damped = case.model().damped(2.0)
    np.testing.assert_allclose(case.scale * damped.vector, -case.slope)


@pytest.mark.parametrize("radius", [0.1, 100.0])
def test_what_is_held_fixed_stays(radius):
    case = Dense(6)
    is_held = np.arange(6) % 3 == 0
    scale = np.where(is_held, np.inf, case.scale)
    model = Products(lambda v: case.matrix @ v, scale, case.grad)
    step = model.within(radius, guess=0.0).vector
    assert (step[is_held] == 0).all()
    free = np.ix_(~is_held, ~is_held)
    others = Products(
        lambda v: case.matrix[free] @ v, scale[~is_held], case.grad[~is_held]
    )
    expected = others.within(radius, guess=0.0).vector
    np.testing.assert_allclose(step[~is_held], expected, rtol=1e-9)
    assert model.scaled(np.ones(6)) == pytest.approx(
        np.linalg.norm(case.scale[~is_held])
    )


def test_at_a_zero_gradient_nothing_is_promised():
    case = Dense(3)
    case.grad = np.zeros(3)
    assert case.model().promise(0.0) == 0
    # Elsewhere the best of all steps is not known.
    assert Dense(3).model().promise(0.0) is None


# Estimates of a diagonal


def test_a_diagonal_matrix_is_found_exactly():
    values = np.array([3.0, 1.0, 7.0, 2.0])
    found = diagonal(lambda v: values * v, 4)
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("size", [2, 10, 50])
def test_an_estimate_is_off_by_the_other_entries_of_a_row_at_most(size):
    root = np.random.default_rng(size).normal(size=(size, 2 * size))
    matrix = root @ root.T
    found = diagonal(lambda v: matrix @ v, size)
    others = np.abs(matrix).sum(axis=1) - np.diag(matrix)
    assert (np.abs(found - np.diag(matrix)) <= others).all()
    assert (found > 0).all()


def test_an_entry_without_effect_is_zero():
    values = np.array([4.0, 0.0, 5.0])
    found = diagonal(lambda v: values * v, 3)
    np.testing.assert_allclose(found, values)


def correlated(size):
    """A matrix with a unit diagonal, and parameters in other units than it."""
    matrix = (np.eye(size) + np.ones((size, size))) / 2
    units = 10 ** np.random.default_rng(0).uniform(-6, 6, size)
    return matrix, units


@pytest.mark.parametrize("size", [20, 200])
def test_small_effects_are_not_lost_beside_large_ones(size):
    matrix, units = correlated(size)
    found = diagonal(lambda v: units * (matrix @ (units * v)), size)
    # The mean of eight estimates is off by half the root of the size over
    # eight, times the root of how uneven the scaled matrix may be left.
    error = np.sqrt(size / 8) / 2 * np.sqrt(100)
    ratio = found / units**2
    assert ratio.max() <= 1 + 4 * error
    assert ratio.min() >= 1 / (1 + 4 * error)
