"""Data of every kind that Keras takes give the same objective."""

import collections
import tracemalloc

import keras
import numpy as np
import pandas
import pytest
import scipy.sparse
import tensorflow as tf
import torch
from keras import ops

import kormos
from conftest import BACKEND
from conftest import linear

ROWS = 10
THETA = np.array([0.5, -2.0, 1.0])

Pair = collections.namedtuple("Pair", ["first", "second"])


def eighths(*shape, low=-16, seed=0):
    """Multiples of 1/8, which are exact in every floating-point dtype."""
    return np.random.RandomState(seed).randint(low, 17, shape) / 8


X = eighths(ROWS, 3)
Y = eighths(ROWS, 1, seed=1)
W = eighths(ROWS, low=0, seed=2)


def weighted_mse(x=X, y=Y, w=W, theta=THETA):
    return np.mean(w * (x @ theta - y[:, 0]) ** 2)


def compiled(model, loss="mse", optimizer="l-bfgs-b"):
    model.compile(optimizer=optimizer, loss=loss)
    return model


def value(*data, model=None, theta=THETA, **kwargs):
    model = model or compiled(linear(3))
    return kormos.Objective(model, *data, **kwargs).value(theta)


class Batches(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self._batches = list(batches)

    def __len__(self):
        return len(self._batches)

    def __getitem__(self, index):
        return self._batches[index]


def slices(*arrays, size=4):
    """Tuples of slices of the arrays, the last of them shorter."""
    for start in range(0, len(arrays[0]), size):
        yield tuple(a[start : start + size] for a in arrays)


DATASETS = {
    "tf": lambda *a: tf.data.Dataset.from_tensor_slices(a).batch(4),
    "tf of unknown length": lambda *a: (
        tf.data.Dataset.from_tensor_slices(a).batch(4).filter(lambda *_: True)
    ),
    "PyDataset": lambda *a: Batches(slices(*a)),
    "DataLoader": lambda *a: torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*map(torch.from_numpy, a)), batch_size=4
    ),
}

ARRAYS = {
    "float64": lambda a: a,
    "float32": lambda a: a.astype("float32"),
    "float16": lambda a: a.astype("float16"),
    "big-endian": lambda a: a.astype(">f8"),
    "backward": lambda a: a.astype("float32")[::-1].copy()[::-1],
    "Fortran order": lambda a: np.asfortranarray(a, "float32"),
    "list": lambda a: a.tolist(),
    "tensor": lambda a: ops.convert_to_tensor(a, dtype="float32"),
    "tf tensor": lambda a: tf.constant(a),
    "torch tensor": lambda a: torch.tensor(a),
    "DataFrame": lambda a: pandas.DataFrame(a),
    "csr_matrix": lambda a: scipy.sparse.csr_matrix(np.atleast_2d(a.T).T),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays(kind):
    convert = ARRAYS[kind]
    got = value(convert(X), convert(Y), sample_weight=convert(W))
    assert got == pytest.approx(weighted_mse(), rel=1e-6)


@pytest.mark.parametrize("kind", DATASETS)
def test_datasets(kind):
    make, weights = DATASETS[kind], W[:, None]
    assert value(make(X, Y, weights)) == pytest.approx(weighted_mse(), rel=1e-6)
    assert value(make(X, Y)) == pytest.approx(weighted_mse(w=1), rel=1e-6)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", ">i4", "bool"])
def test_whole_numbers(dtype):
    x, y, w = (a > 0.5 for a in (X, Y, W))
    expected = weighted_mse(x.astype(float), y.astype(float), w.astype(float))
    x, y, w = (a.astype(dtype) for a in (x, y, w))
    assert value(x, y, sample_weight=w) == pytest.approx(expected, rel=1e-6)


def test_integers_stay_integers():
    # In float32 these are all even, and the model would see only zeros.
    ids = (2**24 + np.arange(ROWS))[:, None]
    model = keras.Sequential(
        [
            keras.Input((1,), dtype="int32"),
            keras.layers.Lambda(lambda i: ops.cast(i % 2, "float32")),
            keras.layers.Dense(1, use_bias=False),
        ]
    )
    got = value(ids, Y, model=compiled(model), theta=[0.5])
    expected = np.mean((0.5 * (np.arange(ROWS) % 2) - Y[:, 0]) ** 2)
    assert got == pytest.approx(expected, rel=1e-6)


def test_embedding():
    ids = np.random.RandomState(0).randint(0, 5, (ROWS, 2))
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Embedding(5, 1),
            keras.layers.Flatten(),
        ]
    )
    y = eighths(ROWS, 2, seed=3)
    table = eighths(5)
    got = value(ids, y, model=compiled(model), theta=table)
    assert got == pytest.approx(np.mean((table[ids] - y) ** 2), rel=1e-6)


def test_series_is_a_column():
    x = pandas.DataFrame(X, columns=["a", "b", "c"])
    got = value(x, pandas.Series(Y[:, 0]), sample_weight=pandas.Series(W))
    assert got == pytest.approx(weighted_mse(), rel=1e-6)


def test_frame_of_mixed_columns():
    x = pandas.DataFrame({"a": X[:, 0], "b": X[:, 1] > 0, "c": range(ROWS)})
    expected = weighted_mse(np.array(x.values.tolist()), w=1)
    assert value(x, Y) == pytest.approx(expected, rel=1e-6)


def two_inputs():
    inputs = {n: keras.Input((k,), name=n) for n, k in (("a", 2), ("b", 1))}
    joined = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
    return inputs, keras.layers.Dense(1, use_bias=False)(joined)


STRUCTURES = {
    "dict": lambda a, b: {"b": b, "a": a},
    "list": lambda a, b: [a, b],
    "tuple": lambda a, b: (a, b),
    "namedtuple": Pair,
    "lists in a dict": lambda a, b: {"a": a.tolist(), "b": b.tolist()},
}


def model_and_inputs(kind):
    """A model that takes a structure, and `X` in that structure."""
    inputs, outputs = two_inputs()
    if "dict" not in kind:
        inputs = list(inputs.values())
    model = compiled(keras.Model(inputs, outputs))
    return model, STRUCTURES[kind](X[:, :2], X[:, 2:])


# Keras says that a namedtuple is not the list that the model was made with.
@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
@pytest.mark.parametrize("kind", STRUCTURES)
def test_structures(kind):
    model, x = model_and_inputs(kind)
    for batch_size in (None, 3):
        got = value(x, Y, sample_weight=W, batch_size=batch_size, model=model)
        assert got == pytest.approx(weighted_mse(), rel=1e-6)


# Keras' `evaluate` takes no lists of numbers.
@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
@pytest.mark.parametrize("kind", [k for k in STRUCTURES if "lists" not in k])
def test_keras_evaluates_structures_alike(kind):
    model, x = model_and_inputs(kind)
    model.layers[-1].set_weights([THETA[:, None]])
    reported = model.evaluate(x, Y, sample_weight=W, verbose=0)
    assert reported == pytest.approx(weighted_mse(), rel=1e-6)


@pytest.mark.parametrize("kind", ["tf", "PyDataset"])
def test_dataset_of_dicts(kind):
    batches = [
        ({"a": x[:, :2], "b": x[:, 2:]}, y, w) for x, y, w in slices(X, Y, W)
    ]
    dataset = Batches(batches)
    if kind == "tf":
        whole = {"a": X[:, :2], "b": X[:, 2:]}, Y, W
        dataset = tf.data.Dataset.from_tensor_slices(whole).batch(4)
    model = compiled(keras.Model(*two_inputs()))
    assert value(dataset, model=model) == pytest.approx(
        weighted_mse(), rel=1e-6
    )


def test_one_weight_a_row_serves_every_output():
    inputs = keras.Input((3,))
    outputs = [keras.layers.Dense(1, use_bias=False)(inputs) for _ in range(2)]
    model = compiled(keras.Model(inputs, outputs), loss=["mse", "mse"])
    theta = np.concatenate([THETA, -THETA])
    got = value(X, [Y, -Y], sample_weight=W, model=model, theta=theta)
    assert got == pytest.approx(2 * weighted_mse(), rel=1e-6)


@pytest.mark.parametrize("w", [0 * W, -W, W - 1], ids=["0", "negative", "mix"])
def test_weights_of_any_sign(w):
    got = value(X, Y, sample_weight=w)
    assert got == pytest.approx(weighted_mse(w=w), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("kind", ["arrays", *DATASETS])
def test_float64_stays_float64(kind, float64):
    x, y, w = X / 3, Y / 7, W[:, None] / 9
    if kind == "arrays":
        got = value(x, y, sample_weight=w)
    else:
        got = value(DATASETS[kind](x, y, w))
    assert got == pytest.approx(weighted_mse(x, y, w[:, 0]), rel=1e-12)


def test_fit_takes_a_dataset(unconverged):
    fitted = []
    for data in ((X, Y), (DATASETS["tf"](X, Y),)):
        model = compiled(linear(3))
        model.fit(*data, epochs=50, verbose=0)
        fitted.append(model.get_weights()[0])
    np.testing.assert_allclose(*fitted, rtol=1e-6)
    best = np.linalg.lstsq(X, Y, rcond=None)[0]
    np.testing.assert_allclose(fitted[0], best, atol=1e-4)


def test_targets_may_be_left_out():
    inputs = keras.Input((3,))
    outputs = keras.layers.Dense(1, use_bias=False)(inputs)

    class SumOfSquares(keras.layers.Layer):
        def call(self, x):
            self.add_loss(ops.mean(x**2))
            return x

    model = keras.Model(inputs, SumOfSquares()(outputs))
    model = compiled(model, loss=None)
    expected = np.mean((X @ THETA) ** 2)
    for data in (X, Batches((x,) for (x,) in slices(X))):
        assert value(data, model=model) == pytest.approx(expected, rel=1e-6)


CLASSES = np.random.RandomState(4).randint(0, 3, ROWS)
CLASS_WEIGHT = {0: 2.0, 2: 0.25}
TARGETS = {
    "numbers": CLASSES,
    "column": CLASSES[:, None].astype("float32"),
    "one-hot": np.eye(3)[CLASSES],
}


@pytest.mark.parametrize("targets", TARGETS)
def test_class_weight(targets, unconverged):
    y = TARGETS[targets]
    weights = np.array([CLASS_WEIGHT.get(c, 1.0) for c in CLASSES])
    sparse = "" if targets == "one-hot" else "sparse_"
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(3, activation="softmax")]
    )
    compiled(model, loss=f"{sparse}categorical_crossentropy")
    start = model.get_weights()
    reported = model.evaluate(X, y, sample_weight=weights, verbose=0)
    for data in ((X, y), (DATASETS["tf"](X, y),)):
        objective = kormos.Objective(model, *data, class_weight=CLASS_WEIGHT)
        got = objective.value(objective.initial_position())
        assert got == pytest.approx(reported, rel=1e-5)
    fitted = []
    for kwargs in ({"class_weight": CLASS_WEIGHT}, {"sample_weight": weights}):
        model.set_weights(start)
        history = model.fit(X, y, epochs=5, verbose=0, **kwargs)
        fitted.append(model.get_weights()[0])
    np.testing.assert_allclose(*fitted, rtol=1e-6)
    reported = model.evaluate(X, y, sample_weight=weights, verbose=0)
    assert history.history["loss"][-1] == pytest.approx(reported, rel=1e-5)


def test_data_are_copied_once_on_the_host():
    x = np.zeros((20_000, 50), "float32")
    y = np.zeros((20_000, 1), "float32")
    model = compiled(linear(50))
    tracemalloc.start()
    try:
        kormos.Objective(model, x, y, batch_size=3_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The copies that JAX makes are not seen here.
    assert peak < (0.5 if BACKEND == "jax" else 1.5) * x.nbytes
