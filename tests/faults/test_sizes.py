"""Very small fits, and ten million parameters."""

import keras
import numpy as np
import pytest
from keras import layers

import kormos
from faults.models import METHODS
from faults.models import assert_as_new
from faults.models import data
from faults.models import loss
from faults.models import network
from faults.models import shared
from native import methods

KIND = "sizes"

# Others of the family run the same code, and are slow to compile.
QUICK = ["l-bfgs-b", "lm", *methods("lbfgs")]


@pytest.mark.parametrize("method", METHODS)
def test_zero_rows(method, fault):
    model, (x, y) = shared(method), data()
    with fault.spares(model, x, y):
        with pytest.raises(ValueError, match="`x` .* 0 rows"):
            model.fit(x[:0], y[:0], verbose=0)
    assert_as_new(method)


@pytest.mark.parametrize("method", QUICK)
def test_one_row_and_one_parameter(method, fault):
    model = keras.Sequential(
        [keras.Input((1,)), layers.Dense(1, use_bias=False)]
    )
    model.compile(optimizer=method, loss="mse")
    x, y = np.array([[2.0]]), np.array([[3.0]])
    with fault.spares(model, x, y):
        history = model.fit(x, y, verbose=0)
    assert history.result.loss < 1e-9
    np.testing.assert_allclose(model.get_weights()[0], 1.5, rtol=1e-5)


@pytest.mark.parametrize("method", QUICK)
def test_one_row_and_more_parameters(method, fault):
    model, (x, y) = network(method), data(rows=1)
    with fault.spares(model, x, y):
        history = model.fit(x, y, epochs=40, verbose=0)
    assert history.result.loss < 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_no_trainable_parameter(method, fault):
    model, (x, y) = shared(method), data()
    model.trainable = False
    try:
        with fault.spares(model, x, y):
            with pytest.raises(ValueError, match="nothing to optimize"):
                model.fit(x, y, verbose=0)
    finally:
        model.trainable = True
    assert_as_new(method)


MILLIONS = 10


@pytest.fixture(scope="module")
def large():
    """A table of ten million numbers, and rows that read a few of them."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((), dtype="int32"), layers.Embedding(10**6, MILLIONS)]
    )
    model.compile(loss="mse")
    rows = np.array([0, 7, 10**6 - 1], dtype="int32")
    return model, rows, np.ones((3, MILLIONS))


def test_ten_million_parameters(large, fault):
    model, x, y = large
    before = loss(model, x, y)
    optimizer = kormos.optimizers.LBFGS(memory=3)
    with fault.spares(model, x, y):
        history = kormos.fit(
            model, x, y, optimizer=optimizer, epochs=3, verbose=0
        )
    assert history.result.loss < before / 2
    # Otherwise it would be saved with the model.
    optimizer.solver_state = None


DENSE = {
    "ssbroyden": "ssbroyden",
    "dense-bfgs": "dense-bfgs",
    "bfgs": "bfgs",
    "slsqp": "slsqp",
    "trust-exact": "trust-exact",
    "nelder-mead": "nelder-mead",
    "powell": "powell",
    "cobyla": "cobyla",
    "cobyqa": "cobyqa",
    "lm": kormos.optimizers.LevenbergMarquardt(linear_solver="dense"),
}


@pytest.mark.parametrize("name", DENSE)
def test_a_matrix_of_ten_million_squared_is_refused(name, large, fault):
    model, x, y = large
    with fault.spares(model, x, y):
        with pytest.raises(ValueError, match=f"'{name}'.*parameters"):
            kormos.fit(model, x, y, optimizer=DENSE[name], verbose=0)
