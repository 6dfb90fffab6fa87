"""Undetermined parameters are reported; the ranks are known by design."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from conftest import BACKEND

METHODS = ["lbfgs", "l-bfgs-b", "lm"]

rng = np.random.default_rng(0)
ROWS = 300
GROUP = rng.integers(0, 3, ROWS)
DUMMIES = np.eye(3)[GROUP]
Z = rng.normal(size=ROWS)
ONE = np.ones(ROWS)
COUNTS = rng.poisson(np.exp(0.3 + 0.5 * (GROUP == 1) + 0.2 * Z)) * 1.0
EVENTS = (rng.uniform(size=ROWS) < 1 / (1 + np.exp(-Z))) * 1.0


def regression(x, method, activation, loss):
    model = keras.Sequential(
        [
            keras.Input((x.shape[1],)),
            layers.Dense(
                1, activation, use_bias=False, kernel_initializer="zeros"
            ),
        ]
    )
    model.compile(method, loss=loss)
    return model


def said(x, y, method, activation, loss):
    model = regression(x, method, activation, loss)
    result = model.fit(x, y[:, None], epochs=500, verbose=0).result
    assert result.success
    return result.message


def named(text):
    """The rows of the kernel that a message names."""
    return [i for i in range(9) if f"kernel[{i}, 0]" in text]


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("method", METHODS)
def test_the_dummy_trap_and_a_column_twice(method, precision):
    """The rank is 4, not 6. The other column is determined."""
    other = rng.normal(size=ROWS)
    x = np.c_[ONE, DUMMIES, Z, Z, other]
    with kormos.precision(precision):
        text = said(x, COUNTS, method, "exponential", "poisson")
    assert "do not determine" in text and "2 directions" in text
    assert named(text) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("method", METHODS)
def test_a_column_without_effect(method):
    x = np.c_[ONE, Z, 0 * Z]
    text = said(x, EVENTS, method, "sigmoid", "binary_crossentropy")
    assert "without effect" in text and named(text) == [2]


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("method", METHODS)
def test_a_group_without_events(method, precision):
    y = np.where(GROUP == 2, 0.0, EVENTS)
    x = np.c_[ONE, DUMMIES[:, 1:], Z]
    with kormos.precision(precision):
        text = said(x, y, method, "sigmoid", "binary_crossentropy")
    assert "do not bound" in text and named(text) == [2]


@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
@pytest.mark.parametrize("method", METHODS)
def test_complete_separation(method, float64):
    x, y = np.c_[ONE, Z], (Z > 0) * 1.0
    model = regression(x, method, "sigmoid", "binary_crossentropy")
    result = model.fit(x, y[:, None], epochs=500, verbose=0).result
    # Keras clips probabilities on some backends; on others the loss falls for
    # as long as a fit goes on.
    is_told = "do not bound" in result.message and 1 in named(result.message)
    assert is_told or result.status == "iteration limit"


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "x, y, activation, loss",
    [
        (np.c_[ONE, DUMMIES[:, 1:], Z], COUNTS, "exponential", "poisson"),
        (np.c_[ONE, 1e3 * Z], EVENTS, "sigmoid", "binary_crossentropy"),
        # The slope is zero to rounding.
        (np.c_[ONE, Z, Z**2], Z**2, None, "mse"),
    ],
    ids=["poisson", "logit", "zero"],
)
def test_nothing_is_said_of_what_is_determined(
    x, y, activation, loss, method, precision
):
    with kormos.precision(precision):
        text = said(x, y, method, activation, loss)
    assert "The data" not in text


@pytest.mark.parametrize("method", ["ssbroyden", "newton-cg", "lm"])
def test_functions_of_variables(method, float64):
    """A product determines neither of its factors."""
    a, b, c = (keras.Variable(v, dtype="float64") for v in (1.0, 2.0, 3.0))
    x = ops.convert_to_tensor(np.linspace(0, 1, 20))

    def residuals():
        return a * b * x + c - ops.exp(x)

    if method == "lm":
        result = kormos.least_squares(residuals, [a, b, c])
    else:
        result = kormos.minimize(
            lambda: ops.sum(residuals() ** 2), [a, b, c], method
        )
    assert result.success
    assert "same loss, along 1 direction" in result.message


def test_a_bound_is_not_open(float64):
    y = np.where(GROUP == 2, 0.0, EVENTS)
    x = np.c_[ONE, DUMMIES[:, 1:], Z]
    model = regression(x, "l-bfgs-b", "sigmoid", "binary_crossentropy")
    result = model.fit(
        x, y[:, None], epochs=500, verbose=0, bounds={".*": (-5, 5)}
    ).result
    assert result.success and "The data" not in result.message


@pytest.mark.skipif(BACKEND != "torch", reason="compiles for little")
def test_it_costs_the_count_of_evaluations_nothing(float64):
    x = np.c_[ONE, Z]
    model = regression(x, "lbfgs", "sigmoid", "binary_crossentropy")
    first = model.fit(x, EVENTS[:, None], epochs=100, verbose=0).result
    again = model.fit(x, EVENTS[:, None], epochs=100, verbose=0, resume=True)
    assert again.result.success and again.result.loss <= first.loss
    assert again.history["fg_evals"][-1] == again.result.evaluations


def test_check_finds_it_beforehand():
    x = np.c_[ONE, DUMMIES, Z, 0 * Z]
    model = regression(x, "lbfgs", "exponential", "poisson")
    report = kormos.check(model, x, COUNTS[:, None])
    (finding,) = (f for f in report.findings if f.test == "identification")
    assert not finding.passed and not finding.is_fatal
    assert named(" ".join(finding.names)) == [0, 1, 2, 3, 5]
    model = regression(x[:, 1:5], "lbfgs", "exponential", "poisson")
    report = kormos.check(model, x[:, 1:5], COUNTS[:, None])
    (finding,) = (f for f in report.findings if f.test == "identification")
    assert finding.passed
