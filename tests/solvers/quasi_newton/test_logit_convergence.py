"""A logit whose columns have very different units, and fits from its optimum.

The optimum is that of Newton's method in NumPy, on columns of size one.
"""

import numpy as np
import pytest

from conftest import BACKEND
from likelihoods import Choice
from native import METHODS
from native import eager_only
from native import methods
from native import minimize

pytestmark = pytest.mark.slow

ENDS = ("converged", "noise floor")


@pytest.mark.parametrize("method", [*methods("lbfgs", "ssbroyden"), "lm"])
def test_a_logit_with_columns_in_units_far_apart(method, float64):
    choice = Choice()
    best, least = choice.best()
    w, result = choice.fit(method)
    assert result.success, result
    assert choice.loss(w) == pytest.approx(least, rel=1e-9)
    np.testing.assert_allclose(w, best, rtol=1e-3)


@pytest.mark.parametrize("method", [*methods("lbfgs"), "lm"])
def test_a_logit_with_columns_in_units_far_apart_in_float32(method):
    choice = Choice()
    best, least = choice.best()
    w, result = choice.fit(method)
    assert result.success, result
    # Rounding of 400 terms of size one.
    assert choice.loss(w) - least <= 400**0.5 * 2.0**-24 * least


@pytest.mark.parametrize("method", [*methods("lbfgs"), "lm"])
@pytest.mark.parametrize("off", [0.0, pytest.param(1e-9, marks=eager_only)])
def test_a_fit_from_the_optimum_is_a_success_at_once(method, off, float64):
    choice = Choice()
    best, least = choice.best()
    w, result = choice.fit(method, start=best * (1 + off))
    assert result.status in ENDS, result
    assert result.evaluations <= 20
    assert choice.loss(w) <= least * (1 + 1e-12)


@pytest.mark.parametrize("method", METHODS if BACKEND == "torch" else [])
def test_minimize_from_the_optimum_is_a_success_at_once(method, float64):
    choice = Choice()
    best, least = choice.best()
    result, _ = minimize(choice.of_tensors, best, method)
    assert result.status in ENDS, result
    assert result.evaluations <= 20
    assert result.loss <= least * (1 + 1e-12)
