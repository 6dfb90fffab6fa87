"""Data other than arrays of finite numbers are used as in `evaluate`."""

from collections.abc import Sequence

import keras
import numpy as np
import pytest
import scipy.sparse
from keras import layers
from keras import ops

import kormos
from conftest import BACKEND

RANDOM = np.random.RandomState(0)
X = RANDOM.normal(size=(40, 3)).astype("float32")
Y = np.tanh(X.sum(axis=1, keepdims=True)).astype("float32")
NAMES = np.array(["a", "b", "c", "d"])[RANDOM.randint(0, 4, (40, 1))]

on_tensorflow = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="layers of strings are TensorFlow's"
)


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def dense(width=3, **kwargs):
    return keras.Sequential([keras.Input((width,), **kwargs), layers.Dense(1)])


def assert_fits(model, x, y, loss="mse", method="lbfgs", same=None, **kwargs):
    """The fit starts and ends at the loss of `evaluate`; of `same` if given."""
    model.compile(method, loss=loss)
    same = x if same is None else same
    before = model.evaluate(same, y, batch_size=40, verbose=0)
    result = model.fit(x, y, epochs=3, verbose=0, **kwargs).result
    after = model.evaluate(same, y, batch_size=40, verbose=0)
    assert result.initial_loss == pytest.approx(before, rel=1e-5)
    assert result.loss == pytest.approx(after, rel=1e-5)
    assert result.loss < before


# Strings


def lookup():
    return keras.Sequential(
        [
            keras.Input((1,), dtype="string"),
            layers.StringLookup(vocabulary=["a", "b", "c"]),
            layers.Embedding(4, 2),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )


def words():
    return keras.Sequential(
        [
            keras.Input((), dtype="string"),
            layers.TextVectorization(
                output_sequence_length=3, vocabulary=["a", "b", "c"]
            ),
            layers.Embedding(5, 2),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )


@on_tensorflow
@pytest.mark.parametrize(
    "settings",
    [{}, {"batch_size": 16}, {"stream": True}, {"precision": "float64"}],
)
def test_strings(settings):
    import tensorflow as tf

    assert_fits(lookup(), NAMES, Y, same=tf.constant(NAMES), **settings)


@on_tensorflow
@pytest.mark.parametrize("make", [lookup, words])
def test_strings_by_gauss_newton(make):
    import tensorflow as tf

    strings = NAMES
    if make is words:
        strings = [" ".join(RANDOM.choice(["a", "b", "c"], 3)) for _ in X]
    same = tf.constant(strings)
    assert_fits(make(), strings, Y, method="lm", same=same)


@on_tensorflow
def test_strings_beside_numbers_in_a_data_set():
    import tensorflow as tf

    names, numbers = keras.Input((1,), dtype="string"), keras.Input((3,))
    one_hot = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")
    both = layers.Concatenate()([one_hot(names), numbers])
    model = keras.Model({"s": names, "n": numbers}, layers.Dense(1)(both))
    x = {"s": NAMES.astype(object), "n": X}
    dataset = tf.data.Dataset.from_tensor_slices((x, Y)).batch(16)
    model.compile("lbfgs", loss="mse")
    before = model.evaluate(dataset, verbose=0)
    result = model.fit(dataset, epochs=1, verbose=0, check=True).result
    assert result.initial_loss == pytest.approx(before, rel=1e-5)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="which has strings")
def test_strings_are_refused():
    model = dense(1)
    model.compile("lbfgs", loss="mse")
    for strings in (NAMES, NAMES.astype(object), NAMES.tolist()):
        with pytest.raises(ValueError, match="`x` .* on TensorFlow. .*lookup"):
            model.fit(strings, Y, verbose=0)


def test_targets_of_strings_are_refused():
    model = dense()
    model.compile("lbfgs", loss="mse")
    with pytest.raises(ValueError, match="`y` must hold numbers"):
        model.fit(X, NAMES, verbose=0)
    with pytest.raises(ValueError, match="`sample_weight` .* real ones"):
        model.fit(X, Y, sample_weight=np.ones(40) + 1j, verbose=0)


# Complex numbers


class OfParts(keras.Model):
    """A model of complex inputs, with complex outputs if requested."""

    def __init__(self, is_complex=False):
        super().__init__()
        self.dense = layers.Dense(2 if is_complex else 1)
        self.is_complex = is_complex

    def call(self, inputs):
        parts = [ops.real(inputs), ops.imag(inputs)]
        outputs = self.dense(ops.concatenate(parts, axis=-1))
        if not self.is_complex:
            return outputs
        real, imaginary = (ops.cast(outputs[:, i], "complex64") for i in (0, 1))
        return real + 1j * imaginary


class ComplexLoss(OfParts):
    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        error = y_pred - ops.cast(y[:, 0], "complex64")
        return ops.mean(ops.square(ops.real(error)) + ops.imag(error) ** 2)


@pytest.mark.parametrize("method", ["lbfgs", "lm"])
@pytest.mark.parametrize("precision", [None, "float64"])
def test_complex_inputs(method, precision):
    z = X + 1j * X[:, ::-1] ** 2
    assert_fits(OfParts(), z, Y, method=method, precision=precision)


def test_complex_outputs():
    z = (X + 1j * X[:, ::-1] ** 2).astype("complex64")
    assert_fits(ComplexLoss(is_complex=True), z, Y, loss=None)
    model = ComplexLoss(is_complex=True)
    model.compile("lm")
    with pytest.raises(ValueError, match="real outputs.*with complex outputs"):
        model.fit(z, Y, verbose=0)


def test_complex_numbers_are_to_be_finite():
    model = OfParts()
    model.compile("lbfgs", loss="mse")
    z = X + 1j * np.where(X > 1, np.nan, X)
    with pytest.raises(ValueError, match="`x` must be finite"):
        model.fit(z, Y, verbose=0)


# NaN


class Impute(layers.Layer):
    def call(self, inputs):
        return ops.where(ops.isnan(inputs), ops.zeros_like(inputs), inputs)


def observed(y_true, y_pred):
    """The squares of errors where there are targets."""
    is_missing = ops.isnan(y_true)
    known = ops.where(is_missing, ops.zeros_like(y_true), y_true)
    error = ops.where(is_missing, ops.zeros_like(y_pred), y_pred - known)
    return ops.mean(ops.square(error), axis=-1)


@pytest.mark.parametrize("method", ["lbfgs", "lm"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"precision": "float64"}, {"stream": True, "batch_size": 16}],
)
def test_nan_that_a_model_handles(method, settings):
    model = keras.Sequential([keras.Input((3,)), Impute(), layers.Dense(1)])
    x, y = X.copy(), Y.copy()
    x[3, 1] = y[5] = np.nan
    assert_fits(model, x, y, observed, method, allow_nan=True, **settings)


def test_nan_is_refused_unless_it_is_allowed():
    model = keras.Sequential([keras.Input((3,)), Impute(), layers.Dense(1)])
    model.compile("lbfgs", loss="mse")
    x, weights = X.copy(), np.ones(40)
    x[3, 1] = weights[5] = np.nan
    with pytest.raises(ValueError, match="`allow_nan=True`.* row 3"):
        model.fit(x, Y, verbose=0)
    with pytest.raises(ValueError, match="`sample_weight` must be finite"):
        model.fit(x, Y, sample_weight=weights, allow_nan=True, verbose=0)
    with pytest.raises(ValueError, match="`x` must be finite"):
        model.fit(np.where(x > 1, np.inf, x), Y, allow_nan=True, verbose=0)
    assert kormos.check(model, x, Y, allow_nan=True).passed


# Batches of different lengths


class Lengths(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        steps = np.random.RandomState(index)
        return steps.normal(size=(8, 4 + index, 3)), Y[:8]


def test_batches_of_different_lengths():
    model = keras.Sequential(
        [
            keras.Input((None, 3)),
            layers.GlobalAveragePooling1D(),
            layers.Dense(1),
        ]
    )
    model.compile("lbfgs", loss="mse")
    with pytest.raises(ValueError, match="Pad them, or .* `stream=True`"):
        model.fit(Lengths(), verbose=0)
    before = model.evaluate(Lengths(), verbose=0)
    result = model.fit(Lengths(), epochs=1, stream=True, verbose=0).result
    assert result.initial_loss == pytest.approx(before, rel=1e-5)


# Sparse matrices, and columns


def sparse_kinds():
    import tensorflow as tf

    matrix = scipy.sparse.random(
        40, 30, 0.1, random_state=0, dtype="float32"
    ).tocoo()
    places = np.stack([matrix.row, matrix.col], axis=1)
    yield matrix.tocsr()
    yield scipy.sparse.csc_array(matrix)
    yield tf.sparse.reorder(tf.SparseTensor(places, matrix.data, matrix.shape))
    if BACKEND == "jax":
        from jax.experimental import sparse

        yield sparse.BCOO.from_scipy_sparse(matrix)
        yield sparse.BCSR.from_scipy_sparse(matrix.tocsr())
    if BACKEND == "torch":
        import torch

        tensor = torch.sparse_coo_tensor(
            places.T, matrix.data, matrix.shape
        ).coalesce()
        yield tensor
        yield tensor.to_sparse_csr()


def test_sparse_matrices():
    model = dense(30)
    model.compile(loss="mse")
    dense_x = next(sparse_kinds()).toarray()
    expected = model.evaluate(dense_x, Y, batch_size=40, verbose=0)
    for x in sparse_kinds():
        objective = kormos.Objective(model, x, Y)
        value = objective.value(objective.initial_position())
        assert value == pytest.approx(expected, rel=1e-5)


class Column(Sequence):
    """A lazy column, like that of a Hugging Face data set."""

    def __init__(self, source, name):
        self.source, self.column_name = source, name

    def __len__(self):
        return len(self.source[self.column_name])

    def __getitem__(self, key):
        return self.source[self.column_name][key]


def test_columns():
    source = {"x": X.tolist(), "y": Y[:, 0].tolist()}
    x, y = Column(source, "x"), Column(source, "y")
    model = dense()
    model.compile("lbfgs", loss="mse")
    before = model.evaluate(X, Y, batch_size=40, verbose=0)
    result = model.fit(x, y, validation_data=(x, y), epochs=1, verbose=0).result
    assert result.initial_loss == pytest.approx(before, rel=1e-5)


# Inputs that are left out, and outputs without rows


class Sum(keras.Model):
    """A model with an input that may be `None`."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(1)

    def call(self, inputs):
        a, b = inputs["a"], inputs.get("b")
        return self.dense(a if b is None else a + b)


@pytest.mark.parametrize("method", ["lbfgs", "lm"])
def test_inputs_of_none(method):
    model = Sum()
    assert_fits(model, {"a": X, "b": None}, Y, method=method)
    # The same model with both.
    assert_fits(model, {"a": X, "b": X[::-1]}, Y, method=method)


class Scalar(keras.Model):
    """A model whose output is its loss."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(1)

    def call(self, inputs):
        return ops.mean(ops.square(self.dense(inputs) - 1.0))


def test_scalar_outputs():
    def itself(y_true, y_pred):
        return y_pred

    assert_fits(Scalar(), X, Y, loss=itself, batch_size=40)
    model = Scalar()
    model.compile("lm", loss=itself)
    with pytest.raises(ValueError, match=r"a row for each.* of shape \(\)"):
        model.fit(X, Y, verbose=0)
