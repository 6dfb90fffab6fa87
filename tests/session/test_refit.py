"""Every fit behaves as if it were the first: no state is stale."""

import keras
import numpy as np
import pytest
from keras import layers

import kormos
from conftest import BACKEND
from conftest import TIGHT
from conftest import lindata
from conftest import linear
from kormos.optimizers import ScipyBatchOptimizer

ROWS, COLUMNS, RANK = 6, 5, 2


def fresh(weights=None, optimizer="l-bfgs-b"):
    model = linear(l2=1e-3)
    if weights is not None:
        model.set_weights(weights)
    model.compile(optimizer=optimizer, loss="mse")
    return model


def same(history, other, **tolerances):
    assert history.epoch == other.epoch
    assert set(history.history) == set(other.history)
    for name, column in history.history.items():
        np.testing.assert_allclose(
            column, other.history[name], err_msg=name, **tolerances
        )


def test_new_data(float64):
    x, y = lindata(100, noise=0.3)
    model = fresh()
    model.fit(x, y, verbose=0)
    weights = model.get_weights()
    expected = fresh(weights).fit(x, -y, verbose=0)
    again = model.fit(x, -y, verbose=0)
    assert again.result.status == "converged"
    assert again.result.iterations > 1
    same(again, expected, rtol=0)


def test_new_validation_data(float64):
    x, y = lindata(100, noise=0.3)
    model = fresh()
    model.fit(x, y, validation_data=(x, y), verbose=0)
    far = x[:50], y[:50] + 100
    history = model.fit(x, y, validation_data=far, verbose=0)
    assert history.history["val_loss"][-1] == pytest.approx(
        model.evaluate(*far, verbose=0), rel=TIGHT
    )
    assert "val_loss" not in model.fit(x, y, verbose=0).history


def test_new_weights_and_counts(float64):
    x, y = lindata(100, noise=0.3)
    model = fresh()
    first = model.fit(x, y, verbose=0)
    model.set_weights([np.ones((5, 1))])
    second = model.fit(x, y, verbose=0)
    same(second, first, rtol=0)
    assert len(model.optimizer.results) == 1
    assert model.optimizer.fg_evals == second.result.evaluations


@pytest.mark.parametrize("method", ["l-bfgs-b", "nelder-mead"])
def test_initial_epoch(method, float64, unconverged):
    x, y = lindata(100, noise=0.3)
    optimizer = ScipyBatchOptimizer(
        method=method, options={"gtol": 0, "ftol": 0} if "-b" in method else {}
    )
    late = fresh(optimizer=optimizer)
    history = late.fit(x, y, initial_epoch=7, epochs=12, verbose=0)
    assert history.epoch == [7, 8, 9, 10, 11]
    early = fresh(optimizer=optimizer).fit(x, y, epochs=5, verbose=0)
    assert history.history == early.history
    nothing = late.fit(x, y, initial_epoch=12, epochs=12, verbose=0)
    assert nothing.epoch == []


def factorization():
    """A matrix approximated by the product of two tables."""
    inputs = [keras.Input((), dtype="int32") for _ in range(2)]
    tables = [
        layers.Embedding(
            size,
            RANK,
            name=name,
            embeddings_initializer=keras.initializers.RandomUniform(
                0.1, 1.0, seed=size
            ),
        )
        for name, size in (("rows", ROWS), ("columns", COLUMNS))
    ]
    factors = [table(i) for table, i in zip(tables, inputs, strict=True)]
    model = keras.Model(inputs, layers.Dot(axes=1)(factors))
    random = np.random.RandomState(0)
    product = random.rand(ROWS, COLUMNS)
    i, j = (a.ravel() for a in np.indices(product.shape))
    return model, ([i, j], product.reshape(-1, 1))


def train_alone(name):
    def freeze_others(model):
        for table in ("rows", "columns"):
            model.get_layer(table).trainable = table == name

    return freeze_others


def test_alternating_stages(float64):
    stages = 6
    model, data = factorization()
    model.compile(
        optimizer=ScipyBatchOptimizer(
            epochs=[200] * stages,
            pretrain_fn=[train_alone("rows"), train_alone("columns")] * 3,
            options={"gtol": 1e-10, "ftol": 0},
        ),
        loss="mse",
    )
    start = model.evaluate(*data, verbose=0)
    history = model.fit(*data, verbose=0)
    results = model.optimizer.results
    assert len(results) == stages
    losses = [start, *(result.fun for result in results)]
    # The values of alternating least squares, by NumPy.
    np.testing.assert_allclose(losses[1:], least_squares(stages), rtol=1e-6)
    assert np.all(np.diff(losses) < 0)
    assert all(result.nit > 0 for result in results)
    assert history.result.iterations == sum(r.nit for r in results)
    assert model.evaluate(*data, verbose=0) == pytest.approx(
        losses[-1], rel=TIGHT
    )


def least_squares(stages):
    model, (_, product) = factorization()
    product = product.reshape(ROWS, COLUMNS)
    u, v = model.get_weights()
    losses = []
    for stage in range(stages):
        if stage % 2 == 0:
            u = np.linalg.lstsq(v, product.T)[0].T
        else:
            v = np.linalg.lstsq(u, product)[0].T
        losses.append(np.mean((u @ v.T - product) ** 2))
    return losses


def test_alternating_fits_are_those_of_fresh_models(float64, unconverged):
    model, data = factorization()
    for name in ("rows", "columns", "rows"):
        other, _ = factorization()
        other.set_weights(model.get_weights())
        histories = []
        for each in (model, other):
            train_alone(name)(each)
            each.compile(optimizer="l-bfgs-b", loss="mse")
            histories.append(each.fit(*data, epochs=5, verbose=0))
        same(*histories, rtol=0)
    # Freezing without compiling again counts as well.
    before = model.get_layer("columns").get_weights()[0]
    train_alone("rows")(model)
    model.fit(*data, epochs=5, verbose=0)
    after = model.get_layer("columns").get_weights()[0]
    np.testing.assert_array_equal(before, after)


def test_bounds_of_frozen_variables_hold_in_their_stage(float64, unconverged):
    model, data = factorization()
    model.compile(optimizer="l-bfgs-b", loss="mse")
    kormos.fit(
        model,
        *data,
        epochs=[10] * 2,
        pretrain_fn=[train_alone("rows"), train_alone("columns")],
        bounds={"rows/.*": (0.2, None), "columns/.*": (0.3, 0.6)},
        verbose=0,
    )
    rows, columns = model.get_weights()
    assert rows.min() >= 0.2
    assert columns.min() >= 0.3 and columns.max() <= 0.6
    with pytest.raises(ValueError, match="Received: 'row'"):
        kormos.fit(model, *data, bounds={"row": (0, 1)}, verbose=0)


def test_validation_sees_what_is_restored_to_frozen_layers(float64):
    """Callbacks may set any weights when a fit begins."""
    x, y = lindata(50, noise=0.3)
    frozen = layers.Dense(1, trainable=False, kernel_initializer="zeros")
    inputs = keras.Input((5,))
    outputs = layers.Dense(1)(inputs) + frozen(inputs)
    model = keras.Model(inputs, outputs)
    model.compile(optimizer="l-bfgs-b", loss="mse")

    class Restore(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            frozen.set_weights([np.ones((5, 1)), np.zeros(1)])

    history = model.fit(
        x, y, validation_data=(x, y), callbacks=[Restore()], verbose=0
    )
    np.testing.assert_allclose(
        history.history["val_loss"], history.history["loss"], rtol=TIGHT
    )


def test_compiling_again_changes_the_loss_and_keeps_the_weights(float64):
    x, y = lindata(50, noise=0.3)
    model = fresh()
    model.fit(x, y, verbose=0)
    weights = model.get_weights()
    model.compile(optimizer="bfgs", loss="huber", metrics=["mae"])
    np.testing.assert_array_equal(model.get_weights()[0], weights[0])
    history = model.fit(x, y, verbose=0)
    loss, error = model.evaluate(x, y, verbose=0)
    assert history.result.loss == pytest.approx(loss, rel=TIGHT)
    assert history.history["mae"][-1] == pytest.approx(error, rel=TIGHT)


class Traced(layers.Dense):
    """Counts the calls of its Python code."""

    calls = 0

    def call(self, inputs):
        self.calls += 1
        return super().call(inputs)


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch compiles nothing")
@pytest.mark.parametrize("method", ["lbfgs", "ssbroyden", "newton"])
def test_with_and_without_a_look_at_each_epoch_it_is_one_program(method):
    x, y = lindata(20, noise=0.3)
    model = keras.Sequential([keras.Input((5,)), Traced(1)])
    model.compile(optimizer=method, loss="mse")
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: None)
    weights = model.get_weights()

    def calls(*callbacks):
        model.set_weights(weights)
        before = model.layers[0].calls
        model.fit(x, y, epochs=2, verbose=0, callbacks=[*callbacks])
        return model.layers[0].calls - before

    calls(look)
    assert calls() == calls(look) == 0
