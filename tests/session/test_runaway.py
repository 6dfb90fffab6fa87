"""A loss without a minimum is named, with the parameter that ran away."""

import keras
import numpy as np
import pytest
from keras import ops

import kormos

rng = np.random.default_rng(0)
X = np.column_stack([np.ones(50), rng.normal(size=(50, 2))])
SEPARATED = (X[:, 1] > 0).astype("float64")
# One observation of each class is on the other side.
MIXED = np.where(np.abs(X[:, 1]) == np.abs(X[:, 1]).max(), 0, SEPARATED)
MIXED = np.where(X[:, 1] == X[:, 1].min(), 1, MIXED)


def logit(y, method, **kwargs):
    b = keras.Variable(np.zeros(3), dtype="float32", name="b")

    def losses(data):
        logits = ops.sum(data["x"] * b, axis=-1)
        return ops.softplus(logits) - data["y"] * logits

    data = {"x": X, "y": y}
    return kormos.minimize(
        losses, [b], method, data=data, precision="float64", **kwargs
    )


@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
@pytest.mark.parametrize("method", ["newton", "lbfgs"])
def test_classes_that_can_be_separated(method):
    result = logit(SEPARATED, method, max_iterations=300)
    # Where rounding ends the run of Newton's method depends on the backend.
    assert result.status in ("unbounded", "iteration limit")
    assert not result.success
    assert "b[1] ran from 0 to" in result.message
    assert "falls on towards zero" in result.message
    assert logit(MIXED, method).success


def test_a_minimum_of_zero_far_from_the_start():
    v = keras.Variable(np.zeros(2), dtype="float32")
    result = kormos.minimize(
        lambda: ops.sum((v - 1e6) ** 4 + (v - 1e6) ** 2),
        [v],
        "lbfgs",
        precision="float64",
    )
    assert result.success and "ran from" not in result.message
    np.testing.assert_allclose(v.numpy(), 1e6, rtol=1e-9)


@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
def test_a_loss_that_falls_in_proportion_below_zero():
    v = keras.Variable(np.ones(2), dtype="float32")
    result = kormos.minimize(
        lambda: -ops.sum(ops.sqrt(1 + v**2)),
        [v],
        "dense-bfgs",
        precision="float64",
        max_iterations=30,
    )
    assert not result.success
    assert "the loss falls on beyond" in result.message
