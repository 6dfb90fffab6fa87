"""Messages for wrong names and missing arguments."""

import subprocess
import sys

import keras
import numpy as np
import pytest

import kormos
from conftest import lindata
from conftest import linear
from kormos import missing_backend
from kormos import optional
from kormos.suggestions import did_you_mean

MEANT = [
    ("L-BFGS", "lbfgs"),
    ("lbgfs", "lbfgs"),
    ("LBFGS-B", "l-bfgs-b"),
    ("levenberg-marquardt", "lm"),
    ("Levenberg Marquardt", "lm"),
    ("gauss newton", "gauss-newton"),
    ("nelder_mead", "nelder-mead"),
    ("ss-broyden", "ssbroyden"),
]


@pytest.mark.parametrize("given, meant", MEANT)
def test_another_name_of_a_method_is_understood(given, meant):
    with pytest.raises(ValueError, match=f"Did you mean '{meant}'.*{given}"):
        kormos.optimizers.get(given)


@pytest.mark.parametrize("given, meant", [*MEANT, ("adamm", "adam")])
def test_compile_asks_too(given, meant):
    with pytest.raises(ValueError, match=f"Did you mean '{meant}'.*'lbfgs'"):
        linear().compile(given, "mse")


def test_what_is_close_to_nothing_gets_the_list():
    with pytest.raises(ValueError, match="xyzzy. The .*'lm'.*'xyzzy'"):
        linear().compile("xyzzy", "mse")
    assert did_you_mean("xyzzy", ["lm"]) == ""
    assert did_you_mean(3, ["lm"]) == ""


def test_compile_takes_the_names_of_keras_and_of_users():
    @keras.saving.register_keras_serializable(package="mine")
    class Mine(keras.optimizers.SGD):
        pass

    for name in ("adam", "SGD", "mine>Mine"):
        model = linear()
        model.compile(name, "mse")
        assert isinstance(model.optimizer, keras.optimizers.Optimizer)


def test_a_method_of_scipy_that_is_misspelt():
    with pytest.raises(ValueError, match="Did you mean 'newton-cg'"):
        kormos.optimizers.ScipyBatchOptimizer(method="newtoncg")


@pytest.mark.parametrize("method", ["lbfgs", "lm", "bfgs", "newton"])
def test_an_unknown_argument_of_fit_is_called_one(method):
    model = linear()
    model.compile(method, "mse")
    data = lindata(9, noise=0)
    with pytest.raises(ValueError, match="`fit`.*mean 'epochs'.*'epoch'"):
        model.fit(*data, epoch=3)
    with pytest.raises(ValueError, match="`fit`.*'max_evals'.*'qqq'"):
        model.fit(*data, qqq=3)


CLASSES = [
    kind
    for kind in vars(kormos.optimizers).values()
    if isinstance(kind, type) and kind.__module__.startswith("kormos.")
]


@pytest.mark.parametrize("kind", CLASSES)
def test_an_unknown_argument_names_the_class_that_was_called(kind):
    with pytest.raises(TypeError, match=rf"^{kind.__name__} got .*'epochs'"):
        kind(epoch=3)


@pytest.mark.parametrize("door", [kormos.fit, kormos.check])
def test_missing_targets(door):
    model = linear()
    model.compile("lbfgs", "mse")
    with pytest.raises(ValueError, match="pass `y`.*loss='mse'"):
        door(model, np.ones((9, 5)))


def test_targets_without_a_loss_are_not_missed():
    inputs = keras.Input((5,))
    dense = keras.layers.Dense(1, activity_regularizer="l2")
    model = keras.Model(inputs, dense(inputs))
    model.compile("lbfgs", None)
    history = model.fit(lindata(9, noise=0)[0], epochs=2, verbose=0)
    assert np.isfinite(history.result.loss)


def widths(targets, outputs, loss):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(outputs)])
    model.compile("lbfgs", loss)
    x = np.random.default_rng(0).normal(size=(30, 3))
    y = np.zeros((30, *targets))
    return kormos.check(model, x, y)["shapes"]


@pytest.mark.slow
@pytest.mark.parametrize("targets, outputs", [((2,), 1), ((1,), 2)])
def test_targets_of_another_width_are_found(targets, outputs):
    found = widths(targets, outputs, "mse")
    assert not found.passed and found.is_fatal
    assert f"({targets[0]},)" in found.detail
    assert f"({outputs},)" in found.detail


def squares_of_the_first(y, p):
    return keras.ops.mean((y[:, :1] - p) ** 2, axis=-1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "targets, outputs, loss",
    [
        ((), 1, "mse"),
        ((1,), 1, "mae"),
        ((2,), 2, "huber"),
        (
            (1,),
            4,
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ),
        ((2,), 1, squares_of_the_first),
    ],
)
def test_targets_that_a_loss_wants_are_right(targets, outputs, loss):
    assert widths(targets, outputs, loss).passed


def test_a_missing_backend_names_those_at_hand(monkeypatch):
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: name == "torch" or None
    )
    error = ModuleNotFoundError("No module named 'jax'", name="jax")
    told = missing_backend.explained(error)
    assert isinstance(told, ImportError)
    for part in ("'jax'", "KERAS_BACKEND=torch", "pip install 'kormos[jax]'"):
        assert part in str(told)


def test_without_any_backend_all_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = ModuleNotFoundError("No module named 'torch'", name="torch")
    told = str(missing_backend.explained(error))
    assert "['jax', 'tensorflow', 'torch']" in told


def test_other_errors_of_an_import_stay_as_they_are():
    error = ImportError("broken", name="numpy")
    assert missing_backend.explained(error) is error


def test_a_process_without_its_backend_is_told():
    # The name of a backend that Keras does not find, in a process of its own.
    code = (
        "import sys; sys.modules['jax'] = None; import os;"
        "os.environ['KERAS_BACKEND'] = 'jax'; import kormos"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert (
        "Keras is configured to run on 'jax', which is not installed"
        in done.stderr
    )
    assert "set the variable KERAS_BACKEND" in done.stderr


@pytest.mark.parametrize(
    "module, call",
    [
        ("matplotlib", lambda: optional.new_figure((1, 1), None)),
        ("pandas", optional.pandas_module),
    ],
)
def test_a_missing_package_is_named_with_its_cure(monkeypatch, module, call):
    for name in [n for n in sys.modules if n.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    cures = {"matplotlib": "kormos[plots]", "pandas": "pip install pandas"}
    with pytest.raises(ImportError) as caught:
        call()
    assert cures[module] in str(caught.value)


def test_a_wrong_name_is_that_of_the_argument():
    v = keras.Variable([1.0])
    with pytest.raises(ValueError, match="Argument `optimizer` .*'nothing'"):
        model = linear()
        model.compile(loss="mse")
        kormos.fit(model, *lindata(9, 0.1), optimizer="nothing")
    with pytest.raises(ValueError, match="Argument `method` .*'nothing'"):
        kormos.minimize(lambda: keras.ops.sum(v**2), [v], "nothing")


def test_what_is_not_a_model_is_refused():
    with pytest.raises(ValueError, match="`model` must be .*Received: 3 "):
        kormos.fit(3, *lindata(9, 0.1))


def test_what_is_not_a_callback_is_refused():
    model = linear()
    model.compile("lbfgs", "mse")
    with pytest.raises(ValueError, match="`LambdaCallback`.*Received: <func"):
        model.fit(*lindata(9, 0.1), callbacks=[lambda: None], verbose=0)


@pytest.mark.parametrize("value", [None, 1.0, {}, ()])
def test_what_a_loss_may_not_return(value):
    def forgetful(y_true, y_pred):
        return value

    model = linear()
    model.compile("lbfgs", forgetful)
    with pytest.raises(ValueError, match="must return a tensor.*'forgetful'"):
        model.fit(*lindata(9, 0.1), verbose=0)


def test_no_residuals_are_refused():
    v = keras.Variable([1.0, 2.0])
    with pytest.raises(ValueError, match="at least one residual"):
        kormos.least_squares(lambda: v[:0], [v], verbose=0)


def test_float16_is_found_in_a_model_in_a_model():
    dense = keras.layers.Dense(1, dtype="mixed_float16")
    inner = keras.Sequential([keras.Input((5,)), dense])
    middle = keras.Sequential([keras.Input((5,)), inner])
    model = keras.Sequential([keras.Input((5,)), middle])
    model.compile("lbfgs", "mse")
    with pytest.raises(ValueError, match="float16 gradients"):
        model.fit(*lindata(9, 0.1), verbose=0)
