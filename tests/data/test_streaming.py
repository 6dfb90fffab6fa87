"""Data that are read at every evaluation give the results of data in memory."""

import keras
import numpy as np
import pytest
import torch

import kormos
from conftest import BACKEND
from conftest import lindata
from native import eager_only
from native import methods

pytestmark = pytest.mark.usefixtures("unconverged")

X, Y = lindata(60, 0.1)
CLASSES = (Y[:, 0] > 0).astype("int32")


class Batches(keras.utils.PyDataset):
    """Batches that are made when they are read, which is counted."""

    def __init__(self, *arrays, size=16):
        super().__init__()
        self._arrays, self._size = arrays, size
        self.read = 0

    def __len__(self):
        return -(-len(self._arrays[0]) // self._size)

    def __getitem__(self, index):
        self.read += 1
        rows = slice(index * self._size, (index + 1) * self._size)
        return tuple(a[rows] for a in self._arrays)


def loader(x, y):
    pairs = torch.utils.data.TensorDataset(*map(torch.from_numpy, (x, y)))
    return torch.utils.data.DataLoader(pairs, batch_size=16)


def tf_dataset(x, y):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(60).batch(16)


SOURCES = {
    "PyDataset": lambda x, y: (Batches(x, y),),
    "DataLoader": lambda x, y: (loader(x, y),),
    "tf.data, shuffled": lambda x, y: (tf_dataset(x, y),),
    "arrays": lambda x, y: (x, y),
}


def network(loss="mse", outputs=1, metrics=None):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(4, "tanh", kernel_regularizer="l2"),
            keras.layers.Dense(outputs, "softmax" if outputs > 1 else None),
        ]
    )
    model.compile(loss=loss, metrics=metrics)
    return model


def theta_for(objective):
    return np.random.default_rng(0).normal(size=objective.size)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "batch_size", [None, pytest.param(7, marks=eager_only)]
)
def test_the_objective_is_the_same(float64, source, batch_size):
    model = network()
    held = kormos.Objective(model, X, Y)
    streamed = kormos.Objective(
        model, *SOURCES[source](X, Y), stream=True, batch_size=batch_size
    )
    theta = theta_for(held)
    loss, grad = held.value_and_grad(theta)
    own_loss, own_grad = streamed.value_and_grad(theta)
    assert own_loss == pytest.approx(loss, rel=1e-13)
    assert streamed.value(theta) == pytest.approx(loss, rel=1e-13)
    np.testing.assert_allclose(own_grad, grad, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(
        streamed.hvp(theta, grad), held.hvp(theta, grad), rtol=1e-10
    )
    assert streamed.rows == held.rows == 60


def test_matrices_are_the_same(float64):
    model = network("sparse_categorical_crossentropy", outputs=2)
    held = kormos.Objective(model, X, CLASSES)
    streamed = kormos.Objective(model, Batches(X, CLASSES), stream=True)
    theta = theta_for(held)
    own, expected = streamed.gauss_newton(), held.gauss_newton()
    assert own.outputs == expected.outputs == 120
    for a, b in zip(
        own.normal_equations(theta),
        expected.normal_equations(theta),
        strict=True,
    ):
        np.testing.assert_allclose(
            *(np.triu(np.atleast_2d(c)) for c in (a, b)), atol=1e-13
        )
    _, _, rows = own.rows(theta)
    _, _, matrix = own.normal_equations(theta)
    np.testing.assert_allclose(rows.T @ rows, matrix, atol=1e-12)


@pytest.mark.parametrize(
    "method", ["l-bfgs-b", *methods("lbfgs"), "lm", "newton-cg"]
)
def test_a_fit_goes_the_same_way(float64, method):
    losses = []
    for data in ((X, Y), (Batches(X, Y),)):
        model = network(metrics=["mae"])
        history = kormos.fit(
            model,
            *data,
            optimizer=method,
            epochs=8,
            stream=len(data) == 1,
            validation_data=data[0] if len(data) == 1 else data,
            verbose=0,
        ).history
        losses.append([history[k] for k in ("loss", "mae", "val_mae")])
    # The first step comes from a difference of gradients, which has half of
    # their digits.
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


@eager_only
@pytest.mark.parametrize("method", ["lbfgs", "lm"])
def test_a_fit_goes_on_to_the_bit(method):
    ends = []
    for epochs in ((10,), (4, 10)):
        model = network()
        model.compile(optimizer=method, loss="mse")
        for first, last in zip((0, *epochs), epochs, strict=False):
            model.fit(
                Batches(X, Y),
                initial_epoch=first,
                epochs=last,
                resume=first > 0,
                stream=True,
                verbose=0,
            )
        ends.append(model.get_weights())
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)


def test_data_are_read_once_an_evaluation_and_once_before():
    data = Batches(X, Y)
    model = network()
    history = kormos.fit(
        model, data, optimizer="lbfgs", epochs=5, stream=True, verbose=0
    )
    passes = history.result.evaluations + 1
    # The first batch is read twice more: to build layers, and to see that its
    # rows stay the same.
    assert data.read == passes * len(data) + 2


def test_outputs_are_counted_without_reading():
    data = Batches(X, Y)
    objective = kormos.Objective(network(), data, stream=True)
    before = data.read
    assert objective.gauss_newton().outputs == 60
    assert data.read == before


@eager_only
def test_fit_counts_and_stops_as_it_does_with_data_in_memory():
    model = network()
    history = kormos.fit(
        model,
        Batches(X, Y),
        optimizer="lbfgs",
        epochs=50,
        steps_per_epoch=5,
        max_evals=12,
        stream=True,
        verbose=0,
    )
    assert history.result.evaluations == 12
    assert history.result.status == "evaluation limit"


def test_stochastic_steps_of_a_stream():
    model = network()
    before = kormos.Objective(model, X, Y)
    start = before.value(before.initial_position())
    kormos.fit(
        model,
        Batches(X, Y),
        optimizer=kormos.optimizers.LevenbergMarquardt(stochastic=True),
        batch_size=16,
        epochs=3,
        stream=True,
        verbose=0,
    )
    assert before.value(before.initial_position()) < start / 2


def test_class_weights_of_a_stream(float64):
    model = network("sparse_categorical_crossentropy", outputs=2)
    losses = [
        kormos.Objective(
            model, *data, class_weight={1: 3.0}, stream=len(data) == 1
        ).value(np.linspace(-1, 1, model.count_params()))
        for data in ((X, CLASSES), (Batches(X, CLASSES),))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-13)


def test_a_check_of_a_stream():
    report = kormos.fit(
        network(), Batches(X, Y), stream=True, check=True, epochs=1, verbose=0
    ).check
    assert report.passed
    assert "60 rows" in report.title


class Shrinking(Batches):
    def on_epoch_end(self):
        self._arrays = tuple(a[:-1] for a in self._arrays)


def test_rows_that_change_are_refused():
    with pytest.raises(ValueError, match="60 rows at first, then 59"):
        kormos.fit(network(), Shrinking(X, Y), stream=True, verbose=0)


class Unreadable(Batches):
    """Batches that cannot be read any more after some passes."""

    def __getitem__(self, index):
        if self.read >= 40:
            raise OSError("the disk is gone")
        return super().__getitem__(index)


def test_an_error_of_the_data_ends_a_fit():
    data = Unreadable(X, Y)
    with pytest.raises(OSError, match="the disk is gone"):
        kormos.fit(network(), data, stream=True, epochs=100, verbose=0)
    assert data.read == 40


class Augmented(Batches):
    """Batches with new noise whenever they are read."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        noise = np.random.default_rng(self.read).normal(size=x.shape)
        return x + 0.3 * noise.astype(x.dtype), y


def test_rows_that_differ_at_each_reading_are_refused():
    model = network()
    before = model.get_weights()
    with pytest.raises(ValueError, match="same rows every time.*losses of"):
        kormos.fit(model, Augmented(X, Y), stream=True, verbose=0)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    # In memory they are read once.
    assert model.fit(Augmented(X, Y), verbose=0)


def test_not_finite_rows_are_refused():
    x = X.copy()
    x[50, 2] = np.nan
    model = network()
    before = model.get_weights()
    with pytest.raises(ValueError, match="`x` must be finite"):
        kormos.fit(model, Batches(x, Y), stream=True, verbose=0)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_share_for_validation_is_refused():
    with pytest.raises(ValueError, match="stream=True"):
        kormos.fit(network(), X, Y, stream=True, validation_split=0.2)


def test_tensors_are_refused():
    streamed = kormos.Objective(network(), Batches(X, Y), stream=True)
    theta = keras.ops.convert_to_tensor(streamed.initial_position())
    with pytest.raises(ValueError, match="pass vectors as NumPy"):
        streamed.value_and_grad(theta)


@pytest.mark.skipif(BACKEND == "torch", reason="arrays are not copied there")
def test_memory_of_a_stream_is_that_of_a_batch(tmp_path):
    """Rows on disk, 64 MB of them, are never in memory at once."""
    import tracemalloc

    shape = (2**20, 16)
    x = np.lib.format.open_memmap(
        tmp_path / "x.npy", mode="w+", dtype="float32", shape=shape
    )
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(1)])
    model.compile(loss="mse")
    tracemalloc.start()
    objective = kormos.Objective(
        model, x, x[:, :1], stream=True, batch_size=4096
    )
    loss, _ = objective.value_and_grad(np.ones(objective.size))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The data are zeros: what is left is the bias.
    assert loss == pytest.approx(1.0, rel=1e-6)
    assert most < 8 * 2**20
