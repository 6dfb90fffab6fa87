"""Models and losses that need a certain number of rows."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos

RANDOM = np.random.RandomState(0)
X = RANDOM.normal(size=(40, 3)).astype("float32")
Y = np.tanh(X.sum(axis=1, keepdims=True)).astype("float32")
STEPS = RANDOM.normal(size=(40, 6, 3)).astype("float32")
EDGES = (RANDOM.uniform(size=(40, 40)) < 0.1) + np.eye(40)
EDGES = EDGES.astype("float32") / EDGES.sum(axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


def whole_graph():
    """A convolution on a graph, whose rows are the nodes."""
    nodes, edges = keras.Input((3,)), keras.Input((40,))
    hidden = layers.Dense(4, "tanh")(ops.matmul(edges, nodes))
    outputs = layers.Dense(1)(ops.matmul(edges, hidden))
    return keras.Model([nodes, edges], outputs)


def of_eight():
    """A model that only takes batches of eight rows."""
    inputs = keras.Input(batch_shape=(8, 3))
    hidden = layers.Dense(4, "tanh")(ops.reshape(inputs, (8, 3)))
    return keras.Model(inputs, layers.Dense(1)(hidden))


def recurrent(rows):
    return keras.Sequential(
        [
            keras.Input(batch_shape=(rows, 6, 3)),
            layers.LSTM(4, stateful=True),
            layers.Dense(1),
        ]
    )


class Pairs(keras.Model):
    """A loss of every four rows together."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        fours = ops.reshape(y_pred, (-1, 4, 2))
        alike = ops.mean(ops.square(fours[:, 0] - fours[:, 1]))
        return alike + ops.mean(ops.square(fours[:, 2] - 1))


def contrast(y_true, y_pred):
    """A loss of every row with all others of its batch."""
    own = ops.sum(ops.square(y_pred - y_true), axis=-1)
    return own - 0.1 * ops.mean(ops.square(y_pred - ops.mean(y_pred)))


def dense(loss):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.compile(loss=loss)
    return model


def assert_fits(model, x, batch_size, **kwargs):
    """The fit starts and ends at the loss of `evaluate` with such batches."""
    how = {"batch_size": batch_size, "verbose": 0}
    before = model.evaluate(x, Y, **how)
    result = model.fit(x, Y, epochs=3, **how, **kwargs).result
    assert result.initial_loss == pytest.approx(before, rel=1e-5)
    assert result.loss == pytest.approx(model.evaluate(x, Y, **how), rel=1e-5)
    assert result.loss < 0.9 * before


@pytest.mark.parametrize(
    "kwargs", [{}, {"precision": "float64"}, {"check": True}]
)
def test_a_graph_is_one_batch(kwargs):
    model = whole_graph()
    model.compile("lbfgs", loss="mse")
    assert_fits(model, [X, EDGES], 40, **kwargs)


def test_a_model_of_so_many_rows():
    model = of_eight()
    model.compile("lbfgs", loss="mse")
    assert_fits(model, X, 8)


@pytest.mark.parametrize("rows, batch_size", [(40, None), (40, 7), (36, 8)])
def test_a_model_of_other_rows_is_refused(rows, batch_size):
    model = of_eight()
    model.compile("lbfgs", loss="mse")
    with pytest.raises(ValueError, match="is built for 8 rows and fails"):
        model.fit(X[:rows], Y[:rows], batch_size=batch_size, verbose=0)


def test_a_loss_of_four_rows():
    model = Pairs()
    model.compile("lbfgs")
    assert_fits(model, X, 16)


def test_a_loss_of_other_rows_is_refused():
    model = Pairs()
    model.compile("lbfgs")
    with pytest.raises(ValueError, match="works on 8 rows and fails on .* 6,"):
        model.fit(X[:38], Y[:38], batch_size=8, verbose=0)


def test_a_check_of_a_loss_of_four_rows():
    model = Pairs()
    model.compile("lbfgs")
    report = kormos.check(model, X, Y, batch_size=8)
    assert report.passed


@pytest.mark.parametrize("batch_size", [32, 12, 40])
def test_a_loss_of_its_batch_is_that_of_evaluate(batch_size):
    model = dense(contrast)
    objective = kormos.Objective(model, X, Y, batch_size=batch_size)
    value = objective.value(objective.initial_position())
    expected = model.evaluate(X, Y, batch_size=batch_size, verbose=0)
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("make", [whole_graph, of_eight])
def test_what_takes_no_single_row_has_no_gauss_newton_matrix(make):
    model = make()
    model.compile("lm", loss="mse")
    x, batch_size = ([X, EDGES], 40) if make is whole_graph else (X, 8)
    with pytest.raises(ValueError, match="which fails on one row"):
        model.fit(x, Y, batch_size=batch_size, verbose=0)


# States that pass from one batch to the next


def test_a_state_within_one_batch():
    model = recurrent(40)
    model.compile(loss="mse")
    result = kormos.fit(model, STEPS, Y, epochs=3, verbose=0).result
    states = [v for v in model.variables if v.name == "rnn_state"]
    assert not any(np.any(ops.convert_to_numpy(v)) for v in states)
    expected = model.evaluate(STEPS, Y, batch_size=40, verbose=0)
    assert result.loss == pytest.approx(expected, rel=1e-5)


def test_a_state_between_batches_is_refused():
    model = recurrent(8)
    model.compile(loss="mse")
    with pytest.raises(ValueError, match="stateful=False.*lstm.*of 8 of 40"):
        kormos.fit(model, STEPS, Y, batch_size=8, verbose=0)


class Counted(layers.Layer):
    """Counts its calls, which changes nothing."""

    def __init__(self):
        super().__init__()
        self.calls = self.add_weight(initializer="zeros", trainable=False)

    def call(self, inputs):
        self.calls.assign(self.calls + 1.0)
        return inputs


def test_a_state_that_changes_nothing():
    model = keras.Sequential([keras.Input((3,)), Counted(), layers.Dense(1)])
    model.compile("lbfgs", loss="mse")
    assert_fits(model, X, 8)


# Rows that do not count, for Gauss-Newton methods


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, 2])
def test_rows_without_weight(batch_size):
    weights = np.ones(40)
    weights[:5] = 0
    model = dense("mse")
    result = kormos.fit(
        model,
        X,
        Y,
        sample_weight=weights,
        optimizer="lm",
        batch_size=batch_size,
        verbose=0,
    ).result
    design = np.c_[X, np.ones(40)].astype("float64")
    best, *_ = np.linalg.lstsq(design[5:], Y[5:], rcond=None)
    expected = np.sum(np.square(design[5:] @ best - Y[5:])) / 40
    assert result.loss == pytest.approx(expected, rel=1e-5)


def ignored():
    y = np.r_[[-1] * 4, RANDOM.randint(0, 2, 36)]
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=-1)
    return layers.Dense(2, "softmax"), loss, X, y, {}


def unweighted_class():
    y = np.r_[[0] * 4, RANDOM.randint(0, 2, 36)]
    loss = "sparse_categorical_crossentropy"
    weights = {0: 0.0, 1: 1.0}
    return layers.Dense(2, "softmax"), loss, X, y, {"class_weight": weights}


def far_from_all():
    return layers.Dense(1), "huber", X, 1e4 * (1 + np.abs(Y)), {}


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("make", [ignored, unweighted_class, far_from_all])
def test_curvature_that_only_some_rows_or_outputs_show(make, batch_size):
    layer, loss, x, y, kwargs = make()
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile("lm", loss=loss)
    result = model.fit(
        x, y, epochs=2, batch_size=batch_size, verbose=0, **kwargs
    ).result
    assert result.loss < result.initial_loss


def test_rows_that_are_masked():
    steps = STEPS.copy()
    steps[:3] = 0
    model = keras.Sequential(
        [
            keras.Input((6, 3)),
            layers.Masking(),
            layers.Dense(1),
        ]
    )
    model.compile("lm", loss="mse")
    y = RANDOM.normal(size=(40, 6, 1)).astype("float32")
    result = model.fit(steps, y, epochs=2, batch_size=3, verbose=0).result
    expected = model.evaluate(steps, y, batch_size=40, verbose=0)
    assert result.loss == pytest.approx(expected, rel=1e-5)


def test_no_row_counts():
    model = dense("mse")
    with pytest.raises(ValueError, match="mse, whose second derivatives"):
        kormos.fit(
            model,
            X,
            Y,
            sample_weight=np.zeros(40),
            optimizer="lm",
            verbose=0,
        )
