"""Standard errors of the NIST StRD: the certified standard deviations."""

import keras
import numpy as np
import pytest
from keras import ops

import kormos
import nist
import nist_linear
from conftest import BACKEND

NONLINEAR = {problem.name: problem for problem in nist.problems()}
LINEAR = {problem.name: problem for problem in nist_linear.problems()}

# JAX and TensorFlow take seconds to compile each.
NAMES = ["BoxBOD", "MGH10", "Hahn1"]
if BACKEND == "torch":
    # The residuals of Lanczos1, 1e-13, are not far from the rounding of its
    # data in float64. At 50 digits, the least squares of the decimal data have
    # all certified deviations to 11 digits, and those of the rounded data lie
    # 4.3e-4 below: no program in float64 has more than three digits.
    NAMES = [name for name in NONLINEAR if name != "Lanczos1"]

pytestmark = pytest.mark.usefixtures("float64")


def digits(values, certified):
    """The digits that are right, in the worst value."""
    error = np.max(np.abs(values - certified) / np.abs(certified))
    return -np.log10(np.maximum(error, 1e-15))


def summary_of(residuals, start, **settings):
    v = keras.Variable(np.array(start, "float64"), dtype="float64")
    result = kormos.least_squares(
        lambda: residuals(ops.convert_to_tensor(v)), [v]
    )
    return result.summary(**settings)


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_nine_digits_of_the_certified_standard_deviations(name, start):
    problem = NONLINEAR[name]
    summary = summary_of(problem.residuals, problem.starts[start])
    assert digits(summary.standard_errors, problem.deviations) >= 9
    left = len(problem.x) - len(problem.certified)
    deviation = np.sqrt(problem.rss / left)
    assert digits(summary.residual_standard_error, deviation) >= 9
    assert summary.degrees_of_freedom == left
    assert not summary.notes


def test_three_digits_where_float64_holds_no_more():
    problem = NONLINEAR["Lanczos1"]
    summary = summary_of(problem.residuals, problem.starts[1])
    assert digits(summary.standard_errors, problem.deviations) >= 2.5


def linear_summary(name):
    problem = LINEAR[name]
    design, y = map(ops.convert_to_tensor, (problem.design, problem.y))
    return problem, summary_of(
        lambda b: ops.matmul(design, b) - y,
        np.zeros(len(problem.certified)),
        targets=problem.y,
    )


@pytest.mark.parametrize(
    "name, least",
    [
        ("Longley", 10),
        # Its columns are so similar that other programs drop one.
        ("Filip", 7),
        ("Wampler3", 8),
        ("Wampler4", 8),
        ("Wampler5", 8),
    ],
)
def test_digits_of_badly_conditioned_regressions(name, least):
    problem, summary = linear_summary(name)
    assert digits(summary.standard_errors, problem.deviations) >= least
    assert digits(summary.residual_standard_error, problem.deviation) >= least
    assert summary.r_squared == pytest.approx(problem.r_squared, abs=1e-9)
    assert summary.is_identified.all()


@pytest.mark.parametrize("name", ["Wampler1", "Wampler2"])
def test_an_exact_fit_has_no_errors(name):
    problem, summary = linear_summary(name)
    assert summary.standard_errors == pytest.approx(
        np.zeros(6), abs=1e-8 * np.abs(problem.certified).max()
    )
    assert summary.r_squared == pytest.approx(1)
    assert not summary.notes
