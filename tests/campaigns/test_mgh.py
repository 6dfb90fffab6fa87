"""The test functions of Moré, Garbow and Hillstrom reach published minima."""

import warnings

import pytest

import kormos
import mgh
from conftest import BACKEND
from native import methods
from native import minimize

PROBLEMS = {problem.name: problem for problem in mgh.problems()}

# Trigonometry and branches, sums of exponentials, matrix products, a recursion.
VARIED = [
    "Rosenbrock",
    "Helical valley",
    "Osborne 1",
    "Watson n=6",
    "Chebyquad n=8",
]
METHODS = methods("ssbroyden")
NAMES = PROBLEMS if BACKEND == "torch" else VARIED

# Cases in which a method ends above the minimum: the part of the initial loss
# that is left, and the reason.
SHORT = {
    # `gtol` is relative to the start: the gradient is 1e-9 of that there, and
    # the Hessian's condition number, 1e13, hides the rest.
    ("Watson n=12", "dense-bfgs"): 1e-9,
    ("Watson n=12", "lbfgs"): 1e-9,
}


@pytest.mark.parametrize(
    "name, method", [(name, m) for name in NAMES for m in METHODS]
)
def test_reaches_a_published_minimum(float64, name, method):
    problem = PROBLEMS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kormos.ConvergenceWarning)
        result, _ = minimize(problem.loss, problem.x0, method)
    short = SHORT.get((name, method), 0) * result.initial_loss
    # At a minimum of zero with a singular Hessian, there is always more to
    # gain.
    assert result.success or name == "Powell singular"
    assert problem.excess(result.loss, result.initial_loss) <= short
