"""What Keras computes, next to the same in NumPy: cases of a float64 audit.

A case holds what makes a layer or function of Keras, and a formula in NumPy of
the same inputs and weights. No formula calls Keras, and all of them take
complex numbers: their gradients are complex steps, `f(x + ih).imag / h`, which
are exact but for rounding. `>`, `np.where`, `np.maximum`, `np.clip` and the
like go by the real parts; `np.abs` and `np.linalg.norm` would not.

`python tests/float64_cases.py` prints what deviates on the backend in use.
"""

import contextlib
import math
import sys
import zlib
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import keras
import numpy as np
from keras import activations
from keras import layers
from keras import losses
from keras import metrics
from keras import ops
from scipy import special

import kormos
from kormos import backend

EPSILON = 1e-7  # Keras' `backend.epsilon()`.
STEP = 1e-30


class Case(NamedTuple):
    """A computation, twice.

    Attributes:
        make: returns a layer or another function of tensors.
        formula: the function in NumPy, of the inputs and then the weights.
        inputs: arrays; those of integers are not differentiated.
        call: `(made, *inputs) -> outputs`, where it is more than a call.
        keep: whether weights stay as the layer made them, for the formula too.
    """

    make: Callable
    formula: Callable
    inputs: tuple
    call: Callable = lambda made, *inputs: made(*inputs)
    keep: bool = False


# Measuring


def _zeros(self, shape, **kwargs):
    return np.zeros(shape)


@contextlib.contextmanager
def undrawn():
    """Layers begin at zeros: on JAX each random draw would be compiled."""
    with contextlib.ExitStack() as stack:
        for kind in (
            keras.initializers.Zeros,
            keras.initializers.Ones,
            keras.initializers.Orthogonal,
            keras.initializers.RandomUniform,
            keras.initializers.TruncatedNormal,
            keras.initializers.VarianceScaling,
        ):
            stack.enter_context(mock.patch.object(kind, "__call__", _zeros))
        yield


class _Run:
    """A case with its layer built, its weights drawn, a cotangent of all."""

    def __init__(self, name, case):
        random = np.random.RandomState(zlib.crc32(name.encode()))
        self.case, self.made = case, case.make()
        self.floats = [a for a in case.inputs if a.dtype.kind == "f"]
        self.variables = []
        if isinstance(self.made, layers.Layer):
            case.call(
                self.made,
                *(keras.KerasTensor(a.shape, a.dtype) for a in case.inputs),
            )
            self.variables = [
                v
                for v in self.made.variables
                if "float" in v.dtype and not case.keep
            ]
        self.weights = [_weight(random, v) for v in self.variables]
        self.parts = [*self.floats, *self.weights]
        self.output = self.reference(self.parts)
        self.cotangent = random.uniform(0.5, 1.5, self.output.shape)

    def _arguments(self, parts, convert):
        parts = iter(parts)
        return [
            next(parts) if a.dtype.kind == "f" else convert(a)
            for a in self.case.inputs
        ]

    def reference(self, parts):
        inputs = self._arguments(parts, np.asarray)
        outputs = self.case.formula(*inputs, *parts[len(self.floats) :])
        if not isinstance(outputs, (tuple, list)):
            outputs = [outputs]
        return np.concatenate([np.reshape(o, -1) for o in outputs])

    def reference_gradients(self):
        return complex_steps(
            lambda parts: self.cotangent @ self.reference(parts), self.parts
        )

    def keras(self, parts):
        inputs = self._arguments(parts, ops.convert_to_tensor)
        pairs = zip(self.variables, parts[len(self.floats) :], strict=True)
        with keras.StatelessScope(
            state_mapping=list(pairs), collect_losses=True
        ):
            outputs = self.case.call(self.made, *inputs)
        outputs = keras.tree.flatten(outputs)
        dtypes = {keras.backend.standardize_dtype(o.dtype) for o in outputs}
        assert dtypes == {"float64"}, dtypes
        return ops.concatenate([ops.reshape(o, (-1,)) for o in outputs])


def complex_steps(fn, parts):
    """The gradients of a scalar function of NumPy arrays."""
    gradients = []
    for i, part in enumerate(parts):
        gradient = np.zeros(part.shape)
        for index in np.ndindex(part.shape):
            moved = part.astype(complex)
            moved[index] += 1j * STEP
            value = fn([*parts[:i], moved, *parts[i + 1 :]])
            gradient[index] = value.imag / STEP
        gradients.append(gradient)
    return gradients


def _weight(random, variable):
    if "variance" in variable.name:
        return random.uniform(0.5, 2.0, variable.shape)
    return random.normal(0.0, 0.7, variable.shape)


def deviations(cases):
    """`{name: (of the values, of the gradients)}`, relative to the largest.

    All cases are compiled as one function: a sum, each output with a cotangent
    that is an argument too, so that its gradient is the output.
    """
    with undrawn():
        runs = {name: _Run(name, case) for name, case in cases.items()}
    parts, spans = [], {}
    for name, run in runs.items():
        begin = len(parts)
        parts += [run.cotangent, *run.parts]
        spans[name] = slice(begin, len(parts))

    def total(parts):
        terms = []
        for name, run in runs.items():
            cotangent, *own = parts[spans[name]]
            terms.append(ops.sum(cotangent * run.keras(own)))
        return sum(terms)

    gradients = value_and_gradients(total, parts)[1]
    measured = {}
    for name, run in runs.items():
        output, *own = gradients[spans[name]]
        expected = run.reference_gradients()
        # The key bias of attention has the gradient 0: a scale of all weights.
        largest = max([np.max(np.abs(g)) for g in expected], default=0.0)
        distances = [
            _distance(g, e, largest) for g, e in zip(own, expected, strict=True)
        ]
        measured[name] = (
            _distance(output, run.output, np.max(np.abs(run.output))),
            max(distances, default=0.0),
        )
    return measured


def value_and_gradients(fn, parts, dtype="float64"):
    """`fn(parts)` and its gradients as arrays, of one compiled function."""
    with backend.wide():
        compiled = backend.compile(backend.value_and_grad(fn))
        value, gradients = compiled(
            [ops.convert_to_tensor(p, dtype) for p in parts]
        )
        return (
            ops.convert_to_numpy(value),
            [ops.convert_to_numpy(g) for g in gradients],
        )


def _distance(actual, expected, scale):
    assert actual.shape == expected.shape
    assert np.all(np.isfinite(expected)) and np.all(np.isfinite(actual))
    return float(np.max(np.abs(actual - expected)) / (scale or 1.0))


# Numbers

_random = np.random.RandomState(0)
X = _random.normal(0.0, 2.0, (4, 6))
X2 = _random.normal(0.0, 2.0, (4, 6))
POSITIVE = _random.uniform(0.2, 3.0, (4, 6))
POSITIVE2 = _random.uniform(0.2, 3.0, (4, 6))
UNIT = _random.uniform(0.05, 0.95, (4, 6))
SIMPLEX = UNIT / UNIT.sum(axis=1, keepdims=True)
CLASSES = np.array([2, 0, 5, 3])
ONE_HOT = np.eye(6)[CLASSES]
BINARY = _random.randint(0, 2, (4, 6)).astype(float)
WEIGHTS = _random.uniform(0.1, 2.0, 4)
SEQUENCE = _random.normal(size=(2, 5, 3))
SEQUENCE2 = _random.normal(size=(2, 4, 3))
IMAGE = _random.normal(size=(2, 5, 6, 2))
VOLUME = _random.normal(size=(1, 3, 4, 3, 2))
FILM = _random.normal(size=(1, 3, 3, 4, 2))
MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)


# Activations


def absolute(x):
    return np.where(x > 0, x, -x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


def softmax(x, axis=-1):
    e = np.exp(x - np.max(x.real, axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def log_softmax(x):
    x = x - np.max(x.real, -1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


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


def hard_sigmoid(x):
    return np.clip(x / 6 + 0.5, 0, 1)


def sparsemax(x):
    # Keras subtracts 1 from the sum of the cumulative sums; the paper's
    # threshold has the last of them alone.
    z = -np.sort(-x, axis=-1)
    sums, ranks = np.cumsum(z, axis=-1), np.arange(1, x.shape[-1] + 1)
    support = z > (sums - 1) / ranks
    total = np.sum(np.where(support, sums, 0), -1, keepdims=True)
    return np.maximum(x - (total - 1) / support.sum(-1, keepdims=True), 0)


def of_x(fn, formula, x=X, **kwargs):
    return Case(lambda: lambda x: fn(x, **kwargs), formula, (x,))


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


# Losses and metrics


def clip(p):
    return np.clip(p, EPSILON, 1 - EPSILON)


def bce(y, p):
    return -(y * np.log(clip(p)) + (1 - y) * np.log(1 - clip(p)))


def bce_logits(y, z):
    return softplus(z) - y * z


def cce(y, p):
    return -np.sum(y * np.log(clip(p / p.sum(-1, keepdims=True))), -1)


def binary_focal(y, p, alpha=None):
    right = y * p + (1 - y) * (1 - p)
    weight = 1 if alpha is None else y * alpha + (1 - y) * (1 - alpha)
    return weight * (1 - right) ** 2 * bce(y, p)


def categorical_focal(y, p):
    p = clip(p / p.sum(-1, keepdims=True))
    return np.sum(-0.25 * (1 - p) ** 2 * y * np.log(p), -1)


def cosine(y, p):
    norms = np.sqrt(np.sum(y**2, -1) * np.sum(p**2, -1))
    return np.sum(y * p, -1) / norms


def huber(y, p, delta):
    e = absolute(y - p)
    return np.where(e <= delta, e**2 / 2, delta * e - delta**2 / 2)


def hinge(y, p):
    return np.maximum(1 - (2 * y - 1) * p, 0)


def categorical_hinge(y, p):
    return np.maximum(np.max((1 - y) * p, -1) - np.sum(y * p, -1) + 1, 0)


def kl(y, p):
    y, p = np.clip(y, EPSILON, 1), np.clip(p, EPSILON, 1)
    return np.sum(y * np.log(y / p), -1)


def tversky(y, p, alpha, beta):
    both = np.sum(y * p, -1)
    rest = alpha * np.sum((1 - p) * y, -1) + beta * np.sum((1 - y) * p, -1)
    return 1 - both / (both + rest + EPSILON)


def dice(y, p):
    return 1 - 2 * np.sum(y * p, -1) / (np.sum(y + p, -1) + EPSILON)


def log_sum_exp(x, where):
    return np.log(np.sum(np.where(where, np.exp(x), 0), 1))


def circle(labels, z, gamma=8.0, margin=0.4):
    distance = np.maximum(1 - z @ z.T, 0)
    same = labels[:, None] == labels
    other = ~same
    same = same & ~np.eye(len(labels), dtype=bool)
    near = -gamma * (margin + distance) * (margin - distance)
    far = np.maximum(1 + margin - distance, 0)
    far = gamma * far * (1 - margin - distance)
    return softplus(log_sum_exp(near, same) + log_sum_exp(far, other))


def ctc(labels, z):
    """The forward algorithm, for short sequences in probabilities."""
    result = []
    for row, steps in zip(labels, softmax(z), strict=True):
        row = row[row != 0]
        path = np.zeros(2 * len(row) + 1, int)
        path[1::2] = row
        alpha = np.zeros(len(path), complex)
        alpha[:2] = steps[0, path[:2]]
        for step in steps[1:]:
            before = alpha.copy()
            before[1:] += alpha[:-1]
            skip = (path[2:] != 0) & (path[2:] != path[:-2])
            before[2:] += np.where(skip, alpha[:-2], 0)
            alpha = before * step[path]
        result.append(-np.log(alpha[-1] + alpha[-2]))
    result = np.array(result)
    return result if np.iscomplexobj(z) else result.real


def smooth(y, by=0.1, classes=6):
    return y * (1 - by) + by / classes


def rows(fn):
    return lambda y, p: np.mean(fn(y, p), -1)


EMBEDDED = X / np.sqrt(np.sum(X**2, 1, keepdims=True))
TOKENS = np.array([[1, 2, 2], [3, 1, 0]])
LOGITS = _random.normal(size=(2, 6, 4))

# Name: loss, of the targets, of the predictions, loss of each sample.
_LOSSES = {
    "MeanSquaredError": ({}, X, X2, rows(lambda y, p: (y - p) ** 2)),
    "MeanAbsoluteError": ({}, X, X2, rows(lambda y, p: absolute(y - p))),
    "MeanAbsolutePercentageError": (
        {},
        X,
        X2,
        rows(lambda y, p: 100 * absolute((y - p) / absolute(y))),
    ),
    "MeanSquaredLogarithmicError": (
        {},
        POSITIVE,
        POSITIVE2,
        rows(lambda y, p: (np.log1p(y) - np.log1p(p)) ** 2),
    ),
    "CosineSimilarity": ({}, X, X2, lambda y, p: -cosine(y, p)),
    "Huber": ({"delta": 1.3}, X, X2, rows(lambda y, p: huber(y, p, 1.3))),
    "LogCosh": ({}, X, X2, rows(lambda y, p: np.log(np.cosh(p - y)))),
    "Poisson": (
        {},
        POSITIVE,
        POSITIVE2,
        rows(lambda y, p: p - y * np.log(p + EPSILON)),
    ),
    "KLDivergence": ({}, SIMPLEX, SIMPLEX[::-1], kl),
    "Hinge": ({}, BINARY, X, rows(hinge)),
    "SquaredHinge": ({}, BINARY, X, rows(lambda y, p: hinge(y, p) ** 2)),
    "CategoricalHinge": ({}, ONE_HOT, X, categorical_hinge),
    "BinaryCrossentropy": ({}, BINARY, UNIT, rows(bce)),
    "BinaryCrossentropy, logits": (
        {"from_logits": True},
        BINARY,
        X,
        rows(bce_logits),
    ),
    "BinaryCrossentropy, smoothed": (
        {"label_smoothing": 0.1},
        BINARY,
        UNIT,
        rows(lambda y, p: bce(smooth(y, classes=2), p)),
    ),
    "BinaryFocalCrossentropy": ({}, BINARY, UNIT, rows(binary_focal)),
    "BinaryFocalCrossentropy, balanced": (
        {"apply_class_balancing": True, "alpha": 0.3},
        BINARY,
        UNIT,
        rows(lambda y, p: binary_focal(y, p, 0.3)),
    ),
    "BinaryFocalCrossentropy, logits": (
        {"from_logits": True},
        BINARY,
        X,
        rows(lambda y, z: binary_focal(y, sigmoid(z))),
    ),
    "CategoricalCrossentropy": ({}, ONE_HOT, UNIT, cce),
    "CategoricalCrossentropy, logits": (
        {"from_logits": True},
        ONE_HOT,
        X,
        lambda y, z: -np.sum(y * log_softmax(z), -1),
    ),
    "CategoricalCrossentropy, smoothed": (
        {"label_smoothing": 0.1},
        ONE_HOT,
        UNIT,
        lambda y, p: cce(smooth(y), p),
    ),
    "CategoricalFocalCrossentropy": ({}, ONE_HOT, UNIT, categorical_focal),
    "CategoricalFocalCrossentropy, logits": (
        {"from_logits": True},
        ONE_HOT,
        X,
        lambda y, z: categorical_focal(y, softmax(z)),
    ),
    "SparseCategoricalCrossentropy": (
        {},
        CLASSES,
        UNIT,
        lambda y, p: cce(np.eye(6)[y], p),
    ),
    "SparseCategoricalCrossentropy, logits": (
        {"from_logits": True},
        CLASSES,
        X,
        lambda y, z: -log_softmax(z)[np.arange(4), y],
    ),
    "SparseCategoricalCrossentropy, ignored class": (
        {"from_logits": True, "ignore_class": 5},
        CLASSES,
        X,
        lambda y, z: np.where(y == 5, 0, -log_softmax(z)[np.arange(4), y]),
    ),
    "CategoricalGeneralizedCrossEntropy": (
        {"q": 0.7},
        CLASSES,
        SIMPLEX,
        lambda y, p: (1 - p[np.arange(4), y] ** 0.7) / 0.7,
    ),
    "Dice": ({"axis": (1,)}, BINARY, UNIT, dice),
    "Tversky": (
        {"alpha": 0.3, "beta": 0.6, "axis": (1,)},
        BINARY,
        UNIT,
        lambda y, p: tversky(y, p, 0.3, 0.6),
    ),
    "Circle": (
        {"gamma": 8.0},
        np.array([0, 1, 0, 1]),
        EMBEDDED,
        circle,
    ),
    "CTC": ({}, TOKENS, LOGITS, ctc),
}


def _loss(name, kwargs, y, p, formula):
    """A loss as each sample's, and as a weighted mean."""
    kind = getattr(losses, name.split(",")[0])

    def reference(p, w):
        values = formula(y, p)
        # A class that is ignored is no sample of the mean.
        keep = y != kwargs["ignore_class"] if "ignore_class" in kwargs else ...
        return values, np.sum(values * w) / len(values[keep])

    def call(made, p, w):
        target = ops.convert_to_tensor(y)
        # On torch Keras may multiply weights by a mask in place.
        return [made[0](target, p), made[1](target, p, 1.0 * w)]

    return Case(
        lambda: [
            kind(reduction=reduction, **kwargs)
            for reduction in ("none", "sum_over_batch_size")
        ],
        reference,
        (p, WEIGHTS[: len(y)]),
        call,
    )


LOSSES = {name: _loss(name, *row) for name, row in _LOSSES.items()}
LOSSES |= {
    f"MeanSquaredError, {reduction}": Case(
        lambda reduction=reduction: losses.MeanSquaredError(reduction),
        lambda p, w, by=by: np.sum(np.mean((X - p) ** 2, -1) * w) / by(w),
        (X2, WEIGHTS),
        lambda made, p, w: made(ops.convert_to_tensor(X), p, w),
    )
    for reduction, by in (
        ("sum", lambda w: 1),
        ("mean_with_sample_weight", np.sum),
    )
}


def pearson(y, p):
    y = y - y.mean(-1, keepdims=True)
    p = p - p.mean(-1, keepdims=True)
    return cosine(y, p)


def concordance(y, p):
    dy, dp = y.mean(-1, keepdims=True), p.mean(-1, keepdims=True)
    cov = np.mean((y - dy) * (p - dp), -1)
    spread = np.mean((y - dy) ** 2 + (p - dp) ** 2, -1)
    return 2 * cov / (spread + np.squeeze(dy - dp, -1) ** 2 + EPSILON)


def r2(y, p, w, kind):
    w = w[:, None]
    mean = np.sum(w * y, 0) / np.sum(w)
    total = np.sum(w * (y - mean) ** 2, 0)
    score = 1 - np.sum(w * (y - p) ** 2, 0) / total
    if kind == "variance_weighted_average":
        score = np.sum(total * score) / np.sum(total)
    elif kind == "uniform_average":
        score = score.mean()
    return score


def weighted_mean(values, w):
    return np.sum(values * w) / np.sum(w)


def counts(y, p, w, threshold=0.5):
    """True and false positives, false and true negatives."""
    w, above = w[:, None] * np.ones(y.shape), p > threshold
    yes = y > 0.5
    return [
        np.sum(w[yes & above]),
        np.sum(w[~yes & above]),
        np.sum(w[yes & ~above]),
        np.sum(w[~yes & ~above]),
    ]


def f_beta(y, p, w, beta, average):
    yes, w = y > 0.5, w[:, None]
    hit = np.max(p, 1, keepdims=True) == p
    both = np.sum(w * (yes & hit), 0)
    precision = both / (np.sum(w * hit, 0) + EPSILON)
    recall = both / (np.sum(w * yes, 0) + EPSILON)
    score = (1 + beta**2) * precision * recall
    score = score / (beta**2 * precision + recall + EPSILON)
    return score if average is None else np.mean(score)


# Metrics that are the mean of a loss, by the loss; then others.
_MEANS = {
    "MeanSquaredError": "MeanSquaredError",
    "MeanAbsoluteError": "MeanAbsoluteError",
    "MeanAbsolutePercentageError": "MeanAbsolutePercentageError",
    "MeanSquaredLogarithmicError": "MeanSquaredLogarithmicError",
    "LogCoshError": "LogCosh",
    "Poisson": "Poisson",
    "KLDivergence": "KLDivergence",
    "Hinge": "Hinge",
    "SquaredHinge": "SquaredHinge",
    "CategoricalHinge": "CategoricalHinge",
    "BinaryCrossentropy": "BinaryCrossentropy",
    "BinaryCrossentropy, logits": "BinaryCrossentropy, logits",
    "BinaryCrossentropy, smoothed": "BinaryCrossentropy, smoothed",
    "CategoricalCrossentropy": "CategoricalCrossentropy",
    "CategoricalCrossentropy, logits": "CategoricalCrossentropy, logits",
    "SparseCategoricalCrossentropy": "SparseCategoricalCrossentropy",
}


def auc(y, p, w, curve, count=200):
    edges = [-EPSILON, *(np.arange(1, count - 1) / (count - 1)), 1 + EPSILON]
    tp, fp, fn, tn = np.transpose([counts(y, p, w, edge) for edge in edges])
    if curve == "ROC":
        x, y = fp / (fp + tn), tp / (tp + fn)
        return np.sum((x[:-1] - x[1:]) * (y[:-1] + y[1:]) / 2)
    # Davis and Goadrich: between thresholds the hits grow with all positives.
    both = tp + fp
    slope = _ratio(tp[:-1] - tp[1:], both[:-1] - both[1:])
    start = tp[1:] - slope * both[1:]
    fraction = np.where(both[1:] > 0, _ratio(both[:-1], both[1:]), 1)
    area = slope * (tp[:-1] - tp[1:] + start * np.log(fraction))
    return np.sum(area / (tp + fn)[1:])


def _ratio(a, b):
    return np.where(b == 0, 0, a / np.where(b == 0, 1, b))


def _metric(kind, y, p, formula, **kwargs):
    """A metric after two updates; its values only."""

    def call(made, p, w):
        # TensorFlow differentiates up to the inputs, whatever stops it there.
        p, w = ops.stop_gradient(p), ops.stop_gradient(w)
        for half in (slice(2), slice(2, 4)):
            target = ops.convert_to_tensor(y[half])
            made.update_state(target, p[half], sample_weight=w[half])
        return ops.stop_gradient(made.result())

    return Case(
        lambda: kind(**kwargs),
        lambda p, w: formula(y, p.real, w.real),
        (p, WEIGHTS),
        call,
    )


def _mean_metric(name, loss):
    kwargs, y, p, formula = _LOSSES[loss]
    return _metric(
        getattr(metrics, name.split(",")[0]),
        y,
        p,
        lambda y, p, w: weighted_mean(formula(y, p), w),
        **kwargs,
    )


def _aggregate(kind, formula):
    return Case(
        kind,
        formula,
        (X[0, :4], WEIGHTS),
        lambda made, x, w: (made.update_state(x, w), made.result())[1],
    )


# Metrics that are the weighted mean of a loss; then others.
_MEANS = [
    "MeanSquaredError",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquaredLogarithmicError",
    "Poisson",
    "KLDivergence",
    "Hinge",
    "SquaredHinge",
    "CategoricalHinge",
    "BinaryCrossentropy",
    "CategoricalCrossentropy",
    "SparseCategoricalCrossentropy",
]
METRICS = {f"metrics.{name}": _mean_metric(name, name) for name in _MEANS}
METRICS |= {
    "metrics.LogCoshError": _mean_metric("LogCoshError", "LogCosh"),
    "metrics.RootMeanSquaredError": _metric(
        metrics.RootMeanSquaredError,
        X,
        X2,
        lambda y, p, w: np.sqrt(weighted_mean(np.mean((y - p) ** 2, -1), w)),
    ),
    "metrics.CosineSimilarity": _metric(
        metrics.CosineSimilarity,
        X,
        X2,
        lambda y, p, w: weighted_mean(cosine(y, p), w),
    ),
    "metrics.PearsonCorrelation": _metric(
        metrics.PearsonCorrelation,
        X,
        X2,
        lambda y, p, w: weighted_mean(pearson(y, p), w),
    ),
    "metrics.ConcordanceCorrelation": _metric(
        metrics.ConcordanceCorrelation,
        X,
        X2,
        lambda y, p, w: weighted_mean(concordance(y, p), w),
    ),
    "metrics.Mean": _aggregate(metrics.Mean, weighted_mean),
    "metrics.Sum": _aggregate(metrics.Sum, lambda x, w: np.sum(x * w)),
    "metrics.Precision": _metric(
        metrics.Precision,
        BINARY,
        UNIT,
        lambda *a: counts(*a)[0] / (counts(*a)[0] + counts(*a)[1]),
    ),
    "metrics.Recall": _metric(
        metrics.Recall,
        BINARY,
        UNIT,
        lambda *a: counts(*a)[0] / (counts(*a)[0] + counts(*a)[2]),
    ),
    "metrics.BinaryAccuracy": _metric(
        metrics.BinaryAccuracy,
        BINARY,
        UNIT,
        lambda y, p, w: weighted_mean(np.mean(y == (p > 0.5), -1), w),
    ),
    "metrics.CategoricalAccuracy": _metric(
        metrics.CategoricalAccuracy,
        ONE_HOT,
        UNIT,
        lambda y, p, w: weighted_mean(np.argmax(p, 1) == CLASSES, w),
    ),
}
METRICS |= {
    f"metrics.R2Score, {kind}": _metric(
        metrics.R2Score,
        X,
        X2,
        lambda y, p, w, kind=kind: r2(y, p, w, kind),
        class_aggregation=kind,
    )
    for kind in ("uniform_average", "variance_weighted_average")
}
METRICS |= {
    f"metrics.AUC, {curve}": _metric(
        metrics.AUC,
        BINARY,
        UNIT,
        lambda y, p, w, curve=curve: auc(y, p, w, curve),
        curve=curve,
    )
    for curve in ("ROC", "PR")
}
METRICS |= {
    f"metrics.{kind.__name__}": _metric(
        kind,
        ONE_HOT,
        UNIT,
        lambda y, p, w, beta=beta, average=average: f_beta(
            y, p, w, beta, average
        ),
        average=average,
        **kwargs,
    )
    for kind, beta, average, kwargs in (
        (metrics.F1Score, 1.0, "macro", {}),
        (metrics.FBetaScore, 0.7, None, {"beta": 0.7}),
    )
}


# Layers


def dense(x, kernel, bias):
    return x @ kernel + bias


def pairs(size, axes):
    return (size,) * axes if isinstance(size, int) else tuple(size)


def patches(x, size, strides=1, padding="valid", dilation=1):
    """What a window sees, by its offsets, and 1 where that is no padding."""
    axes = x.ndim - 2
    size, strides = pairs(size, axes), pairs(strides, axes)
    dilation = pairs(dilation, axes)
    extent = [(k - 1) * d for k, d in zip(size, dilation, strict=True)]
    sides = [(0, 0)] * axes
    if padding == "causal":
        sides = [(extent[0], 0)]
    elif padding == "same":
        for i, n in enumerate(x.shape[1:-1]):
            left = max(
                (-(-n // strides[i]) - 1) * strides[i] + extent[i] + 1 - n, 0
            )
            sides[i] = (left // 2, left - left // 2)
    sides = [(0, 0), *sides, (0, 0)]
    padded, inside = np.pad(x, sides), np.pad(np.ones(x.shape), sides)
    for index in np.ndindex(*size):
        span = [
            slice(i * d, n - e + i * d, s)
            for i, d, n, e, s in zip(
                index,
                dilation,
                padded.shape[1:-1],
                extent,
                strides,
                strict=True,
            )
        ]
        yield index, padded[:, *span], inside[:, *span]


def conv(x, kernel, bias=0.0, groups=1, **kwargs):
    size = kernel.shape[:-2]
    if groups == 1:
        seen = patches(x, size, **kwargs)
        return sum(patch @ kernel[i] for i, patch, _ in seen) + bias
    parts = zip(
        np.split(x, groups, -1), np.split(kernel, groups, -1), strict=True
    )
    return np.concatenate([conv(a, k, **kwargs) for a, k in parts], -1) + bias


def depthwise(x, kernel, bias=0.0, **kwargs):
    seen = patches(x, kernel.shape[:-2], **kwargs)
    out = sum(patch[..., None] * kernel[i] for i, patch, _ in seen)
    return out.reshape(*out.shape[:-2], -1) + bias


def separable(x, depth, point, bias, **kwargs):
    return conv(depthwise(x, depth, **kwargs), point) + bias


def conv_transpose(x, kernel, bias, strides=1, padding="valid"):
    *size, outputs, _ = kernel.shape
    strides, inner = pairs(strides, len(size)), x.shape[1:-1]
    shape = [
        n * s + max(k - s, 0)
        for n, k, s in zip(inner, size, strides, strict=True)
    ]
    full = np.zeros((len(x), *shape, outputs), np.result_type(x, kernel))
    for index in np.ndindex(*size):
        span = [
            slice(i, i + n * s, s)
            for i, n, s in zip(index, inner, strides, strict=True)
        ]
        full[:, *span] += x @ kernel[index].T
    if padding == "same":
        for axis, (n, k, s) in enumerate(
            zip(inner, size, strides, strict=True), 1
        ):
            left = max(k - s, 0) // 2
            full = full.take(range(left, left + n * s), axis)
    return full + bias


def max_pool(x, size, **kwargs):
    seen = patches(x, size, **kwargs)
    return np.max([np.where(ok, p, -np.inf) for _, p, ok in seen], 0)


def average_pool(x, size, **kwargs):
    seen = list(patches(x, size, **kwargs))
    return sum(p for _, p, _ in seen) / sum(ok for _, _, ok in seen)


def adaptive(reduce, sizes):
    """The reduction over bins of nearly equal length, axis by axis."""

    def formula(x):
        for axis, size in enumerate(sizes, 1):
            n = x.shape[axis]
            bins = [
                reduce(
                    x.take(range(i * n // size, -(-(i + 1) * n // size)), axis),
                    axis,
                )
                for i in range(size)
            ]
            x = np.stack(bins, axis)
        return x

    return formula


def scan(step, x, state, every=False):
    outputs = []
    for t in range(x.shape[1]):
        state = step(x[:, t], *state)
        outputs.append(state[0])
    return np.stack(outputs, 1) if every else outputs[-1]


def simple_rnn(x, kernel, recurrent, bias, **kwargs):
    def step(x, h):
        return (np.tanh(x @ kernel + h @ recurrent + bias),)

    return scan(step, x, [np.zeros((len(x), len(recurrent)))], **kwargs)


def lstm_step(gates, c, act=sigmoid):
    i, f, g, o = np.split(gates, 4, -1)
    c = act(f) * c + act(i) * np.tanh(g)
    return act(o) * np.tanh(c), c


def lstm(x, kernel, recurrent, bias, act=sigmoid, **kwargs):
    def step(x, h, c):
        return lstm_step(x @ kernel + h @ recurrent + bias, c, act)

    zeros = np.zeros((len(x), len(recurrent)))
    return scan(step, x, [zeros, zeros], **kwargs)


def gru(x, kernel, recurrent, bias, reset_after=True, **kwargs):
    units = len(recurrent)
    bias = bias if reset_after else [bias, np.zeros(3 * units)]

    def step(x, h):
        inner = h @ recurrent + bias[1]
        outer = x @ kernel + bias[0]
        z, r = np.split(sigmoid((inner + outer)[:, : 2 * units]), 2, -1)
        if reset_after:
            past = r * inner[:, 2 * units :]
        else:
            past = (r * h) @ recurrent[:, 2 * units :]
        return (z * h + (1 - z) * np.tanh(outer[:, 2 * units :] + past),)

    return scan(step, x, [np.zeros((len(x), units))], **kwargs)


def conv_lstm(x, kernel, recurrent, bias):
    def step(x, h, c):
        gates = conv(x, kernel, bias, padding="same")
        return lstm_step(gates + conv(h, recurrent, padding="same"), c)

    zeros = np.zeros((*x[:, 0].shape[:-1], recurrent.shape[-2]))
    return scan(step, x, [zeros, zeros])


def bidirectional(x, *weights):
    a = lstm(x, *weights[:3], every=True)
    b = lstm(x[:, ::-1], *weights[3:], every=True)[:, ::-1]
    return np.concatenate([a, b], -1)


def attend(q, k, v, where=True):
    """Attention of tensors (batch, heads, steps, size): values, scores."""
    scores = np.einsum("bhqd,bhkd->bhqk", q, k) / np.sqrt(q.shape[-1])
    scores = softmax(np.where(where, scores, -1e300))
    return np.einsum("bhqk,bhkd->bhqd", scores, v), scores


def multi_head(q, v, *weights, where=True, both=False):
    wq, bq, wk, bk, wv, bv, wo, bo = weights

    def heads(x, w, b):
        return np.einsum("btd,dhk->bhtk", x, w) + b[:, None]

    repeats = wq.shape[1] // wk.shape[1]
    queries = heads(q, wq, bq)
    keys = np.repeat(heads(v, wk, bk), repeats, 1)
    values = np.repeat(heads(v, wv, bv), repeats, 1)
    mixed, scores = attend(queries, keys, values, where)
    output = np.einsum("bhtk,hkd->btd", mixed, wo) + bo
    return (output, scores) if both else output


def attention(q, v, kernel=lambda q, k: q @ np.swapaxes(k, 1, 2), where=True):
    return softmax(np.where(where, kernel(q, v), -1e300)) @ v


def additive(q, k):
    return np.tanh(q[:, :, None] + k[:, None])


def moments(x, axis):
    mean = x.mean(axis, keepdims=True)
    return mean, np.mean((x - mean) ** 2, axis, keepdims=True)


def standard(x, axis, epsilon=1e-3):
    mean, variance = moments(x, axis)
    return (x - mean) / np.sqrt(variance + epsilon)


def batch_norm(x, gamma, beta, mean, variance):
    return gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta


def batch_norm_training(x, gamma, beta, mean, variance):
    now, spread = moments(x, tuple(range(x.ndim - 1)))
    return (
        gamma * (x - now) / np.sqrt(spread + 1e-3) + beta,
        0.99 * mean + 0.01 * now,
        0.99 * variance + 0.01 * spread,
    )


def group_norm(x, gamma, beta, groups):
    split = x.reshape(*x.shape[:-1], groups, -1)
    axes = (*range(1, x.ndim - 1), x.ndim)
    return standard(split, axes).reshape(x.shape) * gamma + beta


def unit(x, axis=-1):
    return x / np.sqrt(np.sum(x**2, axis, keepdims=True))


def spectral(x, kernel, u, bias):
    w = kernel.reshape(-1, kernel.shape[-1])
    # No gradient goes through the power iteration.
    v = unit((u @ w.T).real, None)
    u = unit((v @ w).real, None)
    return x @ (kernel / (v @ w @ u.T)) + bias


def layer(kind, formula, *inputs, call=None, keep=False, **kwargs):
    call = call or Case._field_defaults["call"]
    return Case(lambda: kind(**kwargs), formula, inputs, call, keep)


def training(made, x):
    return made(x, training=True)


def listed(made, *inputs):
    return made(list(inputs))


def masked(made, *inputs):
    return made(*inputs, mask=ops.convert_to_tensor(MASK))


def upsampled(x, size):
    for axis, n in enumerate(size, 1):
        x = np.repeat(x, n, axis)
    return x


def bilinear(x, height, width):
    for axis, size in ((1, height), (2, width)):
        n = x.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
        low = np.minimum(at.astype(int), n - 2)
        weight = (at - low).reshape([-1 if a == axis else 1 for a in range(4)])
        x = (1 - weight) * x.take(low, axis) + weight * x.take(low + 1, axis)
    return x


def stft(x, length=8, step=4):
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    angle = np.outer(np.arange(length), np.arange(length // 2 + 1))
    angle = 2 * np.pi * angle / length
    starts = range(0, x.shape[1] - length + 1, step)
    frames = np.stack([x[:, s : s + length, 0] for s in starts], 1) * window
    return np.sqrt(
        (frames @ np.cos(angle)) ** 2 + (frames @ np.sin(angle)) ** 2
    )


def _adapted():
    made = layers.Normalization()
    made.adapt(X2)
    return made


CORE = {
    "Dense": layer(
        layers.Dense,
        lambda *a: np.tanh(dense(*a)),
        X,
        units=3,
        activation="tanh",
    ),
    "EinsumDense": layer(
        layers.EinsumDense,
        lambda x, k, b: np.einsum("abc,cde->abde", x, k) + b,
        SEQUENCE,
        equation="abc,cde->abde",
        output_shape=(None, 2, 3),
        bias_axes="de",
    ),
    "Embedding": layer(
        layers.Embedding,
        lambda i, w: w[i],
        TOKENS,
        input_dim=5,
        output_dim=3,
    ),
    "ReversibleEmbedding": layer(
        layers.ReversibleEmbedding,
        lambda x, w: 2.5 * np.tanh(x @ w.T / 2.5),
        SEQUENCE,
        input_dim=5,
        output_dim=3,
        logit_soft_cap=2.5,
        call=lambda made, x: made(x, reverse=True),
    ),
    "Rescaling": layer(
        layers.Rescaling,
        lambda x: x / 255 - 0.3,
        X,
        scale=1 / 255,
        offset=-0.3,
    ),
    "Normalization": layer(
        layers.Normalization,
        lambda x: (x - 0.3) / np.sqrt(1.7),
        X,
        mean=[0.3] * 6,
        variance=[1.7] * 6,
    ),
    "Normalization, inverted": layer(
        layers.Normalization,
        lambda x: x * np.sqrt(1.7) + 0.3,
        X,
        mean=[0.3] * 6,
        variance=[1.7] * 6,
        invert=True,
    ),
    "Normalization, adapted": layer(
        _adapted, lambda x: (x - X2.mean(0)) / X2.std(0), X, keep=True
    ),
    "CategoryEncoding": layer(
        layers.CategoryEncoding,
        lambda i: np.sum(np.eye(5)[i] * X[:2, :3, None], 1),
        TOKENS,
        num_tokens=5,
        output_mode="count",
        # No input: TensorFlow has no gradient of it.
        call=lambda made, i: made(i, count_weights=X[:2, :3]),
    ),
    "Resizing": layer(
        layers.Resizing,
        lambda x: bilinear(x, 7, 9),
        IMAGE,
        height=7,
        width=9,
    ),
    "CenterCrop": layer(
        layers.CenterCrop, lambda x: x[:, 1:4, 1:5], IMAGE, height=3, width=4
    ),
    "STFTSpectrogram": layer(
        layers.STFTSpectrogram,
        stft,
        IMAGE.reshape(4, 30, 1)[:, :16],
        mode="magnitude",
        scaling=None,
        periodic=True,
        keep=True,
        frame_length=8,
        frame_step=4,
        fft_length=8,
    ),
    **{
        f"{kind.__name__} at inference": layer(kind, lambda x: x, a, rate=0.3)
        for kind, a in (
            (layers.Dropout, X),
            (layers.AlphaDropout, X),
            (layers.GaussianDropout, X),
            (layers.SpatialDropout1D, SEQUENCE),
            (layers.SpatialDropout2D, IMAGE),
            (layers.SpatialDropout3D, VOLUME),
        )
    },
    "GaussianNoise at inference": layer(
        layers.GaussianNoise, lambda x: x, X, stddev=0.3
    ),
    "Identity": layer(layers.Identity, lambda x: x, X),
    "Masking": layer(layers.Masking, lambda x: x, SEQUENCE),
    "Lambda": Case(lambda: layers.Lambda(ops.sin), np.sin, (X,)),
}


CONVOLUTIONS = {
    "Conv1D": layer(
        layers.Conv1D,
        lambda *a: conv(*a, padding="same", strides=2),
        SEQUENCE,
        filters=2,
        kernel_size=3,
        strides=2,
        padding="same",
    ),
    "Conv1D, causal": layer(
        layers.Conv1D,
        lambda *a: conv(*a, padding="causal", dilation=2),
        SEQUENCE,
        filters=2,
        kernel_size=2,
        dilation_rate=2,
        padding="causal",
    ),
    "Conv2D": layer(layers.Conv2D, conv, IMAGE, filters=3, kernel_size=(3, 2)),
    "Conv2D, groups": layer(
        layers.Conv2D,
        lambda *a: conv(*a, groups=2, padding="same"),
        IMAGE,
        filters=4,
        kernel_size=2,
        groups=2,
        padding="same",
    ),
    "Conv3D": layer(layers.Conv3D, conv, VOLUME, filters=2, kernel_size=2),
    "DepthwiseConv1D": layer(
        layers.DepthwiseConv1D,
        depthwise,
        SEQUENCE,
        kernel_size=2,
        depth_multiplier=2,
    ),
    "DepthwiseConv2D": layer(
        layers.DepthwiseConv2D,
        lambda *a: depthwise(*a, padding="same"),
        IMAGE,
        kernel_size=3,
        depth_multiplier=2,
        padding="same",
    ),
    "SeparableConv1D": layer(
        layers.SeparableConv1D,
        separable,
        SEQUENCE,
        filters=4,
        kernel_size=2,
    ),
    "SeparableConv2D": layer(
        layers.SeparableConv2D,
        lambda *a: separable(*a, padding="same", strides=2),
        IMAGE,
        filters=3,
        kernel_size=3,
        strides=2,
        padding="same",
    ),
    "Conv1DTranspose": layer(
        layers.Conv1DTranspose,
        lambda *a: conv_transpose(*a, strides=2),
        SEQUENCE,
        filters=2,
        kernel_size=3,
        strides=2,
    ),
    "Conv2DTranspose": layer(
        layers.Conv2DTranspose,
        lambda *a: conv_transpose(*a, strides=2, padding="same"),
        IMAGE,
        filters=3,
        kernel_size=3,
        strides=2,
        padding="same",
    ),
    "Conv3DTranspose": layer(
        layers.Conv3DTranspose,
        conv_transpose,
        VOLUME,
        filters=2,
        kernel_size=2,
    ),
}

POOLING = {
    "MaxPooling1D": layer(
        layers.MaxPooling1D,
        lambda x: max_pool(x, 2, strides=2, padding="same"),
        SEQUENCE,
        pool_size=2,
        padding="same",
    ),
    "MaxPooling2D": layer(
        layers.MaxPooling2D,
        lambda x: max_pool(x, 3, strides=2, padding="same"),
        IMAGE,
        pool_size=3,
        strides=2,
        padding="same",
    ),
    "MaxPooling3D": layer(
        layers.MaxPooling3D,
        lambda x: max_pool(x, 2),
        VOLUME,
        pool_size=2,
        strides=1,
    ),
    "AveragePooling1D": layer(
        layers.AveragePooling1D,
        lambda x: average_pool(x, 2, strides=2, padding="same"),
        SEQUENCE,
        pool_size=2,
        padding="same",
    ),
    "AveragePooling2D": layer(
        layers.AveragePooling2D,
        lambda x: average_pool(x, 3, strides=2, padding="same"),
        # On torch Keras counts padding where it has it on one side alone.
        IMAGE[:, :, :5],
        pool_size=3,
        strides=2,
        padding="same",
    ),
    "AveragePooling3D": layer(
        layers.AveragePooling3D,
        lambda x: average_pool(x, 2),
        VOLUME,
        pool_size=2,
        strides=1,
    ),
    **{
        f"Global{kind}Pooling{n}D": layer(
            getattr(layers, f"Global{kind}Pooling{n}D"),
            lambda x, reduce=reduce: reduce(x, tuple(range(1, x.ndim - 1))),
            x,
        )
        for n, x in enumerate((SEQUENCE, IMAGE, VOLUME), 1)
        for kind, reduce in (("Max", np.max), ("Average", np.mean))
    },
    **{
        f"Adaptive{kind}Pooling{n}D": layer(
            getattr(layers, f"Adaptive{kind}Pooling{n}D"),
            adaptive(reduce, (2,) * n),
            x,
            output_size=2,
        )
        for n, x in enumerate((SEQUENCE, IMAGE, VOLUME), 1)
        for kind, reduce in (("Max", np.max), ("Average", np.mean))
    },
    "GlobalAveragePooling1D, mask": layer(
        layers.GlobalAveragePooling1D,
        lambda x: np.sum(x * MASK[..., None], 1) / MASK.sum(1, keepdims=True),
        SEQUENCE,
        call=masked,
    ),
}

RECURRENT = {
    "SimpleRNN": layer(layers.SimpleRNN, simple_rnn, SEQUENCE, units=2),
    "LSTM": layer(
        layers.LSTM,
        lambda *a: lstm(*a, every=True),
        SEQUENCE,
        units=2,
        return_sequences=True,
    ),
    "LSTM, hard_sigmoid": layer(
        layers.LSTM,
        lambda *a: lstm(*a, act=hard_sigmoid),
        SEQUENCE,
        units=2,
        recurrent_activation="hard_sigmoid",
    ),
    "LSTM, mask": layer(
        layers.LSTM,
        lambda x, *w: np.concatenate([lstm(x[:1, :3], *w), lstm(x[1:], *w)]),
        SEQUENCE,
        units=2,
        call=masked,
    ),
    "GRU": layer(layers.GRU, gru, SEQUENCE, units=2),
    "GRU, reset before": layer(
        layers.GRU,
        lambda *a: gru(*a, reset_after=False),
        SEQUENCE,
        units=2,
        reset_after=False,
    ),
    "RNN of StackedRNNCells": Case(
        lambda: layers.RNN([layers.LSTMCell(2), layers.GRUCell(2)]),
        lambda x, *w: gru(lstm(x, *w[:3], every=True), *w[3:]),
        (SEQUENCE,),
    ),
    "Bidirectional": Case(
        lambda: layers.Bidirectional(layers.LSTM(2, return_sequences=True)),
        bidirectional,
        (SEQUENCE,),
    ),
    "TimeDistributed": Case(
        lambda: layers.TimeDistributed(layers.Dense(2)), dense, (SEQUENCE,)
    ),
    "ConvLSTM1D": layer(
        layers.ConvLSTM1D,
        conv_lstm,
        FILM[:, :, 0],
        filters=2,
        kernel_size=3,
        padding="same",
    ),
    "ConvLSTM2D": layer(
        layers.ConvLSTM2D,
        conv_lstm,
        FILM,
        filters=2,
        kernel_size=2,
        padding="same",
    ),
}

CAUSAL = np.tril(np.ones((5, 4), bool))
_HEADS = {
    "MultiHeadAttention": (
        layers.MultiHeadAttention,
        {"num_heads": 2, "key_dim": 2},
    ),
    "GroupQueryAttention": (
        layers.GroupQueryAttention,
        {"num_query_heads": 4, "num_key_value_heads": 2, "head_dim": 2},
    ),
}

ATTENTION = {}
for _name, (_kind, _kwargs) in _HEADS.items():
    ATTENTION |= {
        _name: layer(_kind, multi_head, SEQUENCE, SEQUENCE2, **_kwargs),
        f"{_name}, causal": layer(
            _kind,
            lambda *a: multi_head(*a, where=CAUSAL),
            SEQUENCE,
            SEQUENCE2,
            call=lambda made, q, v: made(q, v, use_causal_mask=True),
            **_kwargs,
        ),
        f"{_name}, scores": layer(
            _kind,
            lambda *a: multi_head(*a, both=True),
            SEQUENCE,
            SEQUENCE2,
            call=lambda made, q, v: made(q, v, return_attention_scores=True),
            **_kwargs,
        ),
        f"{_name}, dropout": layer(
            _kind,
            lambda *a: multi_head(*a, where=CAUSAL),
            SEQUENCE,
            SEQUENCE2,
            dropout=0.3,
            call=lambda made, q, v: made(q, v, use_causal_mask=True),
            **_kwargs,
        ),
    }
ATTENTION |= {
    "Attention": layer(
        layers.Attention, attention, SEQUENCE, SEQUENCE2, call=listed
    ),
    "Attention, scale, causal": layer(
        layers.Attention,
        lambda q, v, s: attention(
            q, v, lambda q, k: s * (q @ np.swapaxes(k, 1, 2)), CAUSAL
        ),
        SEQUENCE,
        SEQUENCE2,
        use_scale=True,
        call=lambda made, q, v: made([q, v], use_causal_mask=True),
    ),
    "Attention, concat": layer(
        layers.Attention,
        lambda q, v, w: attention(q, v, lambda *a: w * additive(*a).sum(-1)),
        SEQUENCE,
        SEQUENCE2,
        score_mode="concat",
        call=listed,
    ),
    "AdditiveAttention": layer(
        layers.AdditiveAttention,
        lambda q, v, w: attention(q, v, lambda *a: additive(*a) @ w),
        SEQUENCE,
        SEQUENCE2,
        call=listed,
    ),
}

NORMALIZATION = {
    "BatchNormalization": layer(layers.BatchNormalization, batch_norm, IMAGE),
    "BatchNormalization, training": layer(
        layers.BatchNormalization,
        batch_norm_training,
        IMAGE,
        call=lambda made, x: [
            made(x, training=True),
            made.moving_mean.value,
            made.moving_variance.value,
        ],
    ),
    "LayerNormalization": layer(
        layers.LayerNormalization,
        lambda x, g, b: standard(x, -1) * g + b,
        SEQUENCE,
    ),
    "LayerNormalization, axes": layer(
        layers.LayerNormalization,
        lambda x, g, b: standard(x, (1, 2)) * g + b,
        SEQUENCE,
        axis=(1, 2),
    ),
    "GroupNormalization": layer(
        layers.GroupNormalization,
        lambda *a: group_norm(*a, groups=2),
        X.reshape(2, 3, 4),
        groups=2,
    ),
    "RMSNormalization": layer(
        layers.RMSNormalization,
        lambda x, g: x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * g,
        SEQUENCE,
    ),
    "UnitNormalization": layer(layers.UnitNormalization, unit, SEQUENCE),
    "SpectralNormalization": Case(
        lambda: layers.SpectralNormalization(layers.Dense(3)),
        spectral,
        (X,),
        training,
    ),
}

_THREE = (X, X2, POSITIVE)
MERGING = {
    "Add": layer(layers.Add, lambda *a: sum(a), *_THREE, call=listed),
    "Average": layer(
        layers.Average, lambda *a: sum(a) / 3, *_THREE, call=listed
    ),
    "Subtract": layer(layers.Subtract, lambda a, b: a - b, X, X2, call=listed),
    "Multiply": layer(
        layers.Multiply, lambda *a: math.prod(a), *_THREE, call=listed
    ),
    "Maximum": layer(layers.Maximum, np.maximum, X, X2, call=listed),
    "Minimum": layer(layers.Minimum, np.minimum, X, X2, call=listed),
    "Concatenate": layer(
        layers.Concatenate,
        lambda *a: np.concatenate(a, 1),
        *_THREE,
        axis=1,
        call=listed,
    ),
    "Dot": layer(
        layers.Dot,
        lambda a, b: np.einsum("bqd,bkd->bqk", a, b),
        SEQUENCE,
        SEQUENCE2,
        axes=2,
        call=listed,
    ),
    "Dot, normalized": layer(
        layers.Dot,
        lambda a, b: np.sum(unit(a) * unit(b), 1, keepdims=True),
        X,
        X2,
        axes=1,
        normalize=True,
        call=listed,
    ),
    "Flatten": layer(layers.Flatten, lambda x: x.reshape(2, -1), IMAGE),
    "Reshape": layer(
        layers.Reshape,
        lambda x: x.reshape(4, 3, 2),
        X,
        target_shape=(3, 2),
    ),
    "Permute": layer(
        layers.Permute, lambda x: x.swapaxes(1, 2), SEQUENCE, dims=(2, 1)
    ),
    "RepeatVector": layer(
        layers.RepeatVector, lambda x: np.stack([x, x], 1), X, n=2
    ),
    "Cropping1D": layer(
        layers.Cropping1D, lambda x: x[:, 1:-2], SEQUENCE, cropping=(1, 2)
    ),
    "Cropping2D": layer(
        layers.Cropping2D, lambda x: x[:, 1:-1, 1:-1], IMAGE, cropping=1
    ),
    "Cropping3D": layer(
        layers.Cropping3D, lambda x: x[:, 1:-1, 1:-1, 1:-1], VOLUME, cropping=1
    ),
    **{
        f"ZeroPadding{n}D": layer(
            getattr(layers, f"ZeroPadding{n}D"),
            lambda x, n=n: np.pad(x, [(0, 0), *[(1, 1)] * n, (0, 0)]),
            x,
            padding=1,
        )
        for n, x in enumerate((SEQUENCE, IMAGE, VOLUME), 1)
    },
    **{
        f"UpSampling{n}D": layer(
            getattr(layers, f"UpSampling{n}D"),
            lambda x, n=n: upsampled(x, (2,) * n),
            x,
            size=2,
        )
        for n, x in enumerate((SEQUENCE, IMAGE, VOLUME), 1)
    },
    "UpSampling2D, bilinear": layer(
        layers.UpSampling2D,
        lambda x: bilinear(x, 10, 12),
        IMAGE,
        size=2,
        interpolation="bilinear",
    ),
}


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


def logsumexp(x):
    return np.log(np.sum(np.exp(x), -1))


def quadratic(x):
    return x.T @ x + np.eye(6)


def erfinv(x):
    # Newton's last step, which carries the complex part.
    y = special.erfinv(x.real)
    return y + (x - special.erf(y)) * np.sqrt(np.pi) / 2 * np.exp(y**2)


# Python numbers within operations, then functions.
OPERATIONS = {
    "0.3 * x": of_x(lambda x: 0.3 * x, lambda x: 0.3 * x),
    "x ** 1.3": of_x(lambda x: x**1.3, lambda x: x**1.3, POSITIVE),
    "ops.add(x, 0.3)": of_x(lambda x: ops.add(x, 0.3), lambda x: x + 0.3),
    "ops.multiply(x, 0.3)": of_x(
        lambda x: ops.multiply(x, 0.3), lambda x: 0.3 * x
    ),
    "ops.divide(x, 0.3)": of_x(lambda x: ops.divide(x, 0.3), lambda x: x / 0.3),
    "ops.power(x, 1.3)": of_x(
        lambda x: ops.power(x, 1.3), lambda x: x**1.3, POSITIVE
    ),
    "ops.maximum(x, 0.3)": of_x(
        lambda x: ops.maximum(x, 0.3), lambda x: np.maximum(x, 0.3)
    ),
    "ops.clip(x, 0.3, 0.7)": of_x(
        lambda x: ops.clip(x, 0.3, 0.7), lambda x: np.clip(x, 0.3, 0.7)
    ),
    "ops.where(x > 0, x, 0.3)": of_x(
        lambda x: ops.where(x > 0, x, 0.3), lambda x: np.where(x > 0, x, 0.3)
    ),
    "ops.linspace(0.1, 0.7, 6)": of_x(
        lambda x: x * ops.linspace(0.1, 0.7, 6),
        lambda x: x * np.linspace(0.1, 0.7, 6),
    ),
    "ops.arange(6) / 7": of_x(
        lambda x: x * (ops.arange(6, dtype="float64") / 7),
        lambda x: x * (np.arange(6) / 7),
    ),
    "ops.erf": of_x(ops.erf, special.erf),
    "ops.erfinv": of_x(ops.erfinv, erfinv, UNIT),
    "ops.logsumexp": of_x(lambda x: ops.logsumexp(x, -1), logsumexp),
    "ops.rsqrt": of_x(ops.rsqrt, lambda x: 1 / np.sqrt(x), POSITIVE),
    "ops.norm": of_x(
        lambda x: ops.norm(x, axis=-1), lambda x: np.sqrt(np.sum(x**2, -1))
    ),
    "ops.std": of_x(
        lambda x: ops.std(x, -1),
        lambda x: np.sqrt(np.squeeze(moments(x, -1)[1], -1)),
    ),
    "ops.segment_sum": of_x(
        lambda x: ops.segment_sum(x, np.array([0, 1, 1, 0]), 2),
        lambda x: np.stack([x[0] + x[3], x[1] + x[2]]),
    ),
    "ops.linalg.solve": of_x(
        lambda x: ops.solve(
            ops.matmul(ops.transpose(x), x) + ops.eye(6), ops.transpose(x)
        ),
        lambda x: np.linalg.solve(quadratic(x), x.T),
    ),
    "ops.cholesky": of_x(
        lambda x: ops.cholesky(ops.matmul(x, ops.transpose(x))),
        lambda x: _cholesky(x @ x.T),
    ),
    "ops.dot_product_attention": layer(
        lambda: ops.dot_product_attention,
        lambda q, k: np.swapaxes(
            attend(*(np.swapaxes(a, 1, 2) for a in (q, k, k)))[0], 1, 2
        ),
        SEQUENCE.reshape(1, 5, 3, 2),
        IMAGE[:1, 0, :6].reshape(1, 2, 3, 2),
        call=lambda made, q, k: made(q, k, k),
    ),
}


def _cholesky(a):
    """NumPy's would conjugate."""
    factor = np.zeros_like(a)
    for i in range(len(a)):
        for j in range(i + 1):
            rest = a[i, j] - factor[i, :j] @ factor[j, :j]
            factor[i, j] = np.sqrt(rest) if i == j else rest / factor[j, j]
    return factor


# What TensorFlow has no kernels for in float64, or cannot mix.
UNSUPPORTED = {
    "tensorflow": {
        "MaxPooling3D",
        "AveragePooling3D",
        "AdaptiveMaxPooling3D",
        "AdaptiveAveragePooling3D",
        "OrthogonalRegularizer",
    }
}.get(keras.backend.backend(), set())

GROUPS = {
    "activations": ACTIVATIONS,
    "losses": LOSSES,
    "metrics": METRICS,
    "core": CORE,
    "convolutions": CONVOLUTIONS,
    "pooling": POOLING,
    "recurrent": RECURRENT,
    "attention": ATTENTION,
    "normalization": NORMALIZATION,
    "merging": MERGING,
    "regularizers": REGULARIZERS,
    "operations": OPERATIONS,
}


def supported(group):
    return {
        name: case
        for name, case in GROUPS[group].items()
        if name not in UNSUPPORTED
    }


def main():
    print("| | values | gradients |\n|-|-|-|")
    with kormos.precision("float64"):
        for group in sys.argv[1:] or GROUPS:
            for name, sizes in deviations(supported(group)).items():
                if max(sizes) > 1e-12:
                    print("| {} | {:.1e} | {:.1e} |".format(name, *sizes))


if __name__ == "__main__":
    main()
