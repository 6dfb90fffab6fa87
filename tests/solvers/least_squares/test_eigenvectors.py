"""Eigenvectors that are not multiplied out, against known ones."""

import numpy as np
import pytest

from kormos.solvers.least_squares import spectrum
from kormos.solvers.least_squares.eigenvectors import eigenvectors


def made_of(values):
    """A matrix of these eigenvalues, and its eigenvectors."""
    rng = np.random.default_rng(len(values))
    vectors, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
    return (vectors * values) @ vectors.T, vectors


@pytest.mark.parametrize("size", [1, 2, 64, 65, 300])
def test_they_are_those_of_the_upper_triangle(size):
    values = np.linspace(1, 2, size) ** 3
    matrix, vectors = made_of(values)
    found, basis = eigenvectors(np.triu(matrix))
    np.testing.assert_allclose(found, values, rtol=1e-13)
    vector = np.random.default_rng(1).normal(size=size)
    slopes = basis.along(vector)
    # Signs are free.
    np.testing.assert_allclose(
        np.abs(slopes), np.abs(vectors.T @ vector), atol=1e-10
    )
    np.testing.assert_allclose(basis.back(slopes), vector, atol=1e-13)
    np.testing.assert_allclose(
        basis.back(values * slopes), matrix @ vector, atol=1e-11
    )


def test_a_rank_that_is_low():
    values = np.concatenate([np.zeros(100), np.geomspace(1e-9, 1, 60)])
    matrix, _ = made_of(values)
    found, basis = eigenvectors(matrix.copy())
    np.testing.assert_allclose(found, values, atol=1e-15 * 160)
    vector = np.random.default_rng(1).normal(size=160)
    kept = np.where(found > 1e-13, basis.along(vector), 0)
    np.testing.assert_allclose(
        basis.back(kept * found), matrix @ vector, atol=1e-12
    )


@pytest.mark.parametrize("damping", [0.0, 1e-3])
def test_fewer_rows_than_columns(damping):
    """The step for R'R, where R has dependent rows and a zero column."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(150, 500))
    rows[100:] = rng.normal(size=(50, 100)) @ rows[:100]
    rows[:, 7] = 0
    residuals = rng.normal(size=150)
    scale = np.linspace(1, 2, 500)
    scale[3] = np.inf
    model = spectrum.of_rows(rows, scale, rows.T @ residuals)
    left, roots, right = np.linalg.svd(rows / scale, full_matrices=False)
    parts = roots[:100] / (roots[:100] ** 2 + damping)
    expected = -(parts * (left.T @ residuals)[:100]) @ right[:100] / scale
    step = model.damped(damping)
    size = np.linalg.norm(expected)
    np.testing.assert_allclose(step.vector, expected, atol=1e-10 * size)
    assert not model.has_full_rank
