"""Residuals that are broadcast to a square by mistake."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops

import kormos

X = np.linspace(0, 1, 9, dtype="float32")
Y = np.sin(5 * X)


def fit(residuals, data=None, size=2):
    b = keras.Variable(np.linspace(1, 2, size), dtype="float32")
    kormos.least_squares(
        lambda *data: residuals(ops.convert_to_tensor(b), *data),
        [b],
        data=data,
        max_iterations=2,
    )


def column(b):
    return ops.reshape(b[0] + b[1] * ops.convert_to_tensor(X), (-1, 1))


def y():
    return ops.convert_to_tensor(Y)


MISTAKES = {
    "less": lambda b: column(b) - y(),
    "weighted": lambda b: (column(b) - y()) * ops.exp(y()),
    "in a block": lambda b: {"p": b, "q": ops.exp(column(b)) - y()},
    "the other way": lambda b: y() - column(b),
}


@pytest.mark.parametrize("how", MISTAKES)
def test_a_square_by_mistake_warns(how):
    with pytest.warns(UserWarning, match=r"shape \(9, 9\)") as record:
        fit(MISTAKES[how])
    (warning,) = (w for w in record if "(9, 9)" in str(w.message))
    assert warning.filename == __file__
    assert "ops.reshape" in str(warning.message)


def test_a_square_of_data_and_what_is_held_warns():
    with pytest.warns(UserWarning, match=r"shape \(9, 9\)"):
        fit(lambda b, x: b[0] + b[1] * x - y(), X[:, None])


def test_a_square_of_data_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"\(3, 3\) for 3; .*ops.reshape"):
        fit(lambda b, d: b[0] + d["x"] - d["y"], {"x": X[:, None], "y": Y})


def test_squares_of_their_own_do_not_warn():
    square = np.random.default_rng(0).normal(size=(4, 4)).astype("float32")
    factors = {
        "a matrix": lambda b: ops.convert_to_tensor(square) - ops.outer(b, b),
        "flat": lambda b: ops.reshape(column(b[:2]) - y(), (-1,)),
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Block")
        for residuals in factors.values():
            fit(residuals, size=4)
        fit(lambda b, x: x - x[:, :1] * b, square, size=4)
