"""Targets that a loss cannot use are refused, with the name of the loss."""

import keras
import numpy as np
import pytest

from conftest import BACKEND
from conftest import lindata

X, _ = lindata(12, noise=0.3)
RANDOM = np.random.default_rng(0)
CLASSES = RANDOM.integers(0, 3, 12)
LABELS = RANDOM.integers(0, 2, (12, 1))
SPARSE = "sparse_categorical_crossentropy"
BINARY = "binary_crossentropy"


def network(width, loss, method="lbfgs", activation=None):
    model = keras.Sequential(
        [
            keras.Input((X.shape[1],)),
            keras.layers.Dense(width, activation=activation),
        ]
    )
    model.compile(optimizer=method, loss=loss)
    return model


def with_last(array, value):
    array = np.array(array)
    array[-1] = value
    return array


WRONG_SHAPES = {
    "mse": (np.zeros((12, 2)), r"\(12, 2\), an output of shape \(12, 3\)\."),
    "mae": (np.zeros((12, 4, 2)), r"\(12, 4, 2\)"),
    "categorical_crossentropy": (CLASSES, r"\(12,\)"),
    SPARSE: (np.eye(3)[CLASSES], r"\(12, 3\)"),
    BINARY: (np.zeros((12, 2)), r"\(12, 2\)"),
}


@pytest.mark.parametrize("method", ["lbfgs", "l-bfgs-b", "lm"])
@pytest.mark.parametrize("loss", WRONG_SHAPES)
def test_shapes(loss, method):
    y, received = WRONG_SHAPES[loss]
    model = network(3, loss, method, "sigmoid")
    before = model.get_weights()
    said = (
        f"The loss '{loss}' cannot be computed .* Received: targets of shape "
    )
    with pytest.raises(ValueError, match=said + received):
        model.fit(X, y, verbose=0)
    for after, weights in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(after, weights)


@pytest.mark.parametrize(
    "y",
    [
        [np.zeros((12, 3)), np.zeros((12, 3))],
        {"a": np.zeros((12, 3))},
        [np.zeros((12, 3)), None],
    ],
)
def test_structures(y):
    said = "one array for one output, .* Received: .*12, 3"
    with pytest.raises(ValueError, match=said):
        network(3, "mse").fit(X, y, verbose=0)


def test_shapes_of_metrics():
    model = network(3, "mse")
    metrics = ["mae", "sparse_categorical_accuracy"]
    model.compile(optimizer="lbfgs", loss="mse", metrics=metrics)
    said = r"metric cannot .* mae, sparse.*, y of \(12, 3\), and"
    with pytest.raises(ValueError, match=said):
        model.fit(X, np.zeros((12, 3)), verbose=0)


def test_shapes_of_weights():
    said = r"loss 'mse' cannot .* and weights of shape \(12, 2\)\. It fails"
    with pytest.raises(ValueError, match=said):
        network(3, "mse").fit(
            X, np.zeros((12, 3)), sample_weight=np.ones((12, 2)), verbose=0
        )


@pytest.mark.parametrize("how", [{}, {"batch_size": 4}, {"stream": True}])
@pytest.mark.parametrize(
    "loss, wrong, received",
    [
        (SPARSE, 3, "from 0 to 3"),
        (SPARSE, -1, "from -1 to 2"),
        (BINARY, 2, "from 0 to 2"),
        (BINARY, -1, "from -1 to 1"),
    ],
)
def test_values(loss, wrong, received, how):
    """A wrong value in the last row is found among chunks and streams."""
    width, y = (3, CLASSES) if loss == SPARSE else (1, LABELS)
    model = network(width, loss, "lbfgs", "sigmoid")
    said = f"targets of '{loss}' must be .* Received: targets {received}"
    with pytest.raises(ValueError, match=said):
        model.fit(X, with_last(y, wrong), verbose=0, **how)


def test_values_of_validation_data():
    model = network(3, SPARSE, "lbfgs", "softmax")
    data = X, with_last(CLASSES, 3)
    with pytest.raises(ValueError, match="from 0 to 3"):
        model.fit(X, CLASSES, validation_data=data, verbose=0)


def logits(**options):
    return keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, **options
    )


def smoothed():
    return keras.losses.BinaryCrossentropy(
        from_logits=True, label_smoothing=0.1
    )


@pytest.mark.parametrize(
    "loss, width, y",
    [
        (logits(), 3, CLASSES[:, None].astype("uint8")),
        (logits(), 3, CLASSES.astype("float64")),
        (logits(ignore_class=-1), 3, with_last(CLASSES, -1)),
        (logits(ignore_class=255), 3, with_last(CLASSES, 255)),
        (smoothed(), 1, with_last(LABELS, 0)),
        ("binary_crossentropy", 1, 0.3 + 0.4 * LABELS),
        ("hinge", 1, 2 * LABELS - 1),
    ],
    ids=["uint8", "float64", "-1", "255", "smoothed", "soft", "hinge"],
)
def test_right_values(loss, width, y):
    model = network(width, loss, "lbfgs", "sigmoid" if width == 1 else None)
    history = model.fit(X, y, epochs=3, verbose=0)
    expected = model.evaluate(X, y, verbose=0)
    np.testing.assert_allclose(history.history["loss"][-1], expected, rtol=1e-5)


@pytest.mark.skipif(BACKEND != "jax", reason="raises errors for such classes")
@pytest.mark.parametrize("axes", [1, 2])
def test_rows_of_weight_zero(axes):
    """Where the loss takes any class, one of weight zero is of no effect."""
    weights = with_last(np.ones(12), 0).reshape((12, 1)[:axes])
    histories = []
    for label in (7, 0):
        y = with_last(CLASSES, label).reshape((12, 1)[:axes])
        keras.utils.set_random_seed(0)
        history = network(3, logits()).fit(
            X, y, sample_weight=weights, epochs=3, verbose=0
        )
        histories.append(history.history["loss"])
    assert histories[0] == histories[1]
