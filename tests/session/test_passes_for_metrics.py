"""The metrics of an epoch come from the evaluation of its iterate."""

import keras
import numpy as np
import pytest
from keras import layers

import kormos
from conftest import BACKEND
from kormos.objective.keras_model.evaluation import ModelEvaluation

RANDOM = np.random.RandomState(2)
X = RANDOM.uniform(-1, 1, (24, 2)).astype("float32")
Y = np.sin(3 * X[:, :1]) * X[:, 1:]
WEIGHTS = np.linspace(0.5, 2, len(X))

NATIVE = ["lbfgs", "ssbroyden", "dense-bfgs", "newton", "gauss-newton", "lm"]
SCIPY = ["l-bfgs-b", "bfgs", "slsqp", "tnc", "trust-krylov", "cobyla", "powell"]


def network(method="lbfgs", **kwargs):
    """A network of 17 parameters, compiled."""
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(4, "tanh"), layers.Dense(1)]
    )
    kwargs = {"loss": "mse", "metrics": ["mse"], **kwargs}
    model.compile(optimizer=method, **kwargs)
    return model


@pytest.fixture
def own_passes(monkeypatch):
    """The passes over the data that are made only for metrics."""
    passes = []
    evaluate = ModelEvaluation.__call__

    def counted(self, theta, arguments):
        passes.append(theta)
        return evaluate(self, theta, arguments)

    monkeypatch.setattr(ModelEvaluation, "__call__", counted)
    return passes


@pytest.mark.parametrize("method", NATIVE + SCIPY)
def test_no_pass_is_made_for_metrics_alone(method, own_passes, unconverged):
    model = network(method)
    history = model.fit(X, Y, epochs=6, batch_size=10, verbose=0).history
    np.testing.assert_allclose(history["mse"], history["loss"], rtol=2e-5)
    assert len(set(history["mse"])) > 1
    assert own_passes == []


class Counted(layers.Layer):
    """Counts the calls with data, also within compiled code of JAX."""

    calls = 0

    def count(self):
        self.calls += 1

    def call(self, inputs):
        if BACKEND == "jax":
            import jax

            jax.debug.callback(self.count)
        elif not isinstance(inputs, keras.KerasTensor):
            self.count()
        return inputs


@pytest.mark.parametrize("method", ["lbfgs", "newton", "lm", "l-bfgs-b"])
def test_layers_are_called_as_often_as_without_metrics(method, unconverged):
    def calls(metrics):
        keras.utils.set_random_seed(0)
        counted = Counted()
        model = keras.Sequential(
            [
                keras.Input((2,)),
                counted,
                layers.Dense(3, "tanh"),
                layers.Dense(1),
            ]
        )
        model.compile(
            optimizer=method,
            loss="mse",
            metrics=metrics,
            run_eagerly=BACKEND != "jax",
        )
        before = counted.calls
        history = model.fit(X, Y, epochs=4, verbose=0)
        assert len(history.epoch) == 4
        if BACKEND == "jax":
            import jax

            jax.effects_barrier()
        return counted.calls - before

    without = calls(None)
    assert without >= 5
    assert calls(["mae", keras.metrics.R2Score()]) == without


def test_a_streamed_fit_reads_no_batch_for_metrics(own_passes, unconverged):
    model = network(metrics=["mse", "mae"])
    history = model.fit(
        X, Y, batch_size=10, epochs=4, stream=True, verbose=0
    ).history
    np.testing.assert_allclose(history["mse"], history["loss"], rtol=2e-5)
    mae = np.abs(model.predict(X, verbose=0) - Y).mean()
    assert history["mae"][-1] == pytest.approx(mae, rel=2e-5)
    assert own_passes == []


def test_iterations_run_many_to_a_call_also_with_metrics(
    monkeypatch, unconverged
):
    from kormos.solvers.quasi_newton.driver import CompiledLoop

    made = []
    advance = CompiledLoop.advance

    def counted(self, *args):
        before = int(self.state.iterations)
        advance(self, *args)
        made.append(int(self.state.iterations) - before)

    monkeypatch.setattr(CompiledLoop, "advance", counted)
    x = np.tile(X, (2, 1))
    model = network(metrics=["mse"])
    history = model.fit(x, np.tile(Y, (2, 1)), epochs=60, verbose=0).history
    assert len(history["mse"]) == 60
    np.testing.assert_allclose(history["mse"], history["loss"], rtol=2e-5)
    assert max(made) > 1


def test_an_epoch_of_several_iterations_has_the_metrics_of_the_last(
    own_passes, unconverged
):
    model = network()
    history = model.fit(X, Y, epochs=3, steps_per_epoch=4, verbose=0)
    assert history.history["mse"] == pytest.approx(
        history.iterations["loss"][3::4], rel=2e-5
    )
    assert own_passes == []


def masked():
    """A recurrent model whose outputs have a mask."""
    return keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(5, 2, mask_zero=True),
            layers.SimpleRNN(3, return_sequences=True),
            layers.Dense(1),
        ]
    )


def two_outputs():
    """A model with two outputs, each with a loss and a metric."""
    inputs = keras.Input((2,))
    hidden = layers.Dense(3, "tanh")(inputs)
    outputs = {
        name: layers.Dense(1, name=name)(hidden) for name in ("plus", "minus")
    }
    return keras.Model(inputs, outputs)


STEPS = RANDOM.randint(0, 5, (24, 4))
CASES = {
    "weights": (
        lambda: network(),
        (X, Y, WEIGHTS),
        {"loss": "mae", "metrics": ["mae"], "weighted_metrics": ["mse"]},
    ),
    "masks": (
        masked,
        (STEPS, np.sin(STEPS)[..., None], WEIGHTS[:, None] * np.ones(4)),
        {"loss": "mse", "weighted_metrics": ["mae"], "metrics": ["mse"]},
    ),
    "outputs": (
        two_outputs,
        (X, {"plus": Y, "minus": -Y}),
        {
            "loss": {"plus": "mse", "minus": "mae"},
            "loss_weights": {"plus": 1.0, "minus": 0.5},
            "metrics": {"minus": ["mse"]},
        },
    ),
    "thresholds": (
        lambda: keras.Sequential(
            [keras.Input((2,)), layers.Dense(1, "sigmoid")]
        ),
        (X, (Y > 0).astype("float32")),
        {
            "loss": "binary_crossentropy",
            "metrics": ["accuracy", keras.metrics.AUC(name="auc")],
        },
    ),
    "arrays": (
        lambda: keras.Sequential(
            [keras.Input((2,)), layers.Dense(3, "softmax")]
        ),
        (X, np.eye(3, dtype="float32")[RANDOM.randint(0, 3, 24)]),
        {
            "loss": "categorical_crossentropy",
            "metrics": [keras.metrics.F1Score(average=None)],
        },
    ),
}


@pytest.mark.parametrize("method", ["lbfgs", "l-bfgs-b"])
@pytest.mark.parametrize("case", CASES)
def test_metrics_are_those_of_evaluate(case, method, own_passes, unconverged):
    make, data, settings = CASES[case]
    model = make()
    model.compile(optimizer=method, **settings)
    names = "x", "y", "sample_weight"
    data = dict(zip(names, data, strict=False))
    history = model.fit(**data, epochs=4, verbose=0).history
    # One batch: Keras averages what it reports of an output over batches.
    report = model.evaluate(**data, batch_size=24, return_dict=True, verbose=0)
    assert len(report) > 1
    for name, value in report.items():
        np.testing.assert_allclose(
            history[name][-1], value, rtol=2e-5, err_msg=name
        )
    assert own_passes == []


class Largest(keras.metrics.Mean):
    """The largest prediction, followed by a number of zeros."""

    def __init__(self, zeros=0):
        super().__init__(name="largest")
        self.zeros = zeros

    def update_state(self, y_true, y_pred, sample_weight=None):
        super().update_state(keras.ops.max(y_pred))

    def result(self):
        return keras.ops.pad(
            keras.ops.reshape(super().result(), (1,)), ((0, self.zeros),)
        )


# Without `jit_compile=True` nobody knows whether XLA can compile the first.
@pytest.mark.parametrize(
    "zeros, passes", [(0, 3 * (BACKEND == "tensorflow")), (20_000, 3)]
)
def test_metrics_of_ones_own(zeros, passes, own_passes, unconverged):
    model = network(metrics=[Largest(zeros)])
    history = model.fit(X, Y, epochs=3, verbose=0).history
    largest = model.predict(X, verbose=0).max()
    assert history["largest"][-1].shape == (1 + zeros,)
    assert history["largest"][-1][0] == pytest.approx(largest, rel=2e-5)
    assert len(own_passes) == passes


class OfPositives(keras.metrics.Mean):
    """The mean prediction plus a half; fails if that is negative."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        # A model is tried with predictions of zero.
        size = keras.ops.reshape(keras.ops.mean(y_pred) + 0.5, (1, 1))
        super().update_state(keras.ops.square(keras.ops.cholesky(size)))


@pytest.mark.parametrize("method", ["lbfgs", "l-bfgs-b", "lm"])
def test_a_metric_that_fails_costs_no_loss(method, unconverged):
    model = keras.Sequential(
        [
            keras.Input((1,)),
            layers.Dense(1, use_bias=False, kernel_initializer="ones"),
        ]
    )
    model.compile(method, "mse", metrics=[OfPositives(name="mean")])
    x = np.array([[1.0], [3.0]])
    history = model.fit(x, -x, epochs=6, verbose=0).history
    np.testing.assert_allclose(model.get_weights()[0], -1, rtol=1e-4)
    assert np.isfinite(history["loss"]).all()
    assert np.isnan(history["mean"][-1])


def test_without_metrics_the_evaluation_is_the_same_program(unconverged):
    model = network(metrics=None)
    model.fit(X, Y, epochs=3, verbose=0)
    objective = kormos.Objective(model, X, Y)
    assert objective.program.traces["evaluate_and_grad"] == 0
    assert objective.program.traces["evaluate"] == 0


def test_an_objective_of_ones_own_computes_no_metric():
    model = network()
    objective = kormos.Objective(model, X, Y)
    theta = objective.initial_position()
    loss, _ = objective.value_and_grad(theta)
    assert objective.readings == 0
    assert objective.program.traces["evaluate_and_grad"] == 0
    assert objective.evaluate(theta)["mse"] == pytest.approx(loss, rel=2e-5)


def failing(error, after):
    """A metric that raises an error after a number of calls."""

    class Failing(keras.metrics.Mean):
        calls = 0

        def update_state(self, y_true, y_pred, sample_weight=None):
            self.calls += 1
            if self.calls > after:
                raise error("mine")
            super().update_state(y_pred)

    return Failing(name="failing")


def each_epoch():
    """A callback for which a call of the compiled loop makes one iteration."""
    return keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: None)


needs_eager = pytest.mark.skipif(
    BACKEND == "tensorflow", reason="A graph is traced once"
)


@needs_eager
@pytest.mark.parametrize("method", ["lbfgs", "l-bfgs-b"])
def test_a_mistake_in_a_metric_is_raised(method, unconverged):
    model = network(method, metrics=[failing(KeyError, 8)], run_eagerly=True)
    with pytest.raises(KeyError, match="mine"):
        model.fit(X, Y, epochs=20, callbacks=[each_epoch()], verbose=0)


@needs_eager
@pytest.mark.parametrize("method", ["lbfgs", "l-bfgs-b", "lm"])
def test_a_metric_that_cannot_take_a_point_is_nan_and_named(
    method, unconverged
):
    model = network(method, metrics=[failing(ValueError, 8)], run_eagerly=True)
    with pytest.warns(UserWarning, match="ValueError: mine"):
        history = model.fit(
            X, Y, epochs=12, callbacks=[each_epoch()], verbose=0
        ).history
    assert np.isnan(history["failing"][-1])
    assert np.isfinite(history["loss"]).all()


def test_a_stream_that_fails_is_not_read_again():
    read = []

    class Rows(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            read.append(index)
            if len(read) > 20:
                raise OSError("no disk")
            return X[8 * index :][:8], Y[8 * index :][:8]

    with pytest.raises(OSError, match="no disk"):
        network().fit(Rows(), epochs=20, stream=True, verbose=0)
    assert len(read) == 21


def test_the_lowest_point_is_known_after_points_without_a_loss(own_passes):
    objective = kormos.Objective(network(), X, Y)
    objective.measure()
    theta = objective.initial_position()
    lowest = objective.value(theta)
    assert np.isnan(objective.value(theta * np.nan))
    for factor in range(2, 12):
        assert objective.value(10.0 * factor + theta) > lowest
    assert objective.evaluate(theta)["loss"] == lowest
    assert own_passes == []
