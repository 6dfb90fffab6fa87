"""Every loss and metric of Keras: fits are right, or refused by name.

The classes are those of the installed Keras. Each has one kind of targets,
which must be added here for a new class.
"""

import inspect

import keras
import numpy as np
import pytest
from keras import layers

from audit.measuring import undrawn
from conftest import BACKEND
from sweeping import ROWS
from sweeping import TOLERANCE
from sweeping import classes
from sweeping import draw_weights
from sweeping import fit
from sweeping import needs
from sweeping import refuses

CLASSES = 3
_random = np.random.RandomState(0)
INPUTS = _random.normal(size=(ROWS, 4)).astype("float32")
_labels = np.array([2, 0, 1, 1, 0, 2])

# Targets, and the activation of the outputs for them.
KINDS = {
    "numbers": (_random.normal(size=(ROWS, CLASSES)), "linear"),
    "positive": (_random.uniform(0.5, 2.0, (ROWS, CLASSES)), "softplus"),
    "signs": (np.sign(_random.normal(size=(ROWS, CLASSES))), "tanh"),
    "binary": (_random.randint(0, 2, (ROWS, CLASSES)), "sigmoid"),
    "one hot": (np.eye(CLASSES)[_labels], "softmax"),
    "labels": (_labels, "softmax"),
    "sequences": (_random.randint(1, CLASSES, (ROWS, 2)), "linear"),
    "embedded": (_labels, "linear"),
}

LOSSES = {
    "BinaryCrossentropy": "binary",
    "BinaryFocalCrossentropy": "binary",
    "CTC": "sequences",
    "CategoricalCrossentropy": "one hot",
    "CategoricalFocalCrossentropy": "one hot",
    "CategoricalGeneralizedCrossEntropy": "labels",
    "CategoricalHinge": "one hot",
    "Circle": "embedded",
    "CosineSimilarity": "numbers",
    "Dice": "binary",
    "Hinge": "signs",
    "Huber": "numbers",
    "KLDivergence": "one hot",
    "LogCosh": "numbers",
    "MeanAbsoluteError": "numbers",
    "MeanAbsolutePercentageError": "positive",
    "MeanSquaredError": "numbers",
    "MeanSquaredLogarithmicError": "positive",
    "Poisson": "positive",
    "SparseCategoricalCrossentropy": "labels",
    "SquaredHinge": "signs",
    "Tversky": "binary",
}

# Losses that mix rows, and losses whose second derivatives are zero.
REFUSED_BY_LM = {
    "CategoricalHinge",
    "Circle",
    "Dice",
    "Hinge",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "Tversky",
}
if BACKEND != "jax":
    # It has no second derivatives there.
    REFUSED_BY_LM.add("CTC")

METRICS = {
    "AUC": "binary",
    "BinaryAccuracy": "binary",
    "BinaryCrossentropy": "binary",
    "BinaryIoU": "binary",
    "CategoricalAccuracy": "one hot",
    "CategoricalCrossentropy": "one hot",
    "CategoricalHinge": "one hot",
    "F1Score": "one hot",
    "FBetaScore": "one hot",
    "FalseNegatives": "binary",
    "FalsePositives": "binary",
    "Hinge": "signs",
    "IoU": "labels",
    "KLDivergence": "one hot",
    "MeanAbsolutePercentageError": "positive",
    "MeanIoU": "labels",
    "MeanSquaredLogarithmicError": "positive",
    "OneHotIoU": "one hot",
    "OneHotMeanIoU": "one hot",
    "Poisson": "positive",
    "Precision": "binary",
    "PrecisionAtRecall": "binary",
    "Recall": "binary",
    "RecallAtPrecision": "binary",
    "SensitivityAtSpecificity": "binary",
    "SparseCategoricalAccuracy": "labels",
    "SparseCategoricalCrossentropy": "labels",
    "SparseTopKCategoricalAccuracy": "labels",
    "SpecificityAtSensitivity": "binary",
    "SquaredHinge": "signs",
    "TopKCategoricalAccuracy": "one hot",
    "TrueNegatives": "binary",
    "TruePositives": "binary",
}

LEFT_OUT = {
    "Loss": "abstract",
    "Metric": "abstract",
    "MeanMetricWrapper": "of a function",
    "Mean": "of values: `compile` cannot take it",
    "Sum": "of values: `compile` cannot take it",
}

# Values of arguments, by their names.
ARGUMENTS = {
    "k": 2,
    "num_classes": CLASSES,
    "precision": 0.5,
    "recall": 0.5,
    "sensitivity": 0.5,
    "sparse_y_pred": False,
    "specificity": 0.5,
    "target_class_ids": [0, 1],
}


def make(module, name):
    kind = getattr(module, name)
    missing = set(needs(kind)) - set(ARGUMENTS)
    if missing:
        pytest.fail(f"No values are known of {missing}, which {name} needs")
    taken = inspect.signature(kind.__init__).parameters
    kwargs = {a: value for a, value in ARGUMENTS.items() if a in taken}
    return kind(**kwargs)


def swept(module, base):
    return [n for n in classes(module, base) if n not in LEFT_OUT]


# With the usual weights, the cosines of the rows cancel to a mean of 8e-4.
# Float32 rounding is then a larger part of the mean than the sweep allows.
SEEDS = {"CosineSimilarity": 1}


def network(kind, seed=0):
    targets, activation = KINDS[kind]
    with undrawn():
        hidden = layers.Dense(4, activation="tanh")
        parts = [keras.Input((4,)), hidden]
        if kind == "sequences":
            parts += [layers.Dense(5 * CLASSES), layers.Reshape((5, CLASSES))]
        else:
            parts.append(layers.Dense(CLASSES, activation=activation))
        model = keras.Sequential(parts)
    draw_weights(model, seed)
    dtype = "float32" if targets.dtype.kind == "f" else "int32"
    return model, targets.astype(dtype)


def fits_or_refuses(name, method):
    """Whether there was a fit."""
    model, y = network(LOSSES.get(name, "numbers"), SEEDS.get(name, 0))
    model.compile(loss=make(keras.losses, name))
    try:
        fit(model, INPUTS, y, method)
    except Exception as error:
        if refuses(error, name):
            return False
        if name not in LOSSES:
            error.add_note(f"Does LOSSES lack which targets {name} has?")
        raise
    return True


LOSS_NAMES = swept(keras.losses, keras.losses.Loss)
METRIC_NAMES = swept(keras.metrics, keras.metrics.Metric)


@pytest.mark.parametrize(
    "name, method",
    [(name, method) for method in ("lbfgs", "lm") for name in LOSS_NAMES],
)
def test_losses(name, method):
    is_refused = method == "lm" and name in REFUSED_BY_LM
    assert fits_or_refuses(name, method) is not is_refused


@pytest.mark.parametrize("method", ["lbfgs", "lm"])
@pytest.mark.parametrize(
    "kind", sorted({METRICS.get(n, "numbers") for n in METRIC_NAMES})
)
def test_metrics(kind, method):
    names = [n for n in METRIC_NAMES if METRICS.get(n, "numbers") == kind]
    metrics = [make(keras.metrics, name) for name in names]
    model, y = network(kind)
    loss = "sparse_categorical_crossentropy" if kind == "labels" else "mse"
    model.compile(loss=loss, metrics=metrics)
    history, after = fit(model, INPUTS, y, method)
    wrong = [
        f"{name}: {history.history[metric.name][-1]}, not {after[metric.name]}"
        for name, metric in zip(names, metrics, strict=True)
        if not np.allclose(
            history.history[metric.name][-1],
            after[metric.name],
            rtol=TOLERANCE,
            atol=1e-6,
        )
    ]
    assert not wrong, "\n".join(wrong)
    assert set(after) == {"loss", *(m.name for m in metrics)}


def test_tables_name_classes():
    assert {*LOSSES, *REFUSED_BY_LM} <= set(LOSS_NAMES)
    assert set(METRICS) <= set(METRIC_NAMES)
