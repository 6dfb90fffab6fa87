"""`compile` and `fit` of Keras models use kormos, and change nothing else."""

import importlib
import inspect
import os
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from keras import ops

import kormos
from conftest import BACKEND
from conftest import lindata
from conftest import linear

X, Y = lindata(60, noise=0.3)
OPTIMUM = np.linalg.lstsq(X, Y, rcond=None)[0]


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(1, use_bias=False)

    def call(self, inputs):
        return self.dense(inputs)


def functional():
    inputs = keras.Input((5,))
    outputs = keras.layers.Dense(1, use_bias=False)(inputs)
    return keras.Model(inputs, outputs)


def unbuilt():
    return keras.Sequential([keras.layers.Dense(1, use_bias=False)])


def fits(model, **kwargs):
    """Fits, and compares with the solution of the least squares problem."""
    history = model.fit(X, Y, epochs=50, verbose=0, **kwargs)
    assert history.result.success, history.result
    np.testing.assert_allclose(model.get_weights()[0], OPTIMUM, atol=1e-5)
    return history


@pytest.mark.parametrize("make", [linear, functional, unbuilt, Subclassed])
def test_models_of_every_kind(make, float64):
    model = make()
    model.compile(optimizer="l-bfgs-b", loss="mse")
    assert isinstance(model.optimizer, kormos.optimizers.BatchOptimizer)
    history = fits(model)
    # An epoch has one iteration, and counts as one.
    assert len(history.history["loss"]) == history.result.iterations
    assert int(model.optimizer.iterations.numpy()) == history.result.iterations


@pytest.mark.parametrize(
    "name", ["Newton-CG", "BFGS", "scipy", "kormos>ScipyBatchOptimizer"]
)
def test_a_name_makes_a_fresh_optimizer(name, float64):
    model = linear()
    model.compile(name, "mse")
    fits(model)
    used = model.optimizer
    model.compile(name, "mse")
    assert model.optimizer is not used
    assert int(model.optimizer.iterations.numpy()) == 0


def test_an_instance_is_the_models_optimizer(float64):
    optimizer = kormos.optimizers.ScipyBatchOptimizer(
        method="CG", options={"gtol": 1e-6}
    )
    model = linear()
    model.compile(optimizer, "mse")
    fits(model)
    assert model.optimizer is optimizer


def test_unknown_names_are_refused_as_ever():
    with pytest.raises(ValueError, match="optimizer identifier: nope"):
        linear().compile(optimizer="nope", loss="mse")
    with pytest.raises(ValueError, match="l-bfgs-b.*Received: 'adam'"):
        kormos.optimizers.get("adam")


BEFORE_AND_AFTER = """
import importlib, inspect, sys
import keras
import numpy as np

def run():
    keras.utils.clear_session()
    keras.utils.set_random_seed(7)
    x = np.random.normal(size=(40, 3))
    y = x[:, :1] * x[:, 1:2]
    model = keras.Sequential([
        keras.Input((3,)), keras.layers.Dense(4, "tanh"),
        keras.layers.Dropout(0.2), keras.layers.Dense(1),
    ])
    model.compile("adam", "mse", metrics=["mae"], loss_weights=[0.5])
    history = model.fit(
        x, y, batch_size=16, epochs=2, validation_split=0.2, verbose=0
    )
    values = [
        *history.history.values(), model.train_on_batch(x, y),
        model.evaluate(x, y, verbose=0), *model.get_weights(),
    ]
    methods = keras.Model.compile, keras.Model.fit, keras.Model.train_on_batch
    return [
        *[np.asarray(v).tobytes().hex() for v in values],
        *[str(inspect.signature(method)) for method in methods],
    ]

before, stock = run(), keras.Model.fit
assert "kormos" not in sys.modules
import kormos
importlib.reload(kormos)
assert keras.Model.fit is not stock
assert before == run(), (before, run())
assert len(before) == 13
"""


@pytest.mark.slow
def test_adam_is_stock_to_the_last_bit():
    process = subprocess.run(
        [sys.executable, "-c", BEFORE_AND_AFTER],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": BACKEND},
    )
    assert process.returncode == 0, process.stderr


def test_importing_again_wraps_nothing_again():
    methods = keras.Model.compile, keras.Model.fit, keras.Model.train_on_batch
    importlib.reload(kormos)
    importlib.reload(sys.modules["kormos.keras_patch"]).install()
    assert methods == (
        keras.Model.compile,
        keras.Model.fit,
        keras.Model.train_on_batch,
    )


def test_fit_takes_the_arguments_of_keras_in_its_order():
    stock = list(inspect.signature(keras.Model.fit).parameters)[1:]
    assert (
        list(inspect.signature(kormos.fit).parameters)[1:][: len(stock)]
        == stock
    )


def test_recompiling_switches_and_keeps_the_weights(float64):
    model = linear()

    def recompile(optimizer):
        before = model.get_weights()[0]
        model.compile(optimizer=optimizer, loss="mse")
        np.testing.assert_array_equal(model.get_weights()[0], before)

    recompile("l-bfgs-b")
    fits(model)
    recompile("adam")
    history = model.fit(X, Y, epochs=2, verbose=0)
    assert set(history.history) == {"loss"}
    assert int(model.optimizer.iterations.numpy()) == 4
    recompile("newton-cg")
    fits(model)


def test_kormos_fit_leaves_the_compiled_optimizer(float64):
    model = linear()
    model.compile(optimizer="adam", loss="mse")
    adam = model.optimizer
    history = kormos.fit(model, X, Y, epochs=50, verbose=0)
    assert history.result.success
    np.testing.assert_allclose(model.get_weights()[0], OPTIMUM, atol=1e-5)
    optimizer = kormos.optimizers.ScipyBatchOptimizer(method="cg")
    for choice in ("Newton-CG", optimizer):
        model.set_weights([np.ones((5, 1))])
        history = kormos.fit(
            model, X, Y, epochs=50, verbose=0, optimizer=choice
        )
        assert history.result.success
        np.testing.assert_allclose(model.get_weights()[0], OPTIMUM, atol=1e-5)
    assert len(optimizer.results) == 1
    assert model.optimizer is adam
    assert int(adam.iterations.numpy()) == 0
    with pytest.raises(ValueError, match="Received: 'adam'"):
        kormos.fit(model, X, Y, optimizer="adam")


def test_a_failing_compile_says_so(float64):
    model = linear()
    model.compile(optimizer="l-bfgs-b", loss="mse")
    optimizer = model.optimizer
    with pytest.raises(ValueError, match="optimizer identifier: nope"):
        model.compile(optimizer="nope", loss="mse")
    assert model.optimizer is optimizer
    fits(model)
    weights = model.get_weights()[0]
    model.compile(optimizer="l-bfgs-b", loss="nope")
    with pytest.raises(ValueError, match="loss identifier: nope"):
        model.fit(X, Y)
    np.testing.assert_array_equal(model.get_weights()[0], weights)
    with pytest.raises(ValueError, match="not compiled"):
        kormos.fit(linear(), X, Y)


def apply(model):
    gradients = [ops.ones_like(v.value) for v in model.trainable_variables]
    model.optimizer.apply(gradients, model.trainable_variables)


def apply_gradients(model):
    variables = model.trainable_variables
    model.optimizer.apply_gradients(
        [(ops.ones_like(v.value), v) for v in variables]
    )


def stateless_apply(model):
    values = [v.value for v in model.trainable_variables]
    state = [v.value for v in model.optimizer.variables]
    model.optimizer.stateless_apply(state, values, values)


def train_on_batch(model):
    model.train_on_batch(X, Y)


@pytest.mark.parametrize(
    "step", [train_on_batch, apply, apply_gradients, stateless_apply]
)
def test_steps_on_a_batch_are_refused_and_harm_nothing(step, float64):
    model = linear()
    model.compile(optimizer="l-bfgs-b", loss="mse")
    with pytest.raises(RuntimeError, match="all of the data at once"):
        step(model)
    np.testing.assert_array_equal(model.get_weights()[0], np.ones((5, 1)))
    assert int(model.optimizer.iterations.numpy()) == 0
    fits(model)


@pytest.mark.parametrize("scaled_by_hand", [False, True])
def test_float16_is_refused_and_harms_nothing(scaled_by_hand):
    model = linear(dtype="mixed_float16")
    optimizer = kormos.optimizers.get("l-bfgs-b")
    if scaled_by_hand:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model.compile(optimizer=optimizer, loss="mse")
    with pytest.raises(ValueError, match="float16.*mixed_bfloat16"):
        model.fit(X, Y, verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], np.ones((5, 1)))
    model.compile(optimizer="adam", loss="mse")
    losses = model.fit(X, Y, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_float16_policy_is_refused_too():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = linear()
        model.compile(optimizer="l-bfgs-b", loss="mse")
        with pytest.raises(ValueError, match="float16.*mixed_bfloat16"):
            model.fit(X, Y, verbose=0)
        model.compile(optimizer="adam", loss="mse")
        assert hasattr(model.optimizer, "inner_optimizer")
        model.fit(X, Y, verbose=0)
    finally:
        keras.config.set_dtype_policy(policy)
    assert np.isfinite(model.get_weights()[0]).all()


def test_bfloat16_works(unconverged):
    model = linear(dtype="mixed_bfloat16")
    model.compile(optimizer="l-bfgs-b", loss="mse")
    history = model.fit(X, Y, epochs=20, verbose=0)
    # Eight bits of each product: far coarser than float32, near the optimum.
    assert history.result.loss < 0.02 * history.result.initial_loss
    np.testing.assert_allclose(model.get_weights()[0], OPTIMUM, atol=0.1)


class CustomStep(Subclassed):
    def train_step(self, *args):
        raise AssertionError("`train_step` must not run.")


def test_custom_train_step_is_said_not_to_run(float64):
    model = CustomStep(name="custom")
    model.compile(optimizer="l-bfgs-b", loss="mse")
    with pytest.warns(UserWarning, match="custom defines `train_step`, which"):
        fits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fits(model)


@pytest.mark.parametrize(
    "how",
    [{"run_eagerly": True}, {"jit_compile": True}, {"jit_compile": False}],
    ids=str,
)
def test_modes_of_compilation(how, float64):
    model = linear()
    model.compile(optimizer="l-bfgs-b", loss="mse", **how)
    fits(model)


class Overriding(keras.Sequential):
    def compile(self, name, **kwargs):
        self.compiled_with = name
        super().compile(optimizer=name, **kwargs)

    def fit(self, *args, **kwargs):
        history = super().fit(*args, **kwargs)
        history.own = True
        return history


def test_overridden_compile_and_fit(float64):
    model = Overriding(
        [keras.Input((5,)), keras.layers.Dense(1, use_bias=False)]
    )
    model.compile("bfgs", loss="mse")
    assert model.compiled_with == "bfgs"
    assert fits(model).own
