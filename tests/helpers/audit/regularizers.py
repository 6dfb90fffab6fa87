"""Regularizers and constraints."""

import keras
import numpy as np
from keras import layers

from audit.formulas import EPSILON
from audit.formulas import absolute
from audit.formulas import unit
from audit.inputs import X
from audit.making import layer
from audit.measuring import Case


def orthogonal(x, factor=0.01):
    x = unit(x)
    product = absolute(x @ x.T) * (1 - np.eye(len(x)))
    return factor * np.sum(product) / (len(x) * (len(x) - 1))


def max_norm(x, least=0.0, most=2.0, rate=1.0):
    norms = np.sqrt(np.sum(x**2, 0))
    wanted = rate * np.clip(norms, least, most) + (1 - rate) * norms
    return x * wanted / (EPSILON + norms)


REGULARIZERS = {
    "L1": layer(
        keras.regularizers.L1, lambda x: 0.03 * np.sum(absolute(x)), X, l1=0.03
    ),
    "L2": layer(
        keras.regularizers.L2, lambda x: 0.03 * np.sum(x**2), X, l2=0.03
    ),
    "L1L2": layer(
        keras.regularizers.L1L2,
        lambda x: np.sum(0.01 * absolute(x) + 0.03 * x**2),
        X,
        l1=0.01,
        l2=0.03,
    ),
    "OrthogonalRegularizer": layer(
        keras.regularizers.OrthogonalRegularizer, orthogonal, X, factor=0.01
    ),
    "ActivityRegularization": Case(
        lambda: layers.ActivityRegularization(0.01, 0.03),
        lambda x: np.sum(0.01 * absolute(x) + 0.03 * x**2) / len(x),
        (X,),
        lambda made, x: (made(x), sum(made.losses))[1],
    ),
    "MaxNorm": layer(keras.constraints.MaxNorm, max_norm, X, max_value=2.0),
    "MinMaxNorm": layer(
        keras.constraints.MinMaxNorm,
        lambda x: max_norm(x, 0.7, 1.9, 0.3),
        X,
        min_value=0.7,
        max_value=1.9,
        rate=0.3,
    ),
    "NonNeg": layer(keras.constraints.NonNeg, lambda x: np.maximum(x, 0), X),
    "UnitNorm": layer(
        keras.constraints.UnitNorm,
        lambda x: x / (EPSILON + np.sqrt(np.sum(x**2, 0))),
        X,
    ),
}
