"""Activations, as functions and as layers."""

import numpy as np
from keras import activations
from keras import layers
from keras import ops
from scipy import special

from audit.formulas import absolute
from audit.formulas import hard_sigmoid
from audit.formulas import log_softmax
from audit.formulas import sigmoid
from audit.formulas import softmax
from audit.formulas import softplus
from audit.inputs import MASK
from audit.inputs import X
from audit.making import of_x
from audit.measuring import Case


def gelu(x):
    return x * (1 + special.erf(x / np.sqrt(2))) / 2


def gelu_tanh(x):
    return x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2


def selu(x):
    scale, alpha = 1.0507009873554804934193, 1.6732632423543772848170
    return scale * np.where(x > 0, x, alpha * np.expm1(x))


def relu(x, slope=0.0, peak=np.inf, threshold=0.0):
    return np.where(
        x >= threshold, np.minimum(x, peak), slope * (x - threshold)
    )


def sparsemax(x):
    # Keras subtracts 1 from the sum of the cumulative sums; the paper's
    # threshold has the last of them alone.
    z = -np.sort(-x, axis=-1)
    sums, ranks = np.cumsum(z, axis=-1), np.arange(1, x.shape[-1] + 1)
    support = z > (sums - 1) / ranks
    total = np.sum(np.where(support, sums, 0), -1, keepdims=True)
    return np.maximum(x - (total - 1) / support.sum(-1, keepdims=True), 0)


ACTIVATIONS = {
    "celu": of_x(
        activations.celu,
        lambda x: np.where(x > 0, x, 0.7 * np.expm1(x / 0.7)),
        alpha=0.7,
    ),
    "elu": of_x(
        activations.elu,
        lambda x: np.where(x > 0, x, 0.7 * np.expm1(x)),
        alpha=0.7,
    ),
    "exponential": of_x(activations.exponential, np.exp),
    "gelu": of_x(activations.gelu, gelu),
    "gelu, approximate": of_x(activations.gelu, gelu_tanh, approximate=True),
    "glu": of_x(activations.glu, lambda x: x[:, :3] * sigmoid(x[:, 3:])),
    "hard_shrink": of_x(
        activations.hard_shrink, lambda x: np.where(absolute(x) > 0.5, x, 0)
    ),
    "hard_sigmoid": of_x(activations.hard_sigmoid, hard_sigmoid),
    "hard_silu": of_x(activations.hard_silu, lambda x: x * hard_sigmoid(x)),
    "hard_tanh": of_x(activations.hard_tanh, lambda x: np.clip(x, -1, 1)),
    "leaky_relu": of_x(activations.leaky_relu, lambda x: relu(x, 0.2)),
    "linear": of_x(activations.linear, lambda x: x),
    "log_sigmoid": of_x(activations.log_sigmoid, lambda x: -softplus(-x)),
    "log_softmax": of_x(activations.log_softmax, log_softmax),
    "mish": of_x(activations.mish, lambda x: x * np.tanh(softplus(x))),
    "relu": of_x(activations.relu, relu),
    "relu, options": of_x(
        activations.relu,
        lambda x: relu(x, 0.1, 1.7, 0.3),
        negative_slope=0.1,
        max_value=1.7,
        threshold=0.3,
    ),
    "relu6": of_x(activations.relu6, lambda x: np.clip(x, 0, 6), 3 * X),
    "selu": of_x(activations.selu, selu),
    "sigmoid": of_x(activations.sigmoid, sigmoid),
    "silu": of_x(activations.silu, lambda x: x * sigmoid(x)),
    "soft_shrink": of_x(
        activations.soft_shrink,
        lambda x: x - np.clip(x, -0.3, 0.3),
        threshold=0.3,
    ),
    "softmax": of_x(activations.softmax, softmax),
    "softplus": of_x(activations.softplus, softplus),
    "softsign": of_x(activations.softsign, lambda x: x / (1 + absolute(x))),
    "sparse_plus": of_x(
        activations.sparse_plus,
        lambda x: np.where(x <= -1, 0, np.where(x >= 1, x, (x + 1) ** 2 / 4)),
    ),
    "sparse_sigmoid": of_x(
        activations.sparse_sigmoid, lambda x: np.clip((x + 1) / 2, 0, 1)
    ),
    "sparsemax": of_x(activations.sparsemax, sparsemax),
    "squareplus": of_x(
        activations.squareplus, lambda x: (x + np.sqrt(x**2 + 4)) / 2
    ),
    "tanh": of_x(activations.tanh, np.tanh),
    "tanh_shrink": of_x(activations.tanh_shrink, lambda x: x - np.tanh(x)),
    "threshold": of_x(
        activations.threshold,
        lambda x: np.where(x > 0.3, x, 0.7),
        threshold=0.3,
        default_value=0.7,
    ),
    # Layers of activations.
    "ELU": Case(
        lambda: layers.ELU(0.7),
        lambda x: np.where(x > 0, x, 0.7 * np.expm1(x)),
        (X,),
    ),
    "LeakyReLU": Case(layers.LeakyReLU, lambda x: relu(x, 0.3), (X,)),
    "PReLU": Case(layers.PReLU, relu, (X,)),
    "ReLU": Case(
        lambda: layers.ReLU(1.7, 0.1, 0.3),
        lambda x: relu(x, 0.1, 1.7, 0.3),
        (X,),
    ),
    "Softmax": Case(layers.Softmax, softmax, (X,)),
    "Softmax, mask": Case(
        layers.Softmax,
        lambda x: softmax(np.where(MASK, x, -1e300)),
        (X[:2, :5],),
        lambda made, x: made(x, mask=ops.convert_to_tensor(MASK)),
    ),
    "Activation": Case(lambda: layers.Activation("tanh"), np.tanh, (X,)),
}
