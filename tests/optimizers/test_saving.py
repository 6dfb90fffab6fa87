"""Saving, loading and copying models that are compiled with kormos."""

import copy
import json
import os
import pickle
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import kormos
from conftest import OTHERS
from conftest import lindata
from conftest import linear
from kormos.optimizers import ScipyBatchOptimizer

X, Y = lindata(40, noise=0.3)


def net(**kwargs):
    return keras.Sequential(
        [keras.Input((5,)), layers.Dense(4, "tanh"), layers.Dense(1)], **kwargs
    )


def fitted(optimizer, epochs=3):
    model = net()
    model.compile(optimizer=optimizer, loss="mse", metrics=["mae"])
    model.fit(X, Y, epochs=epochs, verbose=0)
    return model


def save(model, path):
    model.save(path / "model.keras")
    return path / "model.keras"


def load(path, **kwargs):
    """Loads a model; a warning of Keras or kormos is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return keras.models.load_model(path, **kwargs)


def iterations(model):
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


def same_weights(a, b):
    for v, w in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_array_equal(v, w)


@keras.saving.register_keras_serializable(package="kormos_tests")
def freeze_the_first_layer(model):
    model.layers[0].trainable = False


def unregistered(model):
    raise AssertionError("This is never called.")


@pytest.mark.parametrize("method", ["l-bfgs-b", "newton-cg"])
def test_a_loaded_model_goes_on_as_if_never_saved(
    method, tmp_path, unconverged
):
    model = fitted(ScipyBatchOptimizer("mine", method, epochs=4, tol=1e-9))
    loaded = load(save(model, tmp_path))
    assert type(loaded.optimizer) is ScipyBatchOptimizer
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert iterations(loaded) == iterations(model) == 3
    same_weights(loaded, model)
    assert loaded.evaluate(X, Y, verbose=0) == model.evaluate(X, Y, verbose=0)
    ours, theirs = (m.fit(X, Y, verbose=0).history for m in (model, loaded))
    assert len(ours["loss"]) == 4
    assert ours == theirs
    same_weights(loaded, model)
    assert iterations(loaded) == 7


def test_loading_without_compiling(tmp_path, unconverged):
    model = fitted("bfgs")
    loaded = load(save(model, tmp_path), compile=False)
    same_weights(loaded, model)
    with pytest.raises(ValueError, match="not compiled"):
        kormos.fit(loaded, X, Y)
    loaded.compile(optimizer="bfgs", loss="mse", metrics=["mae"])
    ours, theirs = (
        m.fit(X, Y, epochs=3, verbose=0).history for m in (model, loaded)
    )
    assert ours == theirs


def test_a_model_compiled_with_adam_loads_compiled(tmp_path, unconverged):
    model = net()
    model.compile(optimizer="adam", loss="mse", loss_weights=[0.5])
    model.fit(X, Y, epochs=2, verbose=0)
    loaded = load(save(model, tmp_path))
    assert isinstance(loaded.optimizer, keras.optimizers.Adam)
    assert iterations(loaded) == 4
    start = kormos.fit(loaded, X, Y, epochs=2, verbose=0).result.initial_loss
    assert start == pytest.approx(model.evaluate(X, Y, verbose=0), rel=1e-6)


def test_weights_files_hold_the_iterations(tmp_path, unconverged):
    model = fitted("l-bfgs-b")
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = net()
    fresh.compile(optimizer="l-bfgs-b", loss="mse")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fresh.load_weights(tmp_path / "model.weights.h5")
    same_weights(fresh, model)
    assert iterations(fresh) == 3


READER = """
import json, sys
import keras, numpy as np
import kormos
path, data, expected = sys.argv[1], np.load(sys.argv[2]), sys.argv[3]
expected = json.loads(expected)
model = keras.models.load_model(path)
optimizer = model.optimizer
assert type(optimizer) is kormos.optimizers.ScipyBatchOptimizer
assert optimizer.get_config() == expected["config"]
assert int(keras.ops.convert_to_numpy(optimizer.iterations)) == 3
values = model.evaluate(data["x"], data["y"], verbose=0)
np.testing.assert_allclose(values, expected["values"], rtol=1e-6)
result = model.fit(data["x"], data["y"], epochs=2, verbose=0).result
np.testing.assert_allclose(result.initial_loss, values[0], rtol=1e-6)
assert result.loss < result.initial_loss
assert int(keras.ops.convert_to_numpy(optimizer.iterations)) == 3 + 2 * 2
"""


def read_with(backend, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", READER, *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "KERAS_BACKEND": backend},
    )


@pytest.mark.slow
def test_the_other_backends_read_the_file(tmp_path, unconverged):
    model = fitted(
        ScipyBatchOptimizer(
            method=["bfgs", "l-bfgs-b"],
            epochs=[2, 1],
            options=[None, {"maxcor": 7}],
            pretrain_fn=[None, None],
            tol=1e-9,
        ),
        epochs=None,
    )
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    expected = {
        "config": model.optimizer.get_config(),
        "values": model.evaluate(X, Y, verbose=0),
    }
    arguments = save(model, tmp_path), tmp_path / "data.npz"
    readers = [
        read_with(backend, *arguments, json.dumps(expected))
        for backend in OTHERS
    ]
    for reader in readers:
        _, errors = reader.communicate()
        assert reader.returncode == 0, errors


def from_pickle(model):
    return pickle.loads(pickle.dumps(model))


def clone(model):
    """A copy without the optimizer's count, with the model's weights."""
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    return twin


@pytest.mark.parametrize(
    "duplicate, counted", [(copy.deepcopy, 3), (from_pickle, 3), (clone, 0)]
)
def test_copies_of_a_model(duplicate, counted, unconverged):
    model = fitted(ScipyBatchOptimizer(method="bfgs", options={"gtol": 1e-8}))
    twin = duplicate(model)
    assert type(twin.optimizer) is ScipyBatchOptimizer
    assert twin.optimizer is not model.optimizer
    assert twin.optimizer.get_config() == model.optimizer.get_config()
    assert iterations(twin) == counted
    same_weights(twin, model)
    before = model.get_weights()
    history = twin.fit(X, Y, epochs=3, verbose=0)
    for v, w in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(v, w)
    assert history.history == model.fit(X, Y, epochs=3, verbose=0).history


CONFIGS = {
    "bounds": dict(bounds={".*bias": (None, 1.5), ".*kernel": (-2, np.inf)}),
    "arrays": dict(bounds={".*kernel": (np.zeros((4, 1)), [[1.0]] * 4)}),
    "options": dict(
        method="bfgs", options={"hess_inv0": np.eye(2), "gtol": np.float32(1)}
    ),
    "stages": dict(
        method=["bfgs", "cg"],
        epochs=[1, np.int64(2)],
        options=[{"gtol": 1e-3}, None],
        pretrain_fn=[None, freeze_the_first_layer],
    ),
    "functions": dict(
        pretrain_fn=freeze_the_first_layer, name="mine", batch_size=8, tol=0.1
    ),
}


@pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS)
def test_configs_come_back(settings, tmp_path):
    optimizer = ScipyBatchOptimizer(**settings)
    model = net()
    model.compile(optimizer=optimizer, loss="mse")
    for twin in (
        load(save(model, tmp_path)).optimizer,
        copy.deepcopy(optimizer),
        ScipyBatchOptimizer.from_config(optimizer.get_config()),
    ):
        for name, value in settings.items():
            received = getattr(twin, name)
            np.testing.assert_equal(as_lists(received), as_lists(value))
        stages = twin.stages()
        assert len(stages) == len(optimizer.stages())
        assert stages[-1].pretrain_fn is optimizer.stages()[-1].pretrain_fn
        assert stages[-1].epochs == optimizer.stages()[-1].epochs


def as_lists(value):
    """JSON has no tuples."""
    if isinstance(value, dict):
        return {k: as_lists(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_lists(v) for v in value]
    return value


def test_bounds_on_variables_hold_after_loading(tmp_path, float64):
    x, y = lindata(200, noise=0.3)
    model = linear(l2=1e-3)
    optimizer = ScipyBatchOptimizer(
        bounds=[(model.weights[0], (0, np.full((5, 1), 0.1)))], epochs=50
    )
    model.compile(optimizer=optimizer, loss="mse")
    # The bounded variable is the model's, not a state of the optimizer.
    assert len(optimizer.variables) == len(keras.optimizers.SGD().variables)
    loaded = load(save(model, tmp_path))
    for twin in (model, loaded):
        result = twin.fit(x, y, verbose=0).result
        assert result.loss == pytest.approx(5.369559115, abs=5e-8)
        np.testing.assert_allclose(
            twin.get_weights()[0][:, 0], [0.1, 0, 0, 0, 0.1], atol=1e-9
        )


class Callee:
    def method(self, model):
        raise AssertionError("This is never called.")


UNSAVEABLE = {
    "pretrain_fn": [lambda model: None, Callee().method, [Callee().method]],
    "constraints": [
        {"type": "eq", "fun": lambda: 0.0},
        [{"type": "ineq", "fun": lambda: 1.0}] * 2,
    ],
}


@pytest.mark.parametrize(
    "name, value",
    [(name, value) for name, values in UNSAVEABLE.items() for value in values],
)
def test_functions_without_a_name_are_left_out_with_a_warning(
    name, value, tmp_path
):
    model = net()
    optimizer = ScipyBatchOptimizer(method="slsqp", tol=0.5, **{name: value})
    model.compile(optimizer=optimizer, loss="mse")
    with pytest.warns(UserWarning, match=f"`{name}` holds a lambda, a local"):
        path = save(model, tmp_path)
    loaded = load(path)
    assert getattr(loaded.optimizer, name) is None
    assert (loaded.optimizer.method, loaded.optimizer.tol) == ("slsqp", 0.5)
    with pytest.warns(UserWarning, match=f"`{name}` holds"):
        assert getattr(copy.deepcopy(model).optimizer, name) is None
    assert getattr(model.optimizer, name) == value


def test_functions_that_are_not_registered(tmp_path):
    model = net()
    model.compile(ScipyBatchOptimizer(pretrain_fn=unregistered), loss="mse")
    path = save(model, tmp_path)
    loaded = load(path, custom_objects={"unregistered": unregistered})
    assert loaded.optimizer.pretrain_fn is unregistered
    with pytest.warns(UserWarning, match="unknown here.*`custom_objects`"):
        loaded = keras.models.load_model(path)
    assert loaded.optimizer.pretrain_fn is None
    same_weights(loaded, model)
