"""A fit continues with the values that callbacks assign."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from conftest import BACKEND

# These tests do not look at how a run of few iterations ends.
pytestmark = pytest.mark.filterwarnings(
    "ignore::kormos.ConvergenceWarning",
)

X = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")
Y = np.tanh(X.sum(1, keepdims=True))


def free(value, **kwargs):
    return keras.Variable(np.array(value, "float64"), dtype="float64", **kwargs)


def moving(variable, value, when=2):
    def callback(iteration, logs):
        if iteration == when:
            variable.assign(value)

    return callback


@pytest.mark.parametrize("method", ["lbfgs", "l-bfgs-b", "trust-ncg"])
def test_a_variable_that_a_loss_reads(method, float64):
    x, goal = free([3.0, -1.0]), free([1.0, 1.0], trainable=False)
    result = kormos.minimize(
        lambda: ops.sum((x - goal) ** 2 + (x - goal) ** 4),
        [x],
        method,
        callback=moving(goal, [2.0, 5.0]),
    )
    assert result.success
    found = ops.convert_to_numpy(x)
    np.testing.assert_allclose(found, [2.0, 5.0], atol=1e-4)
    assert result.loss == pytest.approx(
        np.sum((found - [2.0, 5.0]) ** 2), abs=1e-12
    )


@pytest.mark.parametrize("has_data", [False, True])
def test_a_variable_that_residuals_read(has_data, float64):
    x, goal = free([3.0]), free([1.0], trainable=False)
    function, data = lambda: (x - goal) ** 2, None
    if has_data:
        function, data = lambda d: (x - goal) ** 2 + 0 * d, np.zeros((3, 1))
    result = kormos.least_squares(
        function, [x], data=data, callbacks=[moving(goal, [2.0])]
    )
    assert result.success
    np.testing.assert_allclose(ops.convert_to_numpy(x), [2.0], atol=1e-4)
    assert result.loss < 1e-16


def test_a_variable_that_a_constraint_reads(float64):
    x, least = free([5.0, 3.0]), free(1.0, trainable=False)
    kormos.minimize(
        lambda: ops.sum(x**2) + x[0] ** 4,
        [x],
        "slsqp",
        constraints={"type": "ineq", "fun": lambda: x - least},
        callback=moving(least, 2.0),
    )
    np.testing.assert_allclose(ops.convert_to_numpy(x), [2.0, 2.0], atol=1e-6)


def test_what_the_last_callback_assigns(float64):
    x, goal = free([3.0]), free([1.0], trainable=False)
    result = kormos.minimize(
        lambda: ops.sum((x - goal) ** 2),
        [x],
        "l-bfgs-b",
        max_iterations=1,
        callback=moving(goal, [10.0], when=1),
    )
    assert result.iterations == 1
    expected = (ops.convert_to_numpy(x)[0] - 10) ** 2
    assert result.loss == pytest.approx(expected, rel=1e-12)


def test_the_curvature_is_kept(float64):
    x, goal = free(np.ones(4)), free(np.zeros(4), trainable=False)
    scales = ops.convert_to_tensor(np.array([1.0, 10.0, 100.0, 1000.0]))
    losses, moved = [], []

    def callback(iteration, logs):
        losses.append(logs["loss"])
        if logs["loss"] < 1e-18 and not moved:
            goal.assign(np.ones(4))
            moved.append(len(losses))

    kormos.minimize(
        lambda: ops.sum(scales * (x - goal) ** 2),
        [x],
        "dense-bfgs",
        max_iterations=100,
        callback=callback,
    )
    # A Newton step, with the Hessian that is known, from a loss of 1111.
    assert losses[moved[0]] < 1e-4 * 1111


@pytest.mark.parametrize("method", ["lbfgs", "l-bfgs-b", "lm"])
def test_projected_variables(method, float64):
    x = free([3.0, 4.0])

    def project(iteration, logs):
        x.assign(ops.clip(x, 2.0, 10.0))

    if method == "lm":
        # The mean of the squares.
        result, least = (
            kormos.least_squares(
                lambda: 1.0 * x, [x], max_iterations=5, callbacks=[project]
            ),
            4.0,
        )
    else:
        result, least = (
            kormos.minimize(
                lambda: ops.sum(x**2),
                [x],
                method,
                max_iterations=5,
                callback=project,
            ),
            8.0,
        )
    np.testing.assert_array_equal(ops.convert_to_numpy(x), [2.0, 2.0])
    assert result.loss == pytest.approx(least)


class Annealed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(4, "tanh")
        self.out = layers.Dense(1)
        self.beta = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="beta"
        )

    def call(self, x):
        hidden = self.hidden(x)
        self.add_loss(self.beta * ops.mean(hidden**2))
        return self.out(hidden)

    def activations(self):
        return np.tanh(X @ self.hidden.get_weights()[0] + self.bias)

    @property
    def bias(self):
        return self.hidden.get_weights()[1]

    def own_loss(self):
        """The loss, by NumPy."""
        hidden = self.activations()
        kernel, bias = self.out.get_weights()
        mse = np.mean((hidden @ kernel + bias - Y) ** 2)
        return mse + float(self.beta) * np.mean(hidden**2)


def compiled(method):
    model = Annealed()
    model(X[:2])
    model.compile(method, loss="mse")
    return model


class Anneal(keras.callbacks.Callback):
    """Sets beta by the epoch; notes the loss, and the same by NumPy."""

    def __init__(self, at_end, most=np.inf):
        super().__init__()
        self.at_end, self.most, self.rows = at_end, most, []

    def on_epoch_begin(self, epoch, logs=None):
        if not self.at_end:
            self.model.beta.assign(min(0.1 * (epoch + 1), self.most))

    def on_epoch_end(self, epoch, logs=None):
        self.rows.append((logs["loss"], self.model.own_loss()))
        if self.at_end:
            self.model.beta.assign(min(0.1 * (epoch + 1), self.most))


@pytest.mark.parametrize("method", ["lbfgs", "l-bfgs-b", "lm"])
@pytest.mark.parametrize("at_end", [True, False])
def test_an_annealed_loss(method, at_end):
    model, anneal = compiled(method), Anneal(at_end)
    history = model.fit(X, Y, epochs=4, verbose=0, callbacks=[anneal])
    assert history.iteration == [1, 2, 3, 4]
    assert history.result.iterations == 4
    assert len(history.iterations["loss"]) == 4
    np.testing.assert_allclose(*zip(*anneal.rows, strict=True), rtol=2e-5)
    assert history.result.loss == pytest.approx(model.own_loss(), rel=2e-5)
    assert float(model.beta) == pytest.approx(0.4)


def test_several_iterations_to_an_epoch():
    model, anneal = compiled("lbfgs"), Anneal(False)
    history = model.fit(
        X, Y, epochs=3, steps_per_epoch=5, verbose=0, callbacks=[anneal]
    )
    assert history.iteration == [5, 10, 15]
    np.testing.assert_allclose(*zip(*anneal.rows, strict=True), rtol=2e-5)


class Ridge(keras.Model):
    def __init__(self):
        super().__init__()
        self.out = layers.Dense(1, use_bias=False)
        self.beta = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="beta"
        )

    def call(self, x):
        y = self.out(x)
        self.add_loss(self.beta * ops.sum(self.out.kernel**2))
        return y


# With "lm" the first epoch converges, and none begins after it.
@pytest.mark.parametrize(
    "method, at_end",
    [
        ("lbfgs", True),
        ("lbfgs", False),
        ("l-bfgs-b", True),
        ("l-bfgs-b", False),
        ("lm", True),
    ],
)
def test_the_end_of_a_schedule_is_minimized(method, at_end):
    model = Ridge()
    model(X[:2])
    model.compile(method, loss="mse")
    # Ridge regression, from no penalty to one of two.
    anneal = keras.callbacks.LambdaCallback(
        **{
            "on_epoch_end" if at_end else "on_epoch_begin": (
                lambda epoch, logs: model.beta.assign(
                    min(0.5 * (epoch + 1), 2.0)
                )
            )
        }
    )
    model.fit(X, Y, epochs=30, verbose=0, callbacks=[anneal])
    gram = X.T @ X / len(X) + 2.0 * np.eye(3)
    expected = np.linalg.solve(gram, X.T @ Y / len(X))
    np.testing.assert_allclose(
        model.out.get_weights()[0], expected, rtol=1e-3, atol=1e-4
    )


class Project(keras.callbacks.Callback):
    def __init__(self, hook):
        super().__init__()
        setattr(self, hook, self.project)

    def project(self, number, logs=None):
        kernel = self.model.hidden.kernel
        kernel.assign(ops.clip(kernel, -0.3, 0.3))


@pytest.mark.parametrize("method", ["lbfgs", "l-bfgs-b", "lm"])
@pytest.mark.parametrize("hook", ["on_epoch_end", "on_train_batch_end"])
def test_projected_weights(method, hook):
    model = compiled(method)
    history = model.fit(X, Y, epochs=5, verbose=0, callbacks=[Project(hook)])
    assert np.abs(model.hidden.get_weights()[0]).max() <= np.float32(0.3)
    assert history.result.loss == pytest.approx(model.own_loss(), rel=2e-5)
    losses = history.history["loss"]
    assert losses[-1] < losses[0]


def test_weights_projected_as_an_epoch_begins():
    class Begin(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            kernel = self.model.hidden.kernel
            kernel.assign(ops.clip(kernel, -0.3, 0.3))
            self.start = self.model.own_loss()

        def on_epoch_end(self, epoch, logs=None):
            # A step was taken from the weights that the epoch began with.
            assert logs["loss"] < self.start

    model = compiled("lm")
    history = model.fit(X, Y, epochs=4, verbose=0, callbacks=[Begin()])
    assert history.iteration == [1, 2, 3, 4]


@pytest.mark.parametrize("method", ["lbfgs", "lm"])
def test_looking_at_a_model_changes_nothing(method):
    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.evaluate(X, Y, verbose=0)
            self.model(X, training=True)

    found = []
    for callbacks in ([keras.callbacks.Callback()], [Look()]):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((3,)),
                layers.Dense(4, "tanh"),
                layers.Dropout(0.5),
                layers.Dense(1),
            ]
        )
        model.compile(method, loss="mse")
        model.fit(X, Y, epochs=4, verbose=0, callbacks=callbacks)
        weights = [ops.convert_to_numpy(v) for v in model.trainable_variables]
        found.append((model.optimizer.fg_evals, *weights))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("method", ["lbfgs", "l-bfgs-b", "lm"])
def test_callbacks_that_only_look_change_nothing(method):
    """Keras' own steps on JAX put other arrays into all variables."""

    def look(epoch, logs):
        model.evaluate(X, Y, verbose=0)
        model.predict(X[:5], verbose=0)

    found = []
    for fn in (look, lambda epoch, logs: None):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((3,)),
                layers.Dense(4, "tanh"),
                layers.BatchNormalization(),
                layers.Dense(1),
            ]
        )
        model.compile(method, loss="mse")
        callback = keras.callbacks.LambdaCallback(
            on_epoch_begin=fn, on_epoch_end=fn
        )
        history = model.fit(X, Y, epochs=5, verbose=0, callbacks=[callback])
        found.append((history.history["loss"], history.result.evaluations))
    assert found[0] == found[1]


@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_epoch_end"])
@pytest.mark.parametrize("place", ["kernel", "average"])
def test_a_single_number_that_is_assigned(hook, place):
    """Of a weight that is trained, and of one that is not."""
    model = keras.Sequential(
        [keras.Input((3,)), layers.BatchNormalization(), layers.Dense(1)]
    )
    model.compile("lbfgs", loss="mse")
    variable, value, rows = model.layers[1].kernel, 0.25, []
    if place == "average":
        variable, value = model.layers[0].moving_mean, 0.5

    def assign(epoch, logs):
        if epoch == 1:
            array = np.array(ops.convert_to_numpy(variable))
            array.reshape(-1)[1] = value
            variable.assign(array)

    class Rows(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            own = self.model.evaluate(X, Y, verbose=0)
            rows.append((logs["loss"], own))

    callbacks = [Rows(), keras.callbacks.LambdaCallback(**{hook: assign})]
    model.fit(X, Y, epochs=4, verbose=0, callbacks=callbacks)
    np.testing.assert_allclose(*zip(*rows, strict=True), rtol=2e-5)
    if place == "average":
        assert ops.convert_to_numpy(variable)[1] == np.float32(value)


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's way to project")
@pytest.mark.parametrize("is_trained", [True, False])
def test_what_is_assigned_past_the_count_of_versions(is_trained):
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, "tanh"), layers.Dense(1)]
    )
    model.layers[0].trainable = is_trained
    model.compile("lbfgs", loss="mse")
    kernel, rows = model.layers[0].kernel, []

    def project(epoch, logs):
        rows.append((logs["loss"], model.evaluate(X, Y, verbose=0)))
        kernel.value.data.clamp_(0.1, 0.4)

    callback = keras.callbacks.LambdaCallback(on_epoch_end=project)
    model.fit(X, Y, epochs=4, verbose=0, callbacks=[callback])
    np.testing.assert_allclose(*zip(*rows, strict=True), rtol=2e-5)
    assert 0.0999 < ops.convert_to_numpy(kernel).min()
