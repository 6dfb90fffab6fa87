"""A compiled loss must be the user's loss, or the fit is refused."""

import keras
import numpy as np
import pytest
from keras import ops

import kormos
from conftest import BACKEND
from kormos.objective.base import FlatObjective

METHODS = ["lbfgs", "l-bfgs-b", "nelder-mead"]


def free(value):
    return keras.Variable(np.array(value, "float64"), dtype="float64")


def past_keras(q):
    """The variable's tensor, read so that no scope can replace it."""
    own = q._value
    return own.detach() if BACKEND == "torch" else ops.convert_to_tensor(own)


@pytest.mark.parametrize("method", METHODS)
def test_a_part_that_is_read_past_keras(method, float64):
    q = free([1.0, 2.0])

    def loss():
        return ops.sum((q - 1) ** 2) + ops.sum((past_keras(q) - 3) ** 2)

    with pytest.raises(ValueError, match="compiled"):
        kormos.minimize(loss, [q], method)
    np.testing.assert_array_equal(ops.convert_to_numpy(q), [1.0, 2.0])


def test_residuals_of_which_a_part_is_read_past_keras(float64):
    q = free([1.0, 2.0])
    with pytest.raises(ValueError, match="compiled"):
        kormos.least_squares(lambda: (q - 1) + (past_keras(q) - 3), [q])
    np.testing.assert_array_equal(ops.convert_to_numpy(q), [1.0, 2.0])


class PastKeras(keras.layers.Layer):
    def build(self, shape):
        self.q = self.add_weight(shape=(3,), initializer="ones")

    def call(self, x):
        return x * self.q * ops.cast(past_keras(self.q), x.dtype)


@pytest.mark.parametrize("method", ["lbfgs", "l-bfgs-b", "lm"])
def test_a_layer_of_which_a_part_is_read_past_keras(method):
    x = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    model = keras.Sequential(
        [keras.Input((3,)), PastKeras(), keras.layers.Dense(1)]
    )
    model.compile(method, loss="mse")
    before = model.get_weights()
    with pytest.raises(ValueError, match="compiled"):
        model.fit(x, x.sum(1, keepdims=True), epochs=2, verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def partly_compiled(compile, q):
    """A loss with a part that was compiled and called before."""
    inner = compile(lambda: ops.sum((ops.convert_to_tensor(q) - 3) ** 2))
    inner()
    return lambda: ops.sum((q - 1) ** 2) + inner()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of tf.function")
@pytest.mark.parametrize("method", METHODS)
def test_a_tf_function_that_was_called_before_is_refused(method, float64):
    import tensorflow as tf

    q = free([1.0, 2.0])
    loss = partly_compiled(tf.function, q)
    # It keeps the variable's value, which nothing can replace.
    with pytest.raises(ValueError, match="compiled"):
        kormos.minimize(loss, [q], method)


@pytest.mark.skipif(BACKEND != "jax", reason="of jax.jit")
@pytest.mark.parametrize("method", METHODS)
def test_a_jitted_function_that_was_called_before_is_used(method, float64):
    import jax

    q = free([1.0, 2.0])
    kormos.minimize(partly_compiled(jax.jit, q), [q], method)
    np.testing.assert_allclose(ops.convert_to_numpy(q), [2, 2], atol=1e-3)


@pytest.mark.parametrize("method", ["lbfgs", "l-bfgs-b", "lm"])
def test_a_variable_that_changes_the_loss_without_a_gradient(method, float64):
    p, q = free([3.0, 4.0]), keras.Variable([1.0, 2.0], name="mute")

    def residuals():
        return p * ops.stop_gradient(ops.cast(q, "float64"))

    with pytest.raises(ValueError, match=r"mute, with a gradient of zero"):
        if method == "lm":
            kormos.least_squares(residuals, [p, q])
        else:
            kormos.minimize(lambda: ops.sum(residuals() ** 2), [p, q], method)


def test_variables_whose_gradient_is_zero_by_chance(float64):
    """One starts at a maximum, the other with units that are dead around it."""
    p, w = free([0.0, 0.0]), free([-1.0, -2.0])
    result = kormos.minimize(
        lambda: ops.sum((p**2 - 1) ** 2) + ops.sum(ops.relu(w)), [p, w]
    )
    # The run leaves the maximum.
    assert result.success
    assert result.loss == pytest.approx(0.0, abs=1e-10)


def test_float64_variables_where_keras_computes_in_float32():
    v = free([1.234567890123, 2.0])
    result = kormos.minimize(lambda: ops.sum((v + 1.0) ** 2), [v])
    assert result.loss < 1e-10


def test_a_loss_that_rounding_decides():
    """Terms cancel to all digits of float32, which is no reason to refuse."""
    p = keras.Variable(np.full(1000, 0.7, "float32"))

    def loss():
        terms = 1e6 * ops.exp(p)
        return ops.sum(terms) - ops.sum(ops.flip(terms)) + ops.sum(p**2)

    kormos.minimize(loss, [p], "l-bfgs-b", max_iterations=2)


def test_once_for_a_program(monkeypatch):
    calls = []
    original = kormos.Objective.reference

    def counted(self, theta):
        calls.append(theta)
        return original(self, theta)

    monkeypatch.setattr(kormos.Objective, "reference", counted)
    x = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("l-bfgs-b", loss="mse")
    for _ in range(3):
        model.fit(x, x.sum(1, keepdims=True), epochs=1, verbose=0)
    # At the start, and near it.
    assert len(calls) == 2


def with_a_stale_part(*others):
    x = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    head = keras.layers.Dense(1)
    model = keras.Sequential([keras.Input((3,)), PastKeras(), *others, head])
    return model, x, x.sum(1, keepdims=True)


@pytest.mark.parametrize("method", ["lbfgs", "l-bfgs-b", "nelder-mead", "lm"])
def test_a_stale_part_in_a_fit_of_streamed_data(method):
    model, x, y = with_a_stale_part()
    model.compile(method, loss="mse")
    before = model.get_weights()
    with pytest.raises(ValueError, match="compiled"):
        kormos.fit(model, x, y, batch_size=8, stream=True, verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_streamed_data_are_compared_by_their_first_batch(monkeypatch):
    found = []
    original = kormos.Objective.reference

    def kept(self, theta):
        point, loss = original(self, theta)
        found.append((self, point, loss))
        return point, loss

    monkeypatch.setattr(kormos.Objective, "reference", kept)
    x = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    y = x.sum(1, keepdims=True)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("l-bfgs-b", loss="mse")
    kormos.fit(model, x, y, batch_size=8, stream=True, epochs=1, verbose=0)
    assert len(found) == 2
    for objective, point, loss in found:
        assert not objective.is_streamed
        kernel, bias = point[:3], point[3]
        terms = (x[:8] @ kernel + bias - y[:8, 0]) ** 2
        assert loss == pytest.approx(terms.sum() / 20, rel=1e-5)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stale_part_in_a_stochastic_fit(stream):
    model, x, y = with_a_stale_part()
    model.compile(loss="mse")
    optimizer = kormos.optimizers.LevenbergMarquardt(stochastic=True)
    with pytest.raises(ValueError, match="compiled"):
        kormos.fit(
            model,
            x,
            y,
            optimizer=optimizer,
            batch_size=8,
            stream=stream,
            verbose=0,
        )


@pytest.mark.parametrize("method", ["lbfgs", "l-bfgs-b", "nelder-mead"])
def test_a_stale_part_beside_dropout(method):
    model, x, y = with_a_stale_part(keras.layers.Dropout(0.5, seed=1))
    model.compile(method, loss="mse")
    with pytest.raises(ValueError, match="compiled"):
        kormos.fit(model, x, y, training=True, verbose=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_stale_part_beside_random_numbers_with_a_seed(method, float64):
    q, generator = free([1.0, 2.0]), keras.random.SeedGenerator(1)

    def loss():
        noise = keras.random.normal((2,), seed=generator, dtype="float64")
        return ops.sum((q - noise) ** 2) + ops.sum((past_keras(q) - 3) ** 2)

    with pytest.raises(ValueError, match="compiled"):
        kormos.minimize(loss, [q], method)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("method", ["lbfgs", "l-bfgs-b"])
def test_layers_that_draw_are_compared_with_the_same_seeds(method, jit_compile):
    """They are also the same if the seeds have changed since the fit began."""
    x = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    dropout = keras.layers.Dropout(0.5, seed=1)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.GaussianNoise(0.5, seed=2),
            dropout,
            keras.layers.Dense(1),
        ]
    )
    model.compile(method, loss="mse", jit_compile=jit_compile)
    draw = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: dropout(x, training=True)
    )
    history = kormos.fit(
        model,
        x,
        x.sum(1, keepdims=True),
        training=True,
        epochs=2,
        verbose=0,
        callbacks=[draw],
    )
    assert history.history["loss"][1] < history.history["loss"][0]


DOORS = ["lbfgs", "l-bfgs-b", "nelder-mead", "newton", "trust-constr"]


def wrong_at(monkeypatch, number):
    """Makes the loss as written differ at one of the points compared."""
    calls = []
    original = FlatObjective.reference

    def changed(self, theta):
        point, loss = original(self, theta)
        # Around a difference there is another look before it is believed.
        if not any(np.allclose(p, point, rtol=1e-5) for p in calls):
            calls.append(point)
        is_wrong = np.allclose(calls[-1], point, rtol=1e-5)
        return point, loss + (is_wrong and len(calls) == number + 1)

    monkeypatch.setattr(FlatObjective, "reference", changed)
    return calls


def run_door(door, method):
    x = np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    y = x.sum(1, keepdims=True) + 1
    if door in ("fit", "solve"):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile("lbfgs", loss="mse")
        if door == "fit":
            return kormos.fit(model, x, y, optimizer=method, verbose=0)
        objective = kormos.Objective(model, x, y)
        start = objective.initial_position()
        return kormos.solve(objective, start, method, max_iterations=2)
    q = free([1.0, 2.0])

    def residuals():
        return q * q - 3

    if door == "least_squares":
        return kormos.least_squares(residuals, [q], method)
    return kormos.minimize(lambda: ops.sum(residuals() ** 2), [q], method)


@pytest.mark.parametrize("where, number", [("at", 0), ("near", 1)])
@pytest.mark.parametrize(
    "door, method",
    [(d, m) for d in ("fit", "minimize", "solve") for m in DOORS]
    + [(d, "lm") for d in ("fit", "least_squares")]
    + [("least_squares", "lbfgs")],
)
def test_every_door_compares_at_the_start_and_near_it(
    monkeypatch, float64, door, method, where, number
):
    calls = wrong_at(monkeypatch, number)
    with pytest.raises(ValueError, match=f"Received: {where} the start"):
        run_door(door, method)
    assert len(calls) > number


def test_what_is_refused_once_is_refused_again():
    """The compiled functions of a model are kept from one fit to the next."""
    model, x, y = with_a_stale_part()
    for method in ("lbfgs", "l-bfgs-b", "lm", "newton"):
        model.compile(method, loss="mse")
        for _ in range(2):
            with pytest.raises(ValueError, match="compiled"):
                model.fit(x, y, epochs=2, verbose=0)
