"""Fits in float64 of models and variables in float32."""

import threading

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from conftest import BACKEND
from conftest import TIGHT
from conftest import lindata
from kormos.float64 import settings as float64_settings

RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, (60, 2))
Y = np.sin(3 * X[:, :1]) * X[:, 1:]


def net(seed=0):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(8, "tanh"), layers.Dense(1)]
    )
    model.compile(optimizer="adam", loss="mse", metrics=["mae"])
    return model


def arrays(model):
    return [ops.convert_to_numpy(v.value) for v in model.variables]


def by_numpy(model, x, y):
    w, b, v, c = (a.astype("float64") for a in arrays(model)[:4])
    return np.mean((np.tanh(x @ w + b) @ v + c - y) ** 2)


def assert_told(model, precision, words):
    """Asserts that, at the start, `"float64"` raises and `"auto"` warns."""
    told = pytest.raises(ValueError, match=words)
    if precision == "auto":
        told = pytest.warns(UserWarning, match=f"will not continue .*{words}")
    with told:
        kormos.Objective(model, X, Y, precision=precision)


def settings():
    return (
        keras.config.floatx(),
        keras.config.dtype_policy().name,
        keras.backend.result_type("float64", float),
        ops.convert_to_tensor(np.ones(1)).dtype,
    )


class Attending(keras.Model):
    """A subclassed model of nested layers, with its own loss."""

    def __init__(self):
        super().__init__()
        self.embed = layers.Embedding(5, 4)
        self.attend = layers.MultiHeadAttention(2, 3, dropout=0.1)
        self.norm = layers.LayerNormalization()
        self.recur = layers.Bidirectional(layers.LSTM(3))
        # Regularizers keep their factor as it is rounded where they are made.
        self.head = layers.Dense(
            1, kernel_regularizer=keras.regularizers.L2(2**-7)
        )
        self.huber = keras.losses.Huber(0.1)

    def call(self, x):
        x = self.embed(x)
        x = self.norm(x + self.attend(x, x, return_attention_scores=True)[0])
        return self.head(self.recur(x))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        total = super().compute_loss(x, y, y_pred, sample_weight)
        return total + self.huber(y, y_pred)


def test_a_float32_model_is_evaluated_as_its_float64_twin():
    x = RNG.integers(0, 5, (6, 4))
    y = RNG.normal(size=(6, 1))

    def objective(precision=None):
        keras.utils.set_random_seed(1)
        model = Attending()
        model.compile(loss=keras.losses.LogCosh())
        model(x)
        return kormos.Objective(model, x, y, precision=precision)

    narrow, wide = objective(), objective("float64")
    with kormos.precision("float64"):
        twin = objective()
        theta = narrow.initial_position()
        expected = twin.value(theta)
    value = wide.value(theta)
    assert value == pytest.approx(expected, rel=TIGHT)
    assert value != narrow.value(theta)


def test_inputs_and_targets_are_not_rounded():
    model = net()
    objective = kormos.Objective(model, X, Y, precision="float64")
    value = objective.value(objective.initial_position())
    assert value == pytest.approx(by_numpy(model, X, Y), rel=1e-14)


@pytest.mark.parametrize("optimizer", ["lbfgs", "l-bfgs-b", "lm"])
@pytest.mark.parametrize("precision", ["float64", "auto"])
@pytest.mark.usefixtures("unconverged")
def test_a_fit_passes_the_noise_of_float32(optimizer, precision):
    # A loss of exactly zero at weights that float32 does not hold.
    x, y = lindata(60, noise=0)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
    model.compile(loss="mse")
    before = settings()
    # SciPy's own tolerance would end it long before.
    scipy = {"tol": 1e-20} if optimizer == "l-bfgs-b" else {}
    history = kormos.fit(
        model,
        x,
        y,
        optimizer=optimizer,
        epochs=60,
        precision=precision,
        verbose=0,
        **scipy,
    )
    result = history.result
    assert result.loss < 1e-16
    assert result.kept_loss < 1e-12
    assert result.kept_loss == pytest.approx(
        model.evaluate(x, y, verbose=0), abs=1e-12
    )
    assert (result.float64_from is not None) == (precision == "auto")
    assert history.epoch == list(range(len(history.epoch)))
    assert settings() == before
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    assert model.compute_dtype == model.layers[0].compute_dtype == "float32"
    assert model.inputs[0].dtype == "float32"


@pytest.mark.usefixtures("unconverged")
def test_precisions_do_not_share_what_is_compiled():
    def fitted(model, precision):
        model.set_weights(start)
        history = kormos.fit(
            model,
            X,
            Y,
            optimizer="lbfgs",
            epochs=5,
            precision=precision,
            verbose=0,
        )
        return history.history["loss"]

    model = net()
    start = model.get_weights()
    first = fitted(model, None)
    wide = fitted(model, "float64")
    assert fitted(model, None) == first
    assert fitted(model, "float64") == wide
    assert first != wide
    model.set_weights(start)
    assert wide[0] != pytest.approx(first[0], rel=1e-12)


@pytest.mark.usefixtures("unconverged")
def test_ten_and_ten_iterations_are_twenty():
    def fit(model, epochs, **kwargs):
        return kormos.fit(
            model,
            X,
            Y,
            optimizer=optimizer,
            precision="float64",
            verbose=0,
            epochs=epochs,
            **kwargs,
        )

    optimizer = kormos.optimizers.get("lbfgs")
    model = net()
    fit(model, 20)
    expected = arrays(model)
    optimizer = kormos.optimizers.get("lbfgs")
    model = net()
    fit(model, 10)
    fit(model, 20, initial_epoch=10, resume=True)
    for got, wanted in zip(arrays(model), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.usefixtures("unconverged")
def test_threads_of_two_precisions():
    def fitted(precision):
        model = net()
        history = kormos.fit(
            model,
            X,
            Y,
            optimizer="l-bfgs-b",
            epochs=15,
            verbose=0,
            precision=precision,
        )
        return history.history["loss"]

    alone = {p: fitted(p) for p in (None, "float64")}
    before, together = settings(), {}

    def run(precision):
        # Seeds are global: the models are made beforehand.
        model = models[precision]
        history = kormos.fit(
            model,
            X,
            Y,
            optimizer="l-bfgs-b",
            epochs=15,
            verbose=0,
            precision=precision,
        )
        together[precision] = history.history["loss"]

    models = {p: net() for p in alone}
    threads = [threading.Thread(target=run, args=(p,)) for p in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    assert settings() == before


def test_scopes_of_threads_may_close_in_any_order():
    before = settings()
    opened, closed = threading.Event(), threading.Event()

    def other():
        with kormos.precision("float64"):
            opened.set()
            closed.wait(10)

    thread = threading.Thread(target=other)
    with kormos.precision("float64"):
        thread.start()
        opened.wait(10)
    assert keras.config.floatx() == "float64"
    closed.set()
    thread.join()
    assert settings() == before


@pytest.mark.parametrize("precision", ["float64", "auto"])
def test_everything_is_restored_after_an_exception(precision):
    def broken(y_true, y_pred):
        if keras.config.floatx() == "float64":
            raise RuntimeError("out of order")
        return ops.mean((y_true - y_pred) ** 2, axis=-1)

    model = net()
    model.compile(loss=broken)
    before, weights = settings(), arrays(model)
    assert_told(model, precision, "broken, which raises RuntimeError: out of")
    assert settings() == before
    assert model.layers[0].compute_dtype == "float32"
    for got, wanted in zip(arrays(model), weights, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_minimize_with_layers_and_losses_in_float32():
    # Rosenbrock's function through a layer: the minimum is not in float32.
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1)])
    mse = keras.losses.MeanSquaredError()
    x = np.array([[0.0], [1.0]])
    y = np.array([[1 / 3], [1 / 7]])

    def loss():
        tensors = [ops.convert_to_tensor(a) for a in (y, x)]
        return mse(tensors[0], model(tensors[1]))

    result = kormos.minimize(
        loss, model.trainable_variables, "lbfgs", precision="float64"
    )
    assert result.loss < 1e-24
    assert 0 < result.kept_loss < 1e-14
    assert model.layers[0].compute_dtype == mse.dtype == "float32"


@pytest.mark.parametrize("precision", ["float64", "auto"])
def test_least_squares(precision):
    # NIST's Misra1a, certified: StRD, nonlinear regression.
    x = np.array(
        [77.6, 114.9, 141.1, 190.8, 239.9, 289, 332.8, 378.4, 434.8, 477.3,
         536.8, 593.1, 689.1, 760]
    )  # fmt: skip
    y = np.array(
        [10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05,
         61.01, 66.4, 75.47, 81.78]
    )  # fmt: skip
    scale = keras.Variable([2.5, 5.0])
    result = kormos.least_squares(
        lambda d: (
            100 * scale[0] * (1 - ops.exp(-scale[1] * 1e-4 * d["x"])) - d["y"]
        ),
        [scale],
        data={"x": x, "y": y},
        precision=precision,
    )
    sum_of_squares = result.loss * len(x)
    assert sum_of_squares == pytest.approx(1.2455138894e-01, rel=1e-10)
    np.testing.assert_allclose(
        ops.convert_to_numpy(scale.value),
        [2.3894212918, 5.5015643181],
        rtol=2e-7,
    )


def test_weights_are_never_worse_for_their_rounding():
    # It starts with the best weight in float32. Float64 finds a better one,
    # whose rounding is the same or a worse one.
    best = np.float32(1 / 3)
    weight = keras.Variable(best)
    start = (float(best) - 1 / 3) ** 2
    result = kormos.minimize(
        lambda: (weight - ops.convert_to_tensor(np.float64(1 / 3))) ** 2,
        [weight],
        "lbfgs",
        precision="float64",
    )
    assert result.kept_loss <= start
    assert float(ops.convert_to_numpy(weight.value)) == float(best)


def test_what_stays_in_float32_is_named():
    class Narrow(layers.Layer):
        def call(self, x):
            return ops.cast(x, "float32")

    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(2), Narrow(name="narrow")]
    )
    model.compile(loss="mse")
    with pytest.raises(ValueError, match="narrow, in float32"):
        kormos.fit(model, X, Y, precision="float64", verbose=0)
    assert model.compute_dtype == "float32"


@pytest.mark.parametrize("precision", ["float16", 64, "double"])
def test_other_precisions_are_refused(precision):
    with pytest.raises(ValueError, match="must be 'float64', 'auto' or None"):
        kormos.fit(net(), X, Y, precision=precision)
    with pytest.raises(ValueError, match="Received: precision"):
        kormos.minimize(lambda: 0, [], precision=precision)


@pytest.mark.skipif(
    BACKEND == "tensorflow", reason="TensorFlow keeps float64 by itself"
)
def test_a_float64_model_in_float32_is_said_so():
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(1, dtype="float64")], name="wide"
    )
    model.compile(loss="mse")
    model.dtype_policy = "float64"
    with pytest.warns(UserWarning, match="wide is float64, and Keras"):
        kormos.Objective(model, X, Y)


def test_a_feasible_point_is_kept_for_a_higher_loss():
    v = keras.Variable(np.zeros(2, "float32"))
    result = kormos.minimize(
        lambda: ops.sum(v**2),
        [v],
        "slsqp",
        precision="float64",
        constraints=[{"type": "ineq", "fun": lambda: v[0] - 1.0}],
    )
    assert result.success
    np.testing.assert_allclose(ops.convert_to_numpy(v.value), [1, 0])
    assert result.kept_loss == pytest.approx(1, abs=1e-6)


@pytest.mark.usefixtures("unconverged")
def test_losses_on_other_points_are_not_compared():
    # A line that fits a parabola well near zero, but not at the new points.
    w = keras.Variable(np.zeros(2, "float32"))
    draw = kormos.callbacks.Resample(
        lambda count, rng: rng.random((count, 1)) * 2 + 3, every=3
    )
    result = kormos.least_squares(
        lambda x: 0.3 * x**2 - (w[0] + w[1] * x),
        [w],
        data=RNG.random((100, 1)) * 0.1,
        callbacks=[draw],
        precision="float64",
        max_iterations=40,
    )
    assert result.kept_loss == pytest.approx(result.loss, rel=1e-4)
    # The slope of the parabola in the middle of the new points, at four.
    assert float(ops.convert_to_numpy(w[1])) == pytest.approx(2.4, abs=0.05)


@pytest.mark.usefixtures("unconverged")
def test_threads_share_a_loss():
    loss = keras.losses.MeanSquaredError()
    models = [net(seed) for seed in range(3)]
    for model in models:
        model.compile(loss=loss)

    def run(model):
        kormos.fit(
            model, X, Y, optimizer="l-bfgs-b", epochs=8, verbose=0,
            precision="float64",
        )  # fmt: skip

    threads = [threading.Thread(target=run, args=(m,)) for m in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loss.dtype == "float32"
    assert {m.compute_dtype for m in models} == {"float32"}


@pytest.mark.parametrize("optimizer", ["lbfgs", "l-bfgs-b", "lm"])
@pytest.mark.usefixtures("unconverged")
def test_what_will_not_widen_is_fitted_in_float32(optimizer):
    x, y = lindata(60, noise=0)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
    model.add(layers.Activation(lambda x: ops.cast(x, "float32"), name="end"))
    model.compile(loss="mse")
    with pytest.warns(UserWarning, match="will not continue .*end, in float32"):
        history = kormos.fit(
            model, x, y, optimizer=optimizer, epochs=60, precision="auto",
            verbose=0,
        )  # fmt: skip
    result = history.result
    assert result.float64_from is None
    assert result.loss == result.kept_loss < 1e-8
    assert result.loss == pytest.approx(
        model.evaluate(x, y, verbose=0), abs=1e-12
    )


def test_attributes_of_layers_are_left_alone():
    class Named(layers.Layer):
        def __init__(self):
            super().__init__()
            self.inputs = ["a", "b"]
            self.dense = layers.Dense(1)

        def call(self, x):
            return self.dense(x)

    model = keras.Sequential([keras.Input((2,)), Named()])
    model.compile(loss="mse")
    objective = kormos.Objective(model, X, Y, precision="float64")
    assert np.isfinite(objective.value(objective.initial_position()))


@pytest.mark.usefixtures("unconverged")
def test_an_interrupt_while_float64_is_compiled(monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    x, y = lindata(60, noise=0)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(1)])
    model.compile(loss="mse")
    monkeypatch.setattr(kormos.Objective, "go_on_in_float64", interrupt)
    history = kormos.fit(
        model, x, y, optimizer="lbfgs", epochs=50, precision="auto", verbose=0
    )
    assert history.result.status == "interrupted"
    assert history.result.loss < 1e-8


@pytest.mark.skipif(
    BACKEND == "tensorflow", reason="TensorFlow keeps float64 by itself"
)
def test_a_keras_that_has_changed_is_said_so(monkeypatch):
    # This is as if Keras no longer read the entry.
    monkeypatch.setattr(float64_settings, "BIT64_TO_BIT32_DTYPE", {})
    before = settings()
    with pytest.raises(RuntimeError, match="Install a Keras release"):
        with kormos.precision("float64"):
            pass
    with pytest.raises(RuntimeError, match="has changed"):
        kormos.fit(net(), X, Y, precision="float64", verbose=0)
    assert settings() == before


@pytest.mark.parametrize("precision", ["float64", "auto"])
@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_quantized_models_are_told_unharmed(mode, precision):
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(6, "tanh"), layers.Dense(1)]
    )
    model.quantize(mode)
    if mode != "float8":
        model.layers[0].enable_lora(2)
    model.compile(optimizer="l-bfgs-b", loss="mse")
    before = model.evaluate(X, Y, verbose=0)
    policies = [layer.dtype_policy.name for layer in model.layers]
    names = ", ".join(layer.name for layer in model.layers)
    assert_told(model, precision, f"Quantized .*Received: {names}, ")
    assert model.evaluate(X, Y, verbose=0) == before
    assert [layer.dtype_policy.name for layer in model.layers] == policies


class ByDtype(layers.Layer):
    """A layer whose function depends on the dtype."""

    def call(self, x):
        return x * (1.01 if self.compute_dtype == "float64" else 1.0)


class LossByDtype(keras.Sequential):
    def compute_loss(self, x=None, y=None, y_pred=None, **kwargs):
        factor = 2.0 if "float64" in str(y_pred.dtype) else 1.0
        return factor * ops.mean(ops.square(y_pred - y))


@pytest.mark.parametrize(
    "model, words",
    [
        (lambda *rest: keras.Sequential([*rest, ByDtype()]), "an output that"),
        (lambda *rest: LossByDtype([*rest]), "the loss that"),
    ],
    ids=["output", "loss"],
)
@pytest.mark.parametrize("precision", ["float64", "auto"])
def test_another_function_in_float64_is_told(model, words, precision):
    model = model(keras.Input((2,)), layers.Dense(1))
    model.compile(optimizer="l-bfgs-b", loss="mse")
    before = model.get_weights()[0]
    assert_told(model, precision, f"{words} is .* in float64")
    np.testing.assert_array_equal(model.get_weights()[0], before)


def test_what_float32_cannot_tell_is_not_refused(unconverged):
    # Its spacing of numbers there is 0.06, of inputs within 0.3 of their mean.
    x = 1e6 + 0.3 * X
    normalize = layers.Normalization(mean=1e6, variance=0.09)
    model = keras.Sequential([keras.Input((2,)), normalize, layers.Dense(1)])
    model.compile(optimizer="l-bfgs-b", loss="mse")
    model.fit(x, Y, precision="float64", epochs=30, verbose=0)
    design = np.concatenate([X, np.ones((len(X), 1))], axis=1)
    right = np.linalg.lstsq(design, Y, rcond=None)[0][:-1]
    np.testing.assert_allclose(model.get_weights()[-2], right, atol=1e-4)


def test_saturated_outputs_are_not_refused(unconverged):
    start = keras.initializers.Constant(100.0)
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(1, "sigmoid", bias_initializer=start)]
    )
    model.compile(optimizer="lbfgs", loss="binary_crossentropy")
    targets = np.zeros((len(X), 1))
    objective = kormos.Objective(model, X, targets, precision="float64")
    loss = objective.value(objective.initial_position())
    # TensorFlow takes the logits; elsewhere a clipped logarithm is taken.
    right = 100 if BACKEND == "tensorflow" else -np.log(1e-7)
    assert loss == pytest.approx(right, rel=1e-2)
