"""kormos' own quasi-Newton methods."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from conftest import BACKEND
from conftest import OTHERS
from conftest import TORCH_FIRST
from conftest import lindata
from conftest import linear
from native import METHODS
from native import compilations
from native import eager_only
from native import methods
from native import minimize

each_method = pytest.mark.parametrize("method", methods("lbfgs"))


def rosenbrock(x):
    return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2


POWERS = [-100, -30, -1, 1, 30, 100]


@pytest.mark.slow
@pytest.mark.parametrize("method", methods("lbfgs"))
def test_the_loss_and_the_parameters_have_no_scale(method, float64):
    x0 = np.array([-1.2, 1.0])
    result, x = minimize(rosenbrock, x0, method)
    np.testing.assert_allclose(x, 1, atol=1e-6)
    assert result.success
    # Each is compiled again.
    for power in POWERS if BACKEND == "torch" else (-30, 30):
        c = 2.0**power
        scaled, z = minimize(lambda x, c=c: rosenbrock(x) * c, x0, method)
        moved, w = minimize(lambda x, c=c: rosenbrock(x / c), x0 * c, method)
        for other in (scaled, moved):
            assert other.status == result.status
            assert other.evaluations == result.evaluations
        np.testing.assert_array_equal([z, w / c], [x, x])


@pytest.mark.parametrize("factor", [1e-9, 1e-6, 1e-4, 1.0])
@pytest.mark.parametrize("method", ["l-bfgs-b", "bfgs", "cg", "trust-ncg"])
def test_scipy_does_not_take_a_small_loss_for_converged(
    method, factor, float64
):
    result, x = minimize(lambda x: rosenbrock(x) * factor, [-1.2, 1.0], method)
    assert result.status == "converged"
    assert result.iterations > 10
    # Its tolerance is then 1e-5 of the gradient at the start.
    np.testing.assert_allclose(x, 1, atol=1e-2)


def test_tolerances_given_to_scipy_are_absolute(float64):
    result, _ = minimize(
        lambda x: rosenbrock(x) * 1e-9,
        [-1.2, 1.0],
        "l-bfgs-b",
        options={"gtol": 1e-5},
    )
    assert (result.iterations, result.status) == (0, "converged")


def net(width=64):
    return keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(width, activation="tanh"),
            layers.Dense(width, activation="tanh"),
            layers.Dense(1),
        ]
    )


def grid():
    side = np.linspace(-1, 1, 11)
    x = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    return x, (x**2).sum(axis=1, keepdims=True)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_surface_of_121_points(precision, unconverged):
    with kormos.precision(precision):
        model = net()
        model.compile(optimizer="lbfgs", loss="mse")
        history = model.fit(*grid(), epochs=10, steps_per_epoch=50, verbose=0)
    assert history.result.loss <= 1e-5
    # Some of them measure the rounding of a float32 loss.
    assert history.result.evaluations <= 680
    assert history.result.status in ("iteration limit", "noise floor")


@pytest.mark.slow
def test_float32_after_adam(unconverged):
    """Other L-BFGS codes stop after one iteration, or falsely converge."""
    x, y = grid()
    model = net()
    model.compile(optimizer="adam", loss="mse")
    model.fit(x, y, epochs=200, batch_size=len(x), verbose=0)
    pretrained = model.get_weights()
    settings = {"optimizer": "lbfgs", "steps_per_epoch": 50, "verbose": 0}
    history = kormos.fit(model, x, y, epochs=6, **settings)
    losses = [history.result.initial_loss, *history.iterations["loss"]]
    assert history.result.status in ("iteration limit", "noise floor")
    assert np.count_nonzero(np.diff(losses) < 0) >= 100
    with kormos.precision("float64"):
        fine = net()
        fine.compile(loss="mse")
        fine.set_weights(pretrained)
        exact = kormos.fit(
            fine,
            x,
            y,
            epochs=6,
            max_evals=history.result.evaluations,
            **settings,
        )
    is_as_low = history.result.loss <= 1.001 * exact.result.loss
    assert is_as_low or history.result.status == "iteration limit"


@each_method
def test_history(method, float64):
    model = linear(l2=1e-3)
    model.compile(optimizer=method, loss="mse", metrics=["mae"])
    history = model.fit(
        *lindata(50, noise=0.3), epochs=20, steps_per_epoch=3, verbose=0
    )
    rows, all_rows = history.history, history.iterations
    expected = {"loss", "grad", "fg_evals", "hessp_evals", "step", "resets"}
    assert set(all_rows) == expected | {"seconds"}
    assert set(rows) == expected | {"mae"}
    count = history.result.iterations
    assert all(len(column) == count for column in all_rows.values())
    assert history.iteration == [*range(3, count, 3), count]
    for name in expected:
        assert rows[name] == [all_rows[name][i - 1] for i in history.iteration]
    assert all_rows["fg_evals"] == sorted(all_rows["fg_evals"])
    # The last evaluations try an end, and belong to no accepted iterate.
    assert rows["fg_evals"][-1] <= history.result.evaluations


def test_history_holds_the_steps_taken(float64):
    visited = []
    v = keras.Variable(np.array([-1.2, 1.0]), dtype="float64")
    result = kormos.minimize(
        lambda: rosenbrock(ops.convert_to_tensor(v)),
        [v],
        "lbfgs",
        callback=lambda *_: visited.append(np.array(ops.convert_to_numpy(v))),
    )
    steps = np.linalg.norm(np.diff(visited, axis=0), axis=1)
    np.testing.assert_allclose(result.history["step"][1:], steps, rtol=1e-12)
    losses = [rosenbrock(x) for x in visited]
    np.testing.assert_allclose(
        result.history["loss"], losses, rtol=1e-12, atol=1e-15
    )


@each_method
def test_steps_per_epoch_changes_nothing(method, float64, unconverged):
    data = lindata(50, noise=0.3)

    def fit(steps):
        model = linear(l2=1e-3)
        model.compile(optimizer=method, loss="mse")
        return model.fit(
            *data, epochs=6 // steps, steps_per_epoch=steps, verbose=0
        ).iterations

    one, three = fit(1), fit(3)
    np.testing.assert_allclose(one["loss"], three["loss"], rtol=1e-10)
    assert one["fg_evals"] == three["fg_evals"]


def test_a_second_fit_compiles_nothing(unconverged):
    model = net()
    model.compile(optimizer="lbfgs", loss="mse")
    x, y = grid()
    model.fit(x, y, epochs=2, steps_per_epoch=5, verbose=0)
    program = kormos.Objective(model, x, y).program
    compiled = compilations(program)
    model.fit(x, y, epochs=2, steps_per_epoch=5, verbose=0)
    assert compilations(program) == compiled
    # One evaluation site: the model was traced once.
    assert compiled.get("value_and_grad", 1) == 1


def test_run_eagerly_takes_the_same_steps(float64, unconverged):
    data = lindata(50, noise=0.3)

    def losses(**compile):
        model = linear(l2=1e-3)
        model.compile(optimizer="lbfgs", loss="mse", **compile)
        return model.fit(*data, epochs=6, verbose=0).history["loss"]

    np.testing.assert_allclose(losses(run_eagerly=True), losses(), rtol=1e-9)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX and torch have none")
def test_a_layer_that_xla_does_not_know(unconverged):
    import tensorflow as tf

    class Python(layers.Layer):
        def call(self, inputs):
            ones = tf.py_function(
                lambda a: a * 0 + 1, [tf.stop_gradient(inputs)], tf.float32
            )
            return inputs * tf.ensure_shape(ones, inputs.shape)

    x, y = grid()
    model = keras.Sequential([keras.Input((2,)), Python(), layers.Dense(1)])
    model.compile(optimizer="lbfgs", loss="mse")
    history = model.fit(x, y, epochs=5, verbose=0)
    assert history.result.loss < history.result.initial_loss


@eager_only
def test_a_first_step_from_a_trained_net_does_not_blow_up(unconverged):
    x, y = grid()
    model = net(16)
    model.compile(optimizer="adam", loss="mse")
    model.fit(x, y, epochs=300, batch_size=len(x), verbose=0)
    history = kormos.fit(model, x, y, optimizer="ssbfgs", epochs=3, verbose=0)
    losses = [history.result.initial_loss, *history.history["loss"]]
    assert all(np.diff(losses) < 0)


class TestRefusals:
    @pytest.mark.parametrize("given", [{"options": {"m": 3}}, {"tol": 1e-3}])
    def test_options_of_scipy(self, given):
        v = keras.Variable([1.0])
        with pytest.raises(ValueError, match=r"LBFGS\(gtol=...\).*Received"):
            kormos.minimize(lambda: ops.sum(v**2), [v], "lbfgs", **given)

    @pytest.mark.parametrize("epochs", [-1, 2.5, [3, 4]])
    def test_epochs(self, epochs):
        model = linear()
        model.compile(optimizer="lbfgs", loss="mse")
        with pytest.raises(ValueError, match="an integer.*Received"):
            model.fit(*lindata(20, noise=0), epochs=epochs)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"memory": 0},
            {"memory": 2.5},
            {"scaling": "none"},
            {"gtol": -1},
            {"ftol": 2},
            {"xtol": "small"},
        ],
    )
    def test_wrong_arguments(self, wrong):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}.*Received"):
            kormos.optimizers.LBFGS(**wrong)


@pytest.mark.parametrize("name", METHODS)
def test_names_and_configs(name):
    optimizer = kormos.optimizers.get(name.upper())
    assert optimizer.name == name
    optimizer = type(optimizer)(gtol=1e-6, ftol=1e-9, xtol=1e-7, epochs=7)
    copy = type(optimizer).from_config(optimizer.get_config())
    assert copy.get_config() == optimizer.get_config()


@eager_only
@each_method
def test_tolerances(method, float64):
    """A looser tolerance stops earlier, by its own test."""
    optimizer = type(kormos.optimizers.get(method))
    x0 = [-1.2, 1.0]
    tests = {"gtol": 1e-3, "xtol": 0.3, "ftol": 0.9}
    for name, tolerance in tests.items():
        result, _ = minimize(rosenbrock, x0, optimizer(**{name: tolerance}))
        assert result.status == "converged"
        assert (result.test, result.threshold) == (name, tolerance)
        assert result.value <= tolerance


ITERATES = f"""
import sys
{TORCH_FIRST}
import keras
import numpy as np
import kormos
from keras import ops

kormos.enable_float64()
random = np.random.default_rng(0)
model = keras.Sequential([
    keras.Input((2,)),
    keras.layers.Dense(8, activation="tanh"),
    keras.layers.Dense(1),
])
model.compile(loss="mse")
model.set_weights([random.normal(size=w.shape) for w in model.get_weights()])
x = random.uniform(-1, 1, (50, 2))
visited = []

class Visit(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        weights = self.model.get_weights()
        visited.append(np.concatenate([w.ravel() for w in weights]))

for method in ("lbfgs", "ssbroyden"):
    start = model.get_weights()
    kormos.fit(model, x, (x**2).sum(axis=1, keepdims=True), optimizer=method,
               epochs=20, callbacks=[Visit()], verbose=0)
    model.set_weights(start)
np.save(sys.argv[1], visited)
"""


def iterates(backend, folder):
    path = folder / f"{backend}.npy"
    env = {**os.environ, "KERAS_BACKEND": backend, "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, "-c", ITERATES, path], env=env, check=True)
    return np.load(path)


@pytest.mark.skipif(BACKEND == "torch", reason="JAX compares the same two.")
def test_the_backends_take_the_same_iterates(tmp_path):
    other = OTHERS[0]
    ours, theirs = iterates(BACKEND, tmp_path), iterates(other, tmp_path)
    assert ours.shape == (40, 33)
    # TensorFlow rounds Python's constants to float32.
    tolerance = 1e-4 if "tensorflow" in (BACKEND, other) else 1e-8
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)
