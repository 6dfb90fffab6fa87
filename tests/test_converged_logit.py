"""A logit whose columns are in units far apart, and fits from its optimum.

The optimum is that of Newton's method in NumPy, on columns of size one.
"""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

from conftest import BACKEND
from native import METHODS
from native import eager_only
from native import methods
from native import minimize

ENDS = ("converged", "noise floor")


def tensor(values):
    return ops.convert_to_tensor(np.asarray(values, dtype="float64"))


class Choice:
    """A logit with a constant and columns of sizes 1e4, 10, 100 and 1e-4."""

    def __init__(self, rows=400):
        rng = np.random.default_rng(5)
        income = 3e4 + 1e4 * rng.normal(size=rows)
        age = rng.uniform(20, 60, rows)
        others = [100 * rng.normal(size=rows), 1e-4 * rng.normal(size=rows)]
        self.x = np.column_stack([np.ones(rows), income, age, *others])
        self.location = np.r_[0, self.x[:, 1:].mean(axis=0)]
        self.scale = np.r_[1, self.x[:, 1:].std(axis=0)]
        utility = self.standardized() @ [-0.3, 0.9, -0.6, 0.4, 0.7]
        chance = 1 / (1 + np.exp(-utility))
        self.y = (rng.uniform(size=rows) < chance).astype("float64")

    def standardized(self):
        return (self.x - self.location) / self.scale

    def loss(self, w, x=None):
        utility = (self.x if x is None else x) @ w
        return np.mean(np.logaddexp(0, utility) - self.y * utility)

    def best(self):
        """The parameters and the loss, by Newton on columns of size one."""
        x, w = self.standardized(), np.zeros(5)
        for _ in range(40):
            chance = 1 / (1 + np.exp(-x @ w))
            hessian = (x * (chance * (1 - chance))[:, None]).T @ x
            w = w - np.linalg.solve(hessian, x.T @ (chance - self.y))
        own = w / self.scale
        own[0] -= own[1:] @ self.location[1:]
        return own, self.loss(w, x)

    def of_tensors(self, w):
        utility = ops.matmul(tensor(self.x), w)
        return ops.mean(ops.softplus(utility) - tensor(self.y) * utility)

    def fit(self, method, start=None, **settings):
        """By `fit`, a layer without bias: the parameters and the result."""
        model = keras.Sequential(
            [
                keras.Input((5,)),
                layers.Dense(1, use_bias=False, kernel_initializer="zeros"),
            ]
        )
        if start is not None:
            model.set_weights([start[:, None]])
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        model.compile(optimizer=method, loss=loss)
        history = model.fit(
            self.x, self.y[:, None], epochs=2000, verbose=0, **settings
        )
        return model.get_weights()[0][:, 0].astype("float64"), history.result


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
