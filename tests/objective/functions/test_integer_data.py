"""Integer data, and arrays of several lengths."""

import keras
import numpy as np
import pytest
from keras import ops

import kormos
from conftest import BACKEND


@pytest.fixture
def b():
    return keras.Variable(np.zeros(2), dtype="float32")


# Integers beyond the range of int32, and integers whose squares are beyond it.
LARGE = np.arange(20) * 10**9
SQUARED = np.arange(20) * 10**4


@pytest.mark.parametrize("precision", [None, "float64", "auto"])
def test_integers_of_64_bits_do_not_overflow(b, precision, recwarn):
    def large(data):
        n = ops.cast(data["n"], b.dtype)
        return b[0] + b[1] * n * 1e-9 - data["y"]

    def squared(data):
        n = ops.cast(data["n"] ** 2, b.dtype)
        return b[0] + b[1] * n * 1e-9 - data["y"]

    for fn, n, factors in (
        (large, LARGE, 1e-9 * LARGE),
        (squared, SQUARED, 1e-9 * SQUARED**2),
    ):
        data = {"n": n, "y": 1 + 2 * factors}
        for call in (
            lambda fn=fn, data=data: kormos.least_squares(
                fn, [b], data=data, precision=precision
            ),
            lambda fn=fn, data=data: kormos.minimize(
                lambda rows: fn(rows) ** 2,
                [b],
                "lbfgs",
                data=data,
                precision=precision,
            ),
        ):
            b.assign(np.zeros(2))
            assert call().success
            np.testing.assert_allclose(b.numpy(), [1.0, 2.0], rtol=1e-4)
    texts = [str(w.message) for w in recwarn]
    assert not any("truncated" in text for text in texts)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="others combine them")
def test_tensorflow_says_that_integers_need_a_cast(b):
    with pytest.raises(TypeError) as caught:
        kormos.least_squares(lambda n: b[0] * n, [b], data=np.arange(5))
    assert "keras.ops.cast" in "".join(caught.value.__notes__)


def test_arrays_of_other_lengths_are_named(b):
    x = np.linspace(0.0, 1.0, 20, dtype="float32")

    def line(data):
        return b[0] + b[1] * data["x"] - data["y"]

    with pytest.raises(ValueError, match="arrays with 20 and 10 rows"):
        kormos.least_squares(line, [b], data={"x": x, "y": x[:10]})
    with pytest.raises(ValueError, match="arrays with 20 and 5 rows"):
        kormos.least_squares(line, [b], data={"x": x, "y": x}, sigma=np.ones(5))
