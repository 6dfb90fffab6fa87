"""Levenberg-Marquardt with its defaults: the NIST StRD, and the MGH set."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

import kormos
import mgh
import nist
from conftest import BACKEND

REGRESSIONS = {problem.name: problem for problem in nist.problems()}
FUNCTIONS = {problem.name: problem for problem in mgh.problems()}

# JAX and TensorFlow take seconds to compile each.
FEW_STARTS = [
    ("MGH10", 0),
    ("BoxBOD", 0),
    ("Eckerle4", 0),
    ("Rat42", 1),
    ("Thurber", 0),
]
FEW_NAMES = ["Helical valley", "Osborne 1", "Chebyquad n=8"]

STARTS = [(name, start) for name in REGRESSIONS for start in (0, 1)]
if BACKEND == "torch":
    FEW_STARTS, FEW_NAMES = STARTS, list(FUNCTIONS)

# The evaluations and products that the 28 starts may take together.
MOST_WORK = 2600


def least_squares(residuals, x0, **kwargs):
    v = keras.Variable(np.array(x0, dtype="float64"), dtype="float64")
    result = kormos.least_squares(
        lambda: residuals(ops.convert_to_tensor(v)), [v], "lm", **kwargs
    )
    return result, v


@functools.cache
def regression(name, start):
    """The result of a start, and the digits of its worst parameter."""
    problem = REGRESSIONS[name]
    result, b = least_squares(problem.residuals, problem.starts[start])
    return result, problem.digits(b)


@pytest.mark.parametrize("name, start", FEW_STARTS)
def test_nine_digits_of_the_certified_parameters(float64, name, start):
    result, digits = regression(name, start)
    assert result.success
    assert digits >= 9
    rows = len(REGRESSIONS[name].x)
    # It is certified to eleven digits. That of Lanczos1, 1e-25, is only
    # rounding.
    expected = pytest.approx(REGRESSIONS[name].rss / rows, rel=1e-9, abs=1e-22)
    assert result.loss == expected


@pytest.mark.parametrize("name", ["Misra1a", "MGH09", "Thurber"])
def test_conjugate_gradients_reach_the_certified_parameters(float64, name):
    problem = REGRESSIONS[name]
    v = keras.Variable(problem.starts[0], dtype="float64")
    result = kormos.least_squares(
        lambda: problem.residuals(ops.convert_to_tensor(v)),
        [v],
        kormos.optimizers.LevenbergMarquardt(linear_solver="cg"),
    )
    assert result.success
    assert problem.digits(v) >= 9
    assert result.iterations <= 100


@pytest.mark.skipif(BACKEND != "torch", reason="takes all starts")
def test_work_of_all_starts(float64):
    results = [regression(*start)[0] for start in STARTS]
    assert len(results) == 28
    work = sum(r.evaluations + r.hessian_products for r in results)
    assert work <= MOST_WORK


@pytest.mark.parametrize("name", FEW_NAMES)
def test_reaches_a_published_minimum(float64, name):
    problem = FUNCTIONS[name]
    result, _ = least_squares(problem.residuals, problem.x0, reduction="sum")
    assert result.success
    assert problem.excess(result.loss, result.initial_loss) <= 0
