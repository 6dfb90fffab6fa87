"""Data that cannot be used are refused at once, by name; nothing changes."""

import itertools

import keras
import numpy as np
import pandas
import pytest
import tensorflow as tf
import torch

import kormos
from conftest import lindata
from conftest import linear

X, Y = lindata(12, noise=0.3)
W = np.ones(12)
PAIRS = [(X[:4], Y[:4]), (X[4:8], Y[4:8]), (X[8:], Y[8:])]


class Batches(keras.utils.PyDataset):
    def __init__(self, batches, num_batches=0):
        super().__init__()
        self._batches = batches
        self._num_batches = num_batches

    @property
    def num_batches(self):
        return self._num_batches

    def __getitem__(self, index):
        return self._batches[index % len(self._batches)]


class BatchesOfTwoKinds(Batches):
    def __getitem__(self, index):
        return (X, Y, W)[: 3 - index]


def dataset():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)


RAGGED = tf.ragged.constant([[1.0] * (1 + row % 3) for row in range(12)])


def ragged_dataset():
    return tf.data.Dataset.from_tensor_slices((RAGGED, Y)).batch(4)


def generator():
    yield from PAIRS


def with_value(array, value, place=5):
    array = np.array(array)
    array[place] = value
    return array


# The wrong arguments of a fit whose `(x, y)` is otherwise right, and words of
# the message.
BAD = {
    "infinite tf.data": (dict(x=dataset().repeat(), y=None), "`x` must end"),
    "infinite PyDataset": (
        dict(x=Batches(PAIRS, None), y=None),
        "`x` must end",
    ),
    "infinite validation data": (
        dict(validation_data=dataset().repeat()),
        "`validation_data` must end",
    ),
    "generator": (dict(x=generator(), y=None), "`x` .* generator"),
    "endless generator": (
        dict(x=itertools.cycle(PAIRS), y=None),
        "`x` .* generator",
    ),
    "validation generator": (
        dict(validation_data=generator()),
        "`validation_data` .* generator",
    ),
    "empty tf.data": (dict(x=dataset().take(0), y=None), "`x` .* empty"),
    "empty PyDataset": (dict(x=Batches([]), y=None), "`x` .* empty"),
    "empty validation data": (
        dict(validation_data=Batches([])),
        "`validation_data` .* empty",
    ),
    "empty array": (dict(x=X[:0], y=Y[:0]), "`x` .* 0 rows"),
    "empty validation arrays": (
        dict(validation_data=(X[:0], Y[:0])),
        "`validation_data` .* 0 rows",
    ),
    "no x": (dict(x=None), "`x` must hold data.*None"),
    "no arrays": (dict(x=[]), r"`x` must hold data.*\[\]"),
    "a number": (dict(x=3.0), "`x` must have a row for each sample"),
    "x and y": (dict(y=Y[1:]), r"rows.*x of shape \(12, 5\).*y .*\(11, 1\)"),
    "x and weights": (
        dict(sample_weight=W[1:]),
        r"rows.*sample_weight of shape \(11,\)",
    ),
    "within a dict": (
        dict(x={"a": X, "b": X[1:]}),
        r"rows.*'a': \(12, 5\), 'b': \(11, 5\)",
    ),
    "validation x and y": (
        dict(validation_data=(X, Y[1:])),
        r"rows.*validation_data\[1\] of shape \(11, 1\)",
    ),
    "weights of one output alone": (
        dict(y={"a": Y, "b": Y}, sample_weight={"a": W}),
        r"`sample_weight` .* for each of `y`.*\{'a': \(12,\)\}",
    ),
    "weights of neither row nor output": (
        dict(y=[Y, Y], sample_weight=np.ones((12, 2))),
        "`sample_weight` must hold one weight per row",
    ),
    "ragged tensor": (dict(x=RAGGED), "`x` .* ragged.*RaggedTensor of shape"),
    "ragged tensor of a dict": (
        dict(x={"a": X, "b": RAGGED}),
        r"`x\['b'\]` .* ragged",
    ),
    "ragged targets": (dict(y=RAGGED), "`y` .* ragged"),
    "ragged validation data": (
        dict(validation_data=(X, RAGGED)),
        r"`validation_data\[1\]` .* ragged",
    ),
    "ragged batches": (dict(x=ragged_dataset(), y=None), "`x` .* ragged"),
    "ragged stream": (
        dict(x=ragged_dataset(), y=None, stream=True),
        "`x` .* ragged",
    ),
    "ragged list": (dict(x=[[1.0, 2.0], [3.0]]), "`x` .* arrays of numbers"),
    "NaN in x": (dict(x=with_value(X, np.nan)), "`x` .* finite.*in row 5"),
    "NaN in a dict": (
        dict(x={"a": X, "b": with_value(X, np.nan)}),
        r"`x\['b'\]` .* finite",
    ),
    "NaN in a data set": (
        dict(
            x=tf.data.Dataset.from_tensor_slices(
                (X, with_value(Y, np.nan))
            ).batch(4),
            y=None,
        ),
        "`y` .* finite.*in row 5",
    ),
    "infinite y": (dict(y=with_value(Y, -np.inf)), "`y` .* finite"),
    "y beyond float32": (dict(y=with_value(Y, 1e39)), "`y` .* in float32"),
    "NaN weight": (
        dict(sample_weight=with_value(W, np.nan)),
        "`sample_weight` .* finite",
    ),
    "NaN class weight": (
        dict(y=(Y > 0) * 1, class_weight={0: np.nan, 1: 1.0}),
        "`class_weight` .* finite",
    ),
    "NaN in validation x": (
        dict(validation_data=(with_value(X, np.nan), Y)),
        r"`validation_data\[0\]` .* finite",
    ),
    "infinite validation weight": (
        dict(validation_data=(X, Y, with_value(W, np.inf))),
        r"`validation_data\[2\]` .* finite",
    ),
    "strings": (dict(y=["a"] * 12), "`y.*numbers"),
    "array of strings": (dict(y=np.array(["a"] * 12)), "`y` .* numbers"),
    "objects": (dict(x=X.astype(object)), "`x` .* numbers.*object"),
    "complex numbers": (dict(x=X + 1j), "`x` .* numbers.*complex"),
    "dates": (
        dict(y=np.array(["2020-01-01"] * 12, "datetime64[D]")),
        "`y` .* numbers.*datetime",
    ),
    "frame with strings": (
        dict(x=pandas.DataFrame({"a": X[:, 0], "b": "1"})),
        "`x` .* numbers",
    ),
    "y beside a data set": (dict(x=dataset()), "`y` must be None"),
    "weights beside a data set": (
        dict(x=dataset(), y=None, sample_weight=W),
        "`sample_weight` must be None",
    ),
    "single samples": (
        dict(x=dataset().unbatch().map(lambda x, y: (x, y[0])), y=None),
        "`y` .* row for each sample; if a dataset",
    ),
    "unlike batches": (
        dict(x=BatchesOfTwoKinds(None, 2), y=None),
        "batches .* same structure",
    ),
    "torch Dataset": (
        dict(x=torch.utils.data.TensorDataset(torch.ones(12, 5)), y=None),
        "`x` .* `DataLoader`",
    ),
    "split of a data set": (
        dict(x=dataset(), y=None, validation_split=0.5),
        "`validation_split` can only split arrays",
    ),
    "split and validation data": (
        dict(validation_split=0.5, validation_data=(X, Y)),
        "`validation_split` or `validation_data`",
    ),
    "split of everything": (
        dict(validation_split=1.0),
        "`validation_split` must leave rows",
    ),
    "split of too little": (
        dict(validation_split=0.999),
        "`validation_split` must leave rows",
    ),
    "negative split": (
        dict(validation_split=-0.5),
        "`validation_split` must leave rows",
    ),
    "split that is no number": (
        dict(validation_split="half"),
        "`validation_split` must be a number.*'half'",
    ),
    "validation data without targets": (
        dict(validation_data=X),
        "validation data need targets.*ndarray",
    ),
    "class weights and weights": (
        dict(class_weight={0: 1.0}, sample_weight=W),
        "`class_weight` or sample weights",
    ),
    "class weights of two outputs": (
        dict(y=[Y, Y], class_weight={0: 1.0}),
        "`class_weight` .* one output",
    ),
    "class weights of sequences": (
        dict(y=np.zeros((12, 4, 3)), class_weight={0: 1.0}),
        "`class_weight` .* one class per row",
    ),
    "list of class weights": (
        dict(class_weight=[1.0, 2.0]),
        "`class_weight` must be a dict",
    ),
    "four validation arrays": (
        dict(validation_data=(X, Y, W, W)),
        "`validation_data` must hold .*4 parts",
    ),
    "validation steps": (
        dict(validation_steps=3, validation_data=(X, Y)),
        "`validation_steps`",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_fit_refuses(case):
    arguments, words = BAD[case]
    model = linear()
    model.compile(optimizer="l-bfgs-b", loss="mse")
    with pytest.raises(ValueError, match=words) as error:
        model.fit(**{"x": X, "y": Y, "verbose": 0, **arguments})
    assert "Received: " in str(error.value)
    np.testing.assert_array_equal(model.get_weights()[0], 1)
    assert int(model.optimizer.iterations.numpy()) == 0


@pytest.mark.parametrize(
    "name", ["batch_size", "validation_batch_size", "validation_freq"]
)
def test_fit_refuses_counts(name):
    model = linear()
    model.compile(optimizer="l-bfgs-b", loss="mse")
    for value in (0, -4, 4.0, "4"):
        arguments = {name: value, "validation_data": (X, Y)}
        with pytest.raises(ValueError, match=f"`{name}` must be .*Received: "):
            model.fit(X, Y, verbose=0, **arguments)
    np.testing.assert_array_equal(model.get_weights()[0], 1)


@pytest.mark.parametrize("case", ["generator", "NaN in x", "x and y"])
def test_objective_refuses(case):
    arguments, words = BAD[case]
    model = linear()
    model.compile(optimizer="adam", loss="mse")
    with pytest.raises(ValueError, match=words):
        kormos.Objective(model, **{"x": X, "y": Y, **arguments})
    with pytest.raises(ValueError, match="`batch_size` must be"):
        kormos.Objective(model, X, Y, batch_size=0)


def test_an_unbuilt_model_stays_unbuilt():
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(optimizer="l-bfgs-b", loss="mse")
    with pytest.raises(ValueError, match="finite"):
        model.fit(X, with_value(Y, np.nan), verbose=0)
    assert not model.built


def test_least_squares_refuses_ragged_data():
    v = keras.Variable([1.0, 2.0])

    def residuals(t):
        return v[0] - v[1] * t

    with pytest.raises(ValueError, match="`data` .* ragged.*Received: Ragged"):
        kormos.least_squares(residuals, [v], data=RAGGED)
