"""The quadratic program of a step."""

import numpy as np

from kormos.solvers.constrained.program import Program
from kormos.solvers.constrained.subproblem import Conditions


class Inverse:
    """A curvature, by its inverse."""

    def __init__(self, matrix):
        self._matrix = matrix

    def product(self, columns):
        return self._matrix @ columns


def test_a_step_ends_exactly_on_its_bounds():
    """Rounding there, times the gradient, would be more than the slope."""
    random = np.random.default_rng(0)
    factor = random.normal(size=(6, 6))
    theta, grad = np.full(6, 45.0), np.full(6, -1e3)
    grad[0] = 1e-9
    upper = np.full(6, 45.0)
    upper[0] = np.inf
    rows = np.eye(6)[:1]
    program = Program(
        theta,
        grad,
        rows,
        (np.full(6, -np.inf), upper),
        Inverse(factor @ factor.T + np.eye(6)),
    )
    no, yes = np.zeros(1, dtype=bool), np.ones(1, dtype=bool)
    conditions = Conditions(np.array([1e-8]), rows, yes, no)
    step = program(conditions, np.zeros(1), np.array([1e6]))
    np.testing.assert_array_equal(step.direction[1:], 0)
    np.testing.assert_allclose(step.direction[0], -1e-8, rtol=1e-3)
