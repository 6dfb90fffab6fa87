"""A fit continues exactly where an earlier one ended, with its curvature."""

import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

import kormos
from conftest import BACKEND
from conftest import OTHERS
from conftest import TORCH_FIRST
from native import eager_only
from native import methods

METHODS = methods("lbfgs", "ssbroyden")

pytestmark = pytest.mark.usefixtures("unconverged")


def data(rows=60, seed=0):
    x = np.random.default_rng(seed).uniform(-1, 1, (rows, 2))
    return x, (x**2).sum(axis=1, keepdims=True)


def net(optimizer="lbfgs"):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(5, activation="tanh"),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer=optimizer, loss="mse")
    return model


def weights(model):
    return np.concatenate([w.reshape(-1) for w in model.get_weights()])


@pytest.fixture(scope="module")
def straight():
    """Weights and losses of 20 epochs in one fit, by method and steps."""
    fits = {}

    def fit(method, steps=1):
        if (method, steps) not in fits:
            model = net(method)
            history = model.fit(
                *data(), epochs=20, steps_per_epoch=steps, verbose=0
            )
            fits[method, steps] = weights(model), history.history["loss"]
        return fits[method, steps]

    return fit


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_ten_and_ten_epochs_are_twenty(method, steps, straight):
    expected, losses = straight(method, steps)
    model = net(method)
    settings = {"epochs": 10, "steps_per_epoch": steps, "verbose": 0}
    first = model.fit(*data(), **settings)
    second = model.fit(*data(), resume=True, **settings)
    assert first.history["loss"] + second.history["loss"] == losses
    np.testing.assert_array_equal(weights(model), expected)


def test_a_fit_starts_afresh_unless_asked(straight):
    _, losses = straight("lbfgs")
    model = net()
    model.fit(*data(), epochs=10, verbose=0)
    second = model.fit(*data(), epochs=10, verbose=0)
    assert second.history["loss"] != losses[10:]


def test_resume_without_a_state_starts_afresh(straight):
    _, losses = straight("lbfgs")
    history = net().fit(*data(), epochs=20, resume=True, verbose=0)
    assert history.history["loss"] == losses


@pytest.mark.parametrize("method", methods("lbfgs"))
def test_resume_of_a_loaded_model(method, straight, tmp_path):
    expected, losses = straight(method)
    model = net(method)
    model.optimizer.keep_state = True
    model.fit(*data(), epochs=10, verbose=0)
    model.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    history = model.fit(*data(), epochs=10, resume=True, verbose=0)
    assert history.history["loss"] == losses[10:]
    np.testing.assert_array_equal(weights(model), expected)


SCRIPT = f"""
import sys
{TORCH_FIRST}
import keras
import numpy as np
import warnings
import kormos

warnings.simplefilter("ignore", kormos.ConvergenceWarning)
x = np.random.default_rng(0).uniform(-1, 1, (60, 2))
y = (x**2).sum(axis=1, keepdims=True)
"""

RESUMED = """
model = keras.models.load_model(sys.argv[1])
model.fit(x, y, epochs=10, resume=True, verbose=0)
np.save(sys.argv[2], np.concatenate([w.ravel() for w in model.get_weights()]))
"""


def run(code, *args, backend=BACKEND, check=True):
    env = {**os.environ, "KERAS_BACKEND": backend}
    command = [sys.executable, "-c", SCRIPT + code, *map(str, args)]
    return subprocess.run(command, env=env, check=check)


@pytest.mark.slow
def test_resume_in_a_new_process(straight, tmp_path):
    expected, _ = straight("lbfgs")
    model = net()
    model.optimizer.keep_state = True
    model.fit(*data(), epochs=10, verbose=0)
    model.save(tmp_path / "model.keras")
    run(RESUMED, tmp_path / "model.keras", tmp_path / "weights.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "weights.npy"), expected)


@pytest.mark.skipif(BACKEND == "torch", reason="JAX compares the same two.")
def test_resume_on_another_backend(tmp_path, float64):
    model = net()
    model.optimizer.keep_state = True
    model.fit(*data(), epochs=10, verbose=0)
    model.save(tmp_path / "model.keras")
    model.fit(*data(), epochs=10, resume=True, verbose=0)
    other = OTHERS[0]
    args = tmp_path / "model.keras", tmp_path / "weights.npy"
    run("kormos.enable_float64()" + RESUMED, *args, backend=other)
    # TensorFlow rounds Python's constants to float32.
    tolerance = 1e-4 if "tensorflow" in (BACKEND, other) else 1e-8
    np.testing.assert_allclose(
        np.load(tmp_path / "weights.npy"), weights(model), atol=tolerance
    )


KILLED = """
import os
import signal

class Kill(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 12 and sys.argv[2] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

keras.utils.set_random_seed(0)
model = keras.Sequential([
    keras.Input((2,)),
    keras.layers.Dense(5, activation="tanh"),
    keras.layers.Dense(1),
])
model.compile(optimizer="lbfgs", loss="mse")
backup = keras.callbacks.BackupAndRestore(sys.argv[1])
history = model.fit(x, y, epochs=20, callbacks=[backup, Kill()], verbose=0)
np.save(sys.argv[3], np.concatenate([w.ravel() for w in model.get_weights()]))
np.save(sys.argv[4], history.epoch)
"""


@pytest.mark.slow
def test_a_killed_fit_is_restored(straight, tmp_path):
    expected, _ = straight("lbfgs")
    args = tmp_path / "backup", "kill", tmp_path / "w.npy", tmp_path / "e.npy"
    killed = run(KILLED, *args, check=False)
    assert killed.returncode == -signal.SIGKILL
    run(KILLED, tmp_path / "backup", "go on", *args[2:])
    assert np.load(tmp_path / "e.npy").tolist() == list(range(12, 20))
    np.testing.assert_array_equal(np.load(tmp_path / "w.npy"), expected)


@eager_only
def test_the_curvature_survives_other_data():
    """A changed loss is evaluated again; the pairs stay."""
    x, y = data(600)
    more_x, more_y = data(600, seed=1)
    cold, warm = net(), net()
    for model in (cold, warm):
        model.fit(x, y, epochs=100, verbose=0)
    settings = {"epochs": 10, "verbose": 0}
    afresh = cold.fit(more_x, more_y, **settings)
    resumed = warm.fit(more_x, more_y, resume=True, **settings)
    start = resumed.result.initial_loss
    assert start == pytest.approx(afresh.result.initial_loss, rel=1e-6)
    assert resumed.result.loss < afresh.result.loss


@eager_only
def test_resume_from_weights_that_were_changed():
    x, y = data()
    model = net()
    model.fit(x, y, epochs=10, verbose=0)
    model.set_weights([1.1 * w for w in model.get_weights()])
    loss = model.evaluate(x, y, verbose=0)
    history = model.fit(x, y, epochs=10, resume=True, verbose=0)
    assert history.result.initial_loss == pytest.approx(loss, rel=1e-5)
    assert history.result.loss < loss


@eager_only
def test_a_state_of_another_shape_is_refused():
    x, y = data()
    model = net()
    model.fit(x, y, epochs=3, verbose=0)
    model.layers[0].trainable = False
    with pytest.raises(ValueError, match="21 parameters.*6 parameters"):
        model.fit(x, y, epochs=3, resume=True, verbose=0)


@eager_only
def test_a_state_of_another_method_is_refused():
    x, y = data()
    model = net()
    model.fit(x, y, epochs=3, verbose=0)
    model.optimizer.memory = 7
    with pytest.raises(ValueError, match="memory=100.*memory=7"):
        model.fit(x, y, epochs=3, resume=True, verbose=0)


@pytest.mark.parametrize("method", ["auto", "lm"])
def test_least_squares_steps_continue(method, float64):
    x, y = data()
    whole, model = net(method), net(method)
    whole.fit(x, y, epochs=14, verbose=0)
    model.fit(x, y, epochs=6, verbose=0)
    model.fit(x, y, epochs=8, resume=True, verbose=0)
    np.testing.assert_array_equal(weights(model), weights(whole))


@eager_only
@pytest.mark.parametrize("method", ["lbfgs", "ssbroyden"])
def test_l1_penalties_keep_the_curvature(method):
    """It is that of the parts of the weights, which have their own point."""

    def penalized():
        model = net(method)
        model.layers[0].kernel_regularizer = keras.regularizers.L1(1e-3)
        return model

    whole, model = penalized(), penalized()
    whole.fit(*data(), epochs=24, verbose=0)
    model.fit(*data(), epochs=11, verbose=0)
    model.fit(*data(), epochs=13, resume=True, verbose=0)
    np.testing.assert_array_equal(weights(model), weights(whole))


def test_a_new_optimizer_says_that_it_has_no_state():
    model = net()
    model.fit(*data(), epochs=3, verbose=0)
    model.compile("ssbroyden", "mse")
    with pytest.warns(UserWarning, match="without the state.*'ssbroyden'"):
        model.fit(*data(), epochs=3, resume=True, verbose=0)
    with pytest.warns(UserWarning, match="name makes a new.*'lbfgs'"):
        kormos.fit(
            model, *data(), optimizer="lbfgs", epochs=3, resume=True, verbose=0
        )
    v = keras.Variable([1.0])
    with pytest.warns(UserWarning, match="name makes a new.*'lbfgs'"):
        kormos.minimize(
            lambda: keras.ops.sum((v - 2.0) ** 4), [v], "lbfgs", resume=True
        )


def test_scipy_says_that_it_keeps_no_curvature():
    model = net("l-bfgs-b")
    with pytest.warns(UserWarning, match="keeps no curvature"):
        model.fit(*data(), epochs=3, resume=True, verbose=0)


@eager_only
@pytest.mark.parametrize("method", METHODS)
def test_minimize_resumes(method, float64):
    def rosenbrock(v):
        return 100 * (v[1] - v[0] ** 2) ** 2 + (1 - v[0]) ** 2

    def run(*counts):
        optimizer = kormos.optimizers.get(method)
        v = keras.Variable(np.array([-1.2, 1.0]))
        losses = []
        for count in counts:
            result = kormos.minimize(
                lambda: rosenbrock(v),
                [v],
                optimizer,
                max_iterations=count,
                resume=True,
            )
            losses += result.history["loss"]
        return losses

    assert run(6, 9) == run(15)
