"""The objective agrees with a formula, for any `batch_size`."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
from keras import layers
from keras import ops

import kormos

REDUCTIONS = [
    "sum_over_batch_size",
    "mean",
    "sum",
    "mean_with_sample_weight",
    "none",
]
STEPS, WORDS = 3, 4


@st.composite
def problems(draw):
    """A model of sequences and the data to fit it to."""
    rows = draw(st.integers(1, 9))
    outputs = draw(st.integers(1, 2))
    reductions = [draw(st.sampled_from(REDUCTIONS)) for _ in range(outputs)]
    # TensorFlow rounds other factors to float32.
    factor = st.integers(1, 64).map(lambda n: n / 8)
    # Keras cannot add a regularizer to a loss that is not reduced.
    l2 = 0 if "none" in reductions else draw(st.sampled_from([0, 2.0**-5]))
    return {
        "rows": rows,
        "batch_size": draw(st.integers(1, rows)),
        "inputs": draw(st.integers(1, 2)),
        "outputs": outputs,
        "mask": draw(st.booleans()),
        "reductions": reductions,
        "factors": [draw(factor) for _ in range(outputs)],
        "weighted": draw(st.booleans()),
        "l2": l2,
        "seed": draw(st.integers(0, 2**16)),
    }


class Quartic(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return ops.mean((y_true - y_pred) ** 4, axis=-1)


def build(problem):
    ids = [
        keras.Input((STEPS,), dtype="int32") for _ in range(problem["inputs"])
    ]
    parts = [
        layers.Embedding(WORDS, 2, mask_zero=problem["mask"])(i) for i in ids
    ]
    # The mask of a sum is true where one of its parts has a true one.
    steps = layers.Add()(parts) if len(parts) > 1 else parts[0]
    l2 = keras.regularizers.L2(problem["l2"]) if problem["l2"] else None
    outputs = [
        layers.Dense(1, kernel_regularizer=l2)(steps)
        for _ in range(problem["outputs"])
    ]
    model = keras.Model(ids, outputs)
    kinds = [keras.losses.MeanSquaredError, Quartic]
    model.compile(
        loss=[
            kind(reduction=reduction)
            for kind, reduction in zip(
                kinds, problem["reductions"], strict=False
            )
        ],
        loss_weights=problem["factors"],
    )
    return model


def draw_data(problem):
    random = np.random.RandomState(problem["seed"])
    shape = problem["rows"], STEPS
    x = [random.randint(0, WORDS, shape) for _ in range(problem["inputs"])]
    y = [random.normal(size=(*shape, 1)) for _ in range(problem["outputs"])]
    weights = None
    if problem["weighted"]:
        weights = [
            random.choice([0, 0.5, 1, 2.5], size=shape) for _ in range(len(y))
        ]
    if len(y) == 1:
        y, weights = y[0], weights[0] if weights else None
    return {"x": x, "y": y, "sample_weight": weights}


def formula(problem, data, theta):
    """The loss in NumPy, of the parameters in the model's order."""
    parts = np.split(theta, np.cumsum([2 * WORDS] * problem["inputs"]))
    tables, heads = parts[:-1], parts[-1].reshape(-1, 3)
    steps = sum(
        table.reshape(WORDS, 2)[ids]
        for table, ids in zip(tables, data["x"], strict=True)
    )
    mask = np.ones(steps.shape[:2])
    if problem["mask"]:
        mask = np.any([ids != 0 for ids in data["x"]], axis=0).astype(float)
    targets, weights = data["y"], data["sample_weight"]
    if problem["outputs"] == 1:
        targets, weights = [targets], weights is not None and [weights]
    total = problem["l2"] * np.sum(heads[:, :2] ** 2)
    for i, (head, power) in enumerate(zip(heads, [2, 4], strict=False)):
        errors = steps @ head[:2] + head[2] - targets[i][..., 0]
        weight = mask * weights[i] if weights else mask
        divisor = {
            "sum": 1,
            "none": mask.size,
            "mean_with_sample_weight": weight.sum(),
        }.get(problem["reductions"][i], mask.sum())
        # A mean over no entries is zero.
        term = np.sum(weight * errors**power) / (divisor or np.inf)
        total += problem["factors"][i] * term
    return total


def assert_close(actual, expected):
    """Compares numbers to 1e-12 of the largest."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12 * scale)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(problem=problems())
def test_exact_for_every_batch_size(problem):
    with kormos.precision("float64"):
        model, data = build(problem), draw_data(problem)
        whole = kormos.Objective(model, **data, batch_size=problem["rows"])
        chunked = kormos.Objective(
            model, **data, batch_size=problem["batch_size"]
        )
        theta = np.random.RandomState(1).normal(size=whole.size)
        loss, gradient = whole.value_and_grad(theta)
        chunked_loss, chunked_gradient = chunked.value_and_grad(theta)
        assert_close(loss, formula(problem, data, theta))
        assert_close(chunked_loss, loss)
        assert_close(chunked_gradient, gradient)


@pytest.mark.parametrize("rows", [60_000, 60_013])
def test_many_rows_are_cut_and_the_loss_is_the_same(float64, rows):
    # 60,013 is a prime.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 2))
    y = np.sin(x[:, :1])
    keras.utils.set_random_seed(0)
    hidden = [layers.Dense(100, activation="tanh"), layers.Dense(1)]
    model = keras.Sequential([keras.Input((2,)), *hidden])
    model.compile(loss="mse")
    cut = kormos.Objective(model, x, y)
    whole = kormos.Objective(model, x, y, batch_size=rows)
    assert cut.chunk_rows < rows == whole.chunk_rows
    theta = whole.initial_position()
    loss, gradient = whole.value_and_grad(theta)
    cut_loss, cut_gradient = cut.value_and_grad(theta)
    assert_close(cut_loss, loss)
    assert_close(cut_gradient, gradient)
