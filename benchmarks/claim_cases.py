"""The problems of the claim campaign besides CUTEst: functions and networks.

A case has a `name`, a `start`, the `best` known value or NaN, and its own
`limits`. `fit` runs kormos from any point. `value` and `rounding` return the
loss at a point and its rounding without kormos.
"""

import keras
import numpy as np
from perceptrons import Perceptron

import kormos
import mgh
import nist
import trials

TARGET_SCALES = [10.0**k for k in range(-12, 13, 6)]
INPUT_SCALES = [10.0**k for k in (-6, -3, 3, 6)]


class FunctionCase:
    """Residuals of a vector, in `keras.ops`: their sum of squares is the loss.

    `lm` gets the residuals, and other methods the loss.

    Args:
        name: its name in tables.
        residuals: function of a tensor.
        start: the start.
        best: the least value known.
    """

    has_residuals = True
    limits = {}

    def __init__(self, name, residuals, start, best):
        self.name, self.best, self._given = name, best, residuals
        self.start = np.array(start, dtype="float64")

    def _residuals(self, theta):
        return self._given(theta)

    def _loss(self, theta):
        return keras.ops.sum(self._residuals(theta) ** 2)

    def value(self, theta):
        with kormos.precision("float64"):
            return float(self._loss(keras.ops.convert_to_tensor(theta)))

    def rounding(self, theta):
        return trials.rounding_at(self.value, theta)

    def fit(self, method, theta, losses=None, **limits):
        with kormos.precision("float64"):
            variable = keras.Variable(theta, dtype="float64")
            if method == "lm":
                result = kormos.least_squares(
                    lambda: self._residuals(variable.value),
                    [variable],
                    reduction="sum",
                    **limits,
                )
            else:
                result = kormos.minimize(
                    lambda: self._loss(variable.value),
                    [variable],
                    method,
                    loss_callback=None if losses is None else losses.append,
                    **limits,
                )
            return result, np.array(keras.ops.convert_to_numpy(variable))


def mgh_cases():
    # Any of the published minima counts as solved.
    return [
        FunctionCase(p.name, p.residuals, p.x0, max(p.minima))
        for p in mgh.problems()
    ]


def nist_cases():
    return [
        FunctionCase(f"{p.name}, start {i + 1}", p.residuals, start, p.rss)
        for p in nist.problems()
        for i, start in enumerate(p.starts)
    ]


def networks_cases():
    """Small networks in many units: with noise, and with room to fit."""
    small, large = (3, 0.1), (12, 0.0)
    units = [(*small, 1.0, targets) for targets in TARGET_SCALES]
    units += [(*large, 1.0, targets) for targets in TARGET_SCALES]
    units += [(*small, inputs, 1.0) for inputs in INPUT_SCALES]
    dtypes = ("float64", "float32")
    return [network(dtype, *unit) for dtype in dtypes for unit in units]


def network(dtype, hidden, noise, inputs, targets):
    """A network on a sine, inputs and targets multiplied by their units."""
    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, (200, 1))
    y = np.sin(3 * x) + noise * random.normal(size=x.shape)
    name = (
        f"1-{hidden}-1, noise {noise:g}, inputs x {inputs:g}, "
        f"targets x {targets:g}, {dtype}"
    )
    return Perceptron(name, inputs * x, targets * y, hidden, dtype)
