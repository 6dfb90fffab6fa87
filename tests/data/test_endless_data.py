"""Data sets that do not end, or whose end is unknown."""

import itertools
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

import kormos
from conftest import lindata
from conftest import linear

X, Y = (a.astype("float32") for a in lindata(24, noise=0.3))
PAIRS = [(X[i : i + 4], Y[i : i + 4]) for i in range(0, 24, 4)]


class Yields:
    """An object without a length, which yields the batches of a function."""

    def __init__(self, batches):
        self._batches = batches

    def __iter__(self):
        return iter(self._batches())


class Repeated(Yields):
    """A data set of the largest possible length, like Grain's `repeat()`."""

    def __len__(self):
        return sys.maxsize // 4

    def __getitem__(self, index):
        return PAIRS[index % len(PAIRS)]


class Batches(keras.utils.PyDataset):
    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        return PAIRS[index % len(PAIRS)]


class Rows(torch.utils.data.IterableDataset):
    def __init__(self, count=None):
        super().__init__()
        self._count = count

    def __iter__(self):
        rows = itertools.cycle(zip(X, Y, strict=True))
        return itertools.islice(rows, self._count)


def from_generator(batches):
    return tf.data.Dataset.from_generator(
        batches,
        output_signature=(
            tf.TensorSpec((None, 5)),
            tf.TensorSpec((None, 1)),
        ),
    )


def endless():
    return itertools.cycle(PAIRS)


def shuffled():
    """Batches that never repeat."""
    rng = np.random.default_rng(0)
    while True:
        rows = rng.permutation(24)[:4]
        yield X[rows] + rng.normal(size=(4, 5)), Y[rows]


def repeated():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).repeat()


ENDLESS = {
    "tf.data": lambda: from_generator(endless),
    "tf.data, repeated": repeated,
    "DataLoader": lambda: torch.utils.data.DataLoader(Rows(), batch_size=4),
    "PyDataset": Batches,
    "iterable": lambda: Yields(endless),
    "as long as can be": lambda: Repeated(endless),
}
FINITE = {
    "tf.data": lambda: from_generator(lambda: PAIRS),
    "tf.data, filtered": lambda: (
        tf.data.Dataset.from_tensor_slices((X, Y))
        .batch(4)
        .filter(lambda x, y: True)
    ),
    "DataLoader": lambda: torch.utils.data.DataLoader(Rows(24), batch_size=4),
    "iterable": lambda: Yields(lambda: PAIRS),
}


def compiled():
    model = linear()
    model.compile(optimizer="lbfgs", loss="mse")
    return model


def first_loss(count):
    """The loss of the first batches with kernel entries of one."""
    errors = [x.sum(axis=1, keepdims=True) - y for x, y in PAIRS[:count]]
    return np.mean(np.square(errors))


@pytest.mark.slow
@pytest.mark.parametrize("source", ENDLESS)
def test_endless_data_are_refused(source):
    model = compiled()
    with pytest.raises(ValueError, match="`x` must end.*`steps_per_epoch`"):
        model.fit(ENDLESS[source](), verbose=0)
    with pytest.raises(ValueError, match="`x` must end: .*Received: x of type"):
        kormos.Objective(model, ENDLESS[source](), stream=True)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("source", ENDLESS)
def test_steps_of_endless_data_are_the_data(source, stream):
    history = compiled().fit(
        ENDLESS[source](),
        steps_per_epoch=3,
        epochs=12,
        stream=stream,
        verbose=0,
    )
    assert history.result.initial_loss == pytest.approx(first_loss(3), 1e-5)
    assert history.result.iterations <= 12
    design, y = X[:12].astype("float64"), Y[:12]
    best, *_ = np.linalg.lstsq(design, y, rcond=None)
    expected = np.mean(np.square(design @ best - y))
    assert history.result.loss == pytest.approx(expected, 1e-3)


@pytest.mark.parametrize("source", FINITE)
def test_an_end_that_is_not_told(source):
    result = compiled().fit(FINITE[source](), epochs=1, verbose=0).result
    assert result.initial_loss == pytest.approx(first_loss(6), 1e-5)


def test_steps_of_validation_data():
    model = compiled()
    how = {"validation_data": repeated(), "epochs": 1, "verbose": 0}
    with pytest.raises(ValueError, match="must end.*`validation_steps`"):
        model.fit(X, Y, **how)
    history = model.fit(X, Y, validation_steps=2, **how)
    expected = model.evaluate(repeated(), steps=2, verbose=0)
    assert history.history["val_loss"][-1] == pytest.approx(expected, 1e-5)


def test_steps_of_a_generator_are_read_once():
    result = (
        compiled().fit(endless(), steps_per_epoch=3, epochs=1, verbose=0).result
    )
    assert result.initial_loss == pytest.approx(first_loss(3), 1e-5)


def test_data_that_never_repeat(monkeypatch):
    monkeypatch.setattr("kormos.data.datasets.MOST_BATCHES", 600)
    with pytest.raises(ValueError, match="not ended after 601 batches"):
        compiled().fit(Yields(shuffled), verbose=0)


def test_more_bytes_than_are_kept(monkeypatch):
    monkeypatch.setattr("kormos.data.datasets.MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="not ended after 11 batches"):
        compiled().fit(Yields(endless), verbose=0)
