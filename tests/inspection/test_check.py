"""`kormos.check`: every finding, caused by a fault."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from conftest import BACKEND

RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 1, (30, 2)).astype("float32")
Y = (X[:, :1] * X[:, 1:]).astype("float32")


class Through(layers.Layer):
    """A layer that calls a function."""

    def __init__(self, fn, **kwargs):
        super().__init__(**kwargs)
        self._fn = fn

    def call(self, inputs):
        return self._fn(inputs)


def model_with(fn=None, loss="mse"):
    parts = [keras.Input((2,)), layers.Dense(3, "tanh", name="first")]
    if fn is not None:
        parts.append(Through(fn, name="culprit"))
    model = keras.Sequential([*parts, layers.Dense(1, name="last")])
    model.compile(loss=loss)
    return model


def noise(x):
    return x + ops.cast(np.random.normal(), x.dtype)


def test_nothing_is_found_in_a_sound_model():
    model = model_with()
    before = model.get_weights()
    report = kormos.check(model, X, Y, hessian=True)
    assert report.passed and not report.failures
    report.raise_if_fatal()
    assert report.loss == pytest.approx(
        model.evaluate(X, Y, verbose=0), rel=1e-5
    )
    assert report.seconds > 0 and report.memory > 0
    assert report.method == "lm"
    text = str(report)
    for word in ("13 parameters, 30 rows", "batch size", "Suggested: 'lm'"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 88
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def noisy_loss(y_true, y_pred):
    return noise(ops.mean((y_true - y_pred) ** 2, axis=-1))


@pytest.mark.parametrize(
    "fn, loss, name",
    [(noise, "mse", "culprit"), (None, noisy_loss, "the loss function")],
)
def test_what_is_random_is_named(fn, loss, name):
    finding = kormos.check(model_with(fn, loss), X, Y)["deterministic"]
    assert not finding.passed and finding.names == (name,)
    assert "SeedGenerator" in finding.detail


def root_mean_square(y_true, y_pred):
    return ops.sqrt(ops.mean((y_true - y_pred) ** 2))


class Activity(layers.Layer):
    def call(self, inputs):
        self.add_loss(ops.sum(inputs**2))
        return inputs


def test_a_layer_that_mixes_rows_is_named():
    model = model_with(lambda x: x - ops.mean(x, axis=0))
    report = kormos.check(model, X, Y)
    finding = report["batch size"]
    assert finding.names == ("culprit",)
    assert "in batches of 10 rows: in layer 'culprit' a row" in finding.detail
    with pytest.raises(ValueError, match="batch size: The loss is"):
        report.raise_if_fatal()


def test_a_term_that_mixes_rows_is_named():
    finding = kormos.check(model_with(loss=root_mean_square), X, Y)
    assert finding["batch size"].names == ("root_mean_square",)
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(1), Activity(name="activity")]
    )
    model.compile(loss="mse")
    finding = kormos.check(model, X, Y)["batch size"]
    assert finding.names == ("what layers add to the loss",)


def test_where_numbers_end_is_named():
    model = model_with(lambda x: ops.log(x - 2))
    finding = kormos.check(model, X, Y)["finite"]
    assert finding.names == ("culprit",)

    def log_loss(y_true, y_pred):
        return ops.log(-(y_true**2)) + 0 * y_pred

    finding = kormos.check(model_with(loss=log_loss), X, Y)["finite"]
    assert finding.names == ("log_loss",)
    # It is finite, but its derivative is not.
    model = model_with(lambda x: x + ops.sqrt(0 * x))
    report = kormos.check(model, X, Y)
    assert "first/kernel" in " ".join(report["finite"].names)
    assert np.isfinite(report.loss)
    with pytest.raises(StopIteration):
        report["gradient"]


def test_a_wrong_gradient_is_named():
    # Twice its input, with the gradient of minus its input.
    model = model_with(lambda x: ops.stop_gradient(3 * x) - x)
    finding = kormos.check(model, X, Y)["gradient"]
    assert not finding.passed
    assert {name.split("/")[-2] for name in finding.names} == {"first"}


@pytest.mark.parametrize("name", ["relu", "gelu", "tanh", "softplus"])
def test_a_right_gradient_is_not_suspected(name):
    for seed in range(3):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential(
            [keras.Input((2,)), layers.Dense(20, name), layers.Dense(1)]
        )
        model.compile(loss="mae" if name == "relu" else "mse")
        assert kormos.check(model, X, Y)["gradient"].passed


def test_a_wrong_hessian_is_found():
    # A square, with its gradient, and without a second derivative.
    def square(x):
        fixed = ops.stop_gradient(x)
        return 2 * x * fixed - fixed**2

    report = kormos.check(model_with(square), X, Y, hessian=True)
    assert report["gradient"].passed
    assert not report["hessian"].passed
    assert "'lbfgs'" in report["hessian"].detail


def test_variables_without_gradient_are_named():
    class Unused(keras.Model):
        def __init__(self):
            super().__init__()
            self.used = layers.Dense(1)
            self.unused = layers.Dense(1, name="unused")

        def call(self, x):
            self.unused(x)
            return self.used(x)

    model = Unused()
    model.compile(loss="mse")
    finding = kormos.check(model, X, Y)["variables"]
    assert len(finding.names) == 2
    assert all("unused" in name for name in finding.names)
    assert not finding.is_fatal


def test_what_falls_to_float32_is_named():
    def narrow(x):
        return ops.cast(ops.cast(x, "float32"), "float32")

    with kormos.precision("float64"):
        assert kormos.check(model_with(), X, Y)["precision"].passed
        finding = kormos.check(model_with(narrow), X, Y)["precision"]
    assert finding.names == ("culprit",)


@pytest.mark.skipif(
    BACKEND != "torch", reason="JAX has no float64 outside; TensorFlow keeps it"
)
def test_float64_in_name_alone_is_found():
    with kormos.precision("float64"):
        model = model_with()
    with pytest.warns(UserWarning, match="computes a part of it in float32"):
        finding = kormos.check(model, X, Y)["precision"]
    assert "enable_float64" in finding.detail
    assert kormos.check(model, X, Y, precision="float64")["precision"].passed


def test_what_is_badly_scaled_is_named():
    x = X * np.array([1, 1e6], "float32")
    finding = kormos.check(model_with(lambda x: x), x, Y)["scaling"]
    assert "x has columns that differ 1e+06 times" in finding.detail
    finding = kormos.check(model_with(), X, Y + 1e3)["scaling"]
    assert "y lies" in finding.detail and finding.names == ("y",)
    finding = kormos.check(model_with(lambda x: 1e-5 * x), X, Y)["scaling"]
    assert len(finding.names) == 2
    assert finding.names[0].endswith("last/bias")


def test_a_loss_is_looked_at_without_compiling():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    report = kormos.check(model, X, Y, loss="mae")
    assert not model.compiled
    model.compile(loss="mae")
    assert report.loss == pytest.approx(
        model.evaluate(X, Y, verbose=0), rel=1e-5
    )
    # Without curvature in the outputs: no least squares.
    costs = {cost.method: cost for cost in report.costs}
    assert not costs["lm"].fits and "mae" in costs["lm"].remark
    assert report.method == "ssbroyden"
    assert model.loss == "mae"


@pytest.mark.parametrize(
    "regularizer",
    [
        "l1",
        keras.regularizers.L1(0.02),
        keras.regularizers.L1L2(l1=0.02, l2=0.1),
    ],
    ids=["name", "l1", "l1 and l2"],
)
def test_kinks_of_regularizers_are_named(regularizer):
    model = keras.Sequential(
        [
            keras.Input((2,)),
            layers.Dense(
                3, "tanh", kernel_regularizer=regularizer, name="sparse"
            ),
            layers.Dense(1, kernel_regularizer="l2"),
        ]
    )
    report = kormos.check(model, X, Y, loss="mse")
    finding = report["kinks"]
    assert not finding.passed and not finding.is_fatal
    (name,) = finding.names
    assert name.endswith("sparse/kernel") and name in finding.detail
    report.raise_if_fatal()
    # Methods that stop at a kink are not suggested, and the report says so.
    fitting = {c.method for c in report.costs if c.fits}
    assert report.method in fitting == {"lbfgs", "ssbroyden"}


def test_no_kinks_are_seen_where_there_are_none():
    frozen = layers.Dense(3, kernel_regularizer="l1", trainable=False)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            frozen,
            layers.Dense(
                1, kernel_regularizer=keras.regularizers.L1L2(l1=0.0, l2=0.1)
            ),
        ]
    )
    report = kormos.check(model, X, Y, loss="mse")
    assert report["kinks"].passed and not report["kinks"].names
    assert report.method == "lm"


def test_many_parameters_take_little_memory():
    model = keras.Sequential(
        [
            keras.Input((1,), dtype="int32"),
            layers.Embedding(20_000, 2),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    model.compile(loss="mse")
    rows = np.arange(20_000)[:, None]
    report = kormos.check(model, rows, np.sin(rows))
    assert report.method == "lbfgs"
    costs = {cost.method: cost for cost in report.costs}
    assert costs["ssbroyden"].memory == 2 * 8 * 40_003**2
    assert not costs["ssbroyden"].fits and not costs["lm"].fits


def test_a_fit_checks_first(capsys):
    model = model_with(lambda x: x - ops.mean(x, axis=0))
    before = model.get_weights()
    with pytest.raises(ValueError, match="cannot be minimized as it is"):
        kormos.fit(model, X, Y, check=True)
    assert "LOOK" in capsys.readouterr().out
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("unconverged")
def test_a_fit_keeps_its_report():
    history = kormos.fit(
        model_with(), X, Y, optimizer="lm", epochs=1, check=True, verbose=0
    )
    assert history.check.passed


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="one precision at a time"):
        kormos.check(model_with(), X, Y, precision="auto")
    with pytest.raises(ValueError, match="must be a `keras.Model`"):
        kormos.check(len, X, Y, loss="mse")


def test_exact_kinks_are_no_wrong_gradient():
    # Black corners and biases of zero: a rectifier is on its kink there.
    x = np.zeros((12, 6, 6, 1), "float32")
    x[:, 2:4, 2:4] = RNG.random((12, 2, 2, 1))
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(2, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    assert kormos.check(model, x, np.arange(12) % 3)["gradient"].passed


def test_a_cast_inside_a_loss_is_found():
    def narrow(y_true, y_pred):
        error = ops.cast(y_pred, "float32") - ops.cast(y_true, "float32")
        return ops.mean(error**2, axis=-1)

    model = model_with(loss=narrow)
    finding = kormos.check(model, X, Y, precision="float64")["precision"]
    assert "inside a layer or the loss" in finding.detail
    model = model_with()
    assert kormos.check(model, X, Y, precision="float64")["precision"].passed


def test_losses_by_name():
    inputs = keras.Input((2,))
    outputs = [layers.Dense(n, name=f"of_{n}")(inputs) for n in (1, 2)]
    model = keras.Model(inputs, outputs)
    report = kormos.check(
        model,
        X,
        {"of_1": Y, "of_2": X},
        loss={"of_1": "mse", "of_2": "mae"},
    )
    assert report.passed


def test_what_a_terminal_may_lack():
    # TensorFlow takes no brackets, in which others might look for a style.
    name = "b" if BACKEND == "tensorflow" else "[b]"
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)], name=name)
    model.compile(loss="mse")
    text = str(kormos.check(model, X, Y))
    assert text.startswith(f"{name}: 3 parameters")
    text.encode("ascii")
