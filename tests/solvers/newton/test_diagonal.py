"""Estimates of the diagonal of a matrix, against dense linear algebra."""

import numpy as np
import pytest

from kormos.solvers.newton.diagonal import diagonal


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
    """A matrix with a unit diagonal, and random units of the parameters."""
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
