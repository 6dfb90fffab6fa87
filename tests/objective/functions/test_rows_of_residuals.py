"""Residuals whose rows depend on one another are refused."""

import keras
import numpy as np
import pytest
from keras import ops

import kormos


@pytest.fixture
def fitted():
    """A linear function of 300 inputs in float32, with an exact fit."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 300)).astype("float32")
    v = keras.Variable(rng.standard_normal((300, 1)), dtype="float32")
    y = np.float64(x) @ np.float64(ops.convert_to_numpy(v))
    return v, {"x": x, "y": np.float32(y)}


def test_rows_that_are_only_rounding_are_not_refused(fitted):
    """The residuals are rounding errors, which differ with the batch size."""
    v, data = fitted
    result = kormos.least_squares(
        lambda data: ops.matmul(data["x"], v) - data["y"], [v], data=data
    )
    assert result.success
    assert result.loss < 1e-10


def test_rows_that_mix_are_refused_at_a_solution_too(fitted):
    v, data = fitted

    def residuals(data):
        own = ops.matmul(data["x"], v) - data["y"]
        return own + ops.mean(own)

    with pytest.raises(ValueError, match="changes with other rows"):
        kormos.least_squares(residuals, [v], data=data)


@pytest.mark.parametrize(
    "mixed",
    [
        lambda own: ops.cumsum(own, axis=0),
        lambda own: ops.flip(ops.cumsum(ops.flip(own, 0), axis=0), 0),
        lambda own: ops.concatenate([own[:1], own[1:] - own[:-1]]),
        lambda own: ops.concatenate([own[:-1] - own[1:], own[-1:]]),
        lambda own: own * ops.arange(1.0, 1.0 + ops.shape(own)[0])[:, None],
    ],
    ids=["sums", "sums from the end", "changes", "changes back", "places"],
)
def test_rows_that_depend_on_neighbors_or_places_are_refused(fitted, mixed):
    """Each keeps the first or the last row as it is."""
    v, data = fitted
    data["y"] = data["y"] + 1.0
    with pytest.raises(ValueError, match="changes with other rows"):
        kormos.least_squares(
            lambda data: mixed(ops.matmul(data["x"], v) - data["y"]),
            [v],
            data=data,
        )


def test_residuals_of_some_rows_only_are_refused(fitted):
    """A few rows, with which a function is tried, do not show it."""
    v, data = fitted
    with pytest.raises(ValueError, match=r"shape \(7, 1\) for 20 rows"):
        kormos.least_squares(
            lambda data: (ops.matmul(data["x"], v) - data["y"])[:7],
            [v],
            data=data,
        )


def test_an_error_names_the_rows_with_which_a_function_was_tried(fitted):
    v, data = fitted

    def residuals(data):
        return ops.reshape(ops.matmul(data["x"], v) - data["y"], (-1, 4))

    with pytest.raises(Exception) as raised:
        kormos.least_squares(residuals, [v], data=data)
    assert "any number of rows" in raised.value.__notes__[-1]
