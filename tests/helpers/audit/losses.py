"""Losses of each sample, and as weighted means."""

import numpy as np
from keras import losses
from keras import ops

from audit.formulas import EPSILON
from audit.formulas import absolute
from audit.formulas import cosine
from audit.formulas import log_softmax
from audit.formulas import sigmoid
from audit.formulas import softmax
from audit.formulas import softplus
from audit.inputs import BINARY
from audit.inputs import CLASSES
from audit.inputs import LOGITS
from audit.inputs import ONE_HOT
from audit.inputs import POSITIVE
from audit.inputs import POSITIVE2
from audit.inputs import SIMPLEX
from audit.inputs import TOKENS
from audit.inputs import UNIT
from audit.inputs import WEIGHTS
from audit.inputs import X2
from audit.inputs import X
from audit.measuring import Case


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

# Name: options, targets, predictions, formula of each sample's loss.
SAMPLES = {
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
    """A loss of each sample, and as a weighted mean."""
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


LOSSES = {name: _loss(name, *row) for name, row in SAMPLES.items()}
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
