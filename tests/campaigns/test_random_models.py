"""Random models: the loss is `evaluate`'s, and its derivatives are right.

A dozen models are drawn in the suite, always the same ones. To draw others, set
`RANDOM_MODELS` to their number: see `CONTRIBUTING.md`.
"""

import os

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck
from hypothesis import given
from hypothesis import settings

import kormos
from conftest import BACKEND
from conftest import TIGHT
from random_models import build
from random_models import draw_data
from random_models import problems

# Many layers here drop the mask, and Keras warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:.*destroy the mask")

MANY = os.environ.get("RANDOM_MODELS")

# Differences of float64 losses over a step, and over half of it.
STEP, ERROR = 1e-4, 1e-6


def has_rough_gradient(problem):
    """Whether the backend's own derivatives are inexact."""
    if BACKEND != "jax":
        return False
    # Its attention computes a softmax in float32. XLA without optimization,
    # which the tests use, may round an input of `max` in two ways. Then no
    # input equals the largest, and the gradient is divided by zero.
    attends = {"attention", "causal attention"} & set(problem["layers"])
    return bool(attends) or problem["end"] == "max"


def is_miscounted(problem):
    """Whether Keras' `evaluate` loses the penalty of a layer's first call."""
    penalized = {"activity", "activity layer"} & set(problem["layers"])
    return BACKEND == "jax" and bool(penalized) and problem["siamese"]


def check(problem):
    hypothesis.assume(not is_miscounted(problem))
    with kormos.precision("float64"):
        model, data = build(problem), draw_data(problem)
        if model.trainable_variables:
            if has_rough_gradient(problem):
                check_loss(model, data, problem, 1e-6)
            else:
                check_loss(model, data, problem, 100 * TIGHT)
                check_gradient(model, data, problem)
    keras.backend.clear_session(free_memory=False)


def objective_of(model, data, problem):
    return kormos.Objective(model, **data, batch_size=problem["batch_size"])


def evaluate(model, data, problem):
    # Keras averages batches by their rows, which weights and masks forbid.
    logs = model.evaluate(
        **data, batch_size=problem["rows"], verbose=0, return_dict=True
    )
    return logs["loss"]


def check_loss(model, data, problem, tolerance):
    objective = objective_of(model, data, problem)
    expected = evaluate(model, data, problem)
    actual = float(objective.value(objective.initial_position()))
    assert abs(actual - expected) <= tolerance * max(1.0, abs(expected))


def check_gradient(model, data, problem):
    """Compares the gradient with differences of Keras' own loss."""
    objective = objective_of(model, data, problem)
    theta = objective.initial_position()
    loss, gradient = objective.value_and_grad(theta)
    direction = np.random.RandomState(problem["seed"]).normal(size=theta.size)

    def change(step):
        losses = []
        for moved in (theta + step * direction, theta - step * direction):
            objective.assign(moved)
            losses.append(evaluate(model, data, problem))
        objective.assign(theta)
        return (losses[0] - losses[1]) / (2 * step)

    coarse, fine = change(STEP), change(STEP / 2)
    # There are none across a kink.
    hypothesis.assume(abs(fine - coarse) <= ERROR * (1 + abs(fine)))
    # Richardson's extrapolation.
    slope = (4 * fine - coarse) / 3
    size = np.linalg.norm(gradient) * np.linalg.norm(direction)
    error = abs(gradient @ direction - slope)
    assert error <= ERROR * (1 + abs(float(loss)) + size)


@settings(
    max_examples=int(MANY or 12),
    deadline=None,
    derandomize=not MANY,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
@given(problem=problems())
def test_losses_and_gradients(problem):
    check(problem)


# Problems that were found earlier.
FOUND = {
    "siamese": False,
    "mask": True,
    "frozen": False,
    "heads": [
        {
            "loss": "MeanSquaredError",
            "reduction": "sum_over_batch_size",
            "units": 2,
            "factor": 1.0,
        }
    ],
    "weights": "none",
    "rows": 6,
    "batch_size": 1,
    "seed": 2383,
}


@pytest.mark.parametrize(
    "name",
    [
        "multiplied attention",
        pytest.param(
            "attention",
            marks=[
                pytest.mark.skipif(
                    BACKEND == "jax", reason="a softmax of float32"
                ),
            ],
        ),
    ],
)
def test_masked_attention(name, float64):
    problem = FOUND | {"kind": "tokens", "layers": [name], "end": "flatten"}
    model, data = build(problem), draw_data(problem)
    check_loss(model, data, problem, 100 * TIGHT)
    check_gradient(model, data, problem)


@pytest.mark.xfail(
    BACKEND == "jax",
    strict=True,
    reason="Keras' `evaluate` counts the penalty of the last call alone",
)
def test_a_penalty_of_a_layer_that_is_called_twice(float64):
    problem = FOUND | {
        "kind": "vectors",
        "layers": ["activity"],
        "end": "none",
        "siamese": True,
    }
    model, data = build(problem), draw_data(problem)
    check_loss(model, data, problem, 100 * TIGHT)
