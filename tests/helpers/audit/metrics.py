"""Metrics after two updates."""

import numpy as np
from keras import metrics
from keras import ops

from audit.formulas import EPSILON
from audit.formulas import cosine
from audit.inputs import BINARY
from audit.inputs import CLASSES
from audit.inputs import ONE_HOT
from audit.inputs import UNIT
from audit.inputs import WEIGHTS
from audit.inputs import X2
from audit.inputs import X
from audit.losses import SAMPLES
from audit.measuring import Case


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
        # TensorFlow differentiates up to the inputs, even where a gradient is
        # stopped.
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
    kwargs, y, p, formula = SAMPLES[loss]
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
