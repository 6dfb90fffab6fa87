"""Likelihoods whose fits are difficult: without a maximum, or in odd units."""

import keras
import numpy as np
from keras import layers
from keras import ops


def tensor(values):
    return ops.convert_to_tensor(np.asarray(values, dtype="float64"))


def weibull(v):
    """Minus a log-likelihood whose one event is the longest duration."""
    logs = np.log([13000.0, 13900, 12100, 7600, 8100])
    events = np.array([0.0, 1, 0, 0, 0])
    z = (tensor(logs) - v[0]) * ops.exp(v[1])
    return -ops.sum(tensor(events) * (v[1] - tensor(logs) + z) - ops.exp(z))


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
        """Fits a layer without bias; returns the parameters and the result."""
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
