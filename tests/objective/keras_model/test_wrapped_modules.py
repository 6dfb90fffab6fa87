"""Layers with their own parameters are trained, or refused by name."""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from conftest import BACKEND
from conftest import lindata

X, Y = lindata(24, noise=0.3, rank=3)
X, Y = X.astype("float32"), np.tanh(Y).astype("float32")

torch_only = pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's modules")
tensorflow_only = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="TensorFlow's SavedModels"
)


def wrapped(*modules):
    import torch

    return layers.TorchModuleWrapper(torch.nn.Sequential(*modules))


def network():
    from torch import nn

    return wrapped(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def same_in_keras(layer):
    """The same network, made of Keras layers only, with the same weights."""
    twin = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4, "tanh"), layers.Dense(1)]
    )
    values = [p.detach().cpu().numpy() for p in layer.module.parameters()]
    twin.set_weights([v.T for v in values])
    return twin


def fitted(model, method, **kwargs):
    model.compile(optimizer=method, loss="mse")
    history = model.fit(X, Y, epochs=6, verbose=0, **kwargs)
    after = model.evaluate(X, Y, batch_size=len(X), verbose=0)
    assert history.result.kept_loss == pytest.approx(after, rel=1e-5)
    return history


class Attribute(keras.Model):
    """Keras wraps the module that is set."""

    def __init__(self):
        super().__init__()
        self.net = network().module

    def call(self, x):
        return self.net(x)


@torch_only
@pytest.mark.parametrize("method", ["l-bfgs-b", "lbfgs", "newton-cg", "lm"])
@pytest.mark.parametrize("precision", [None, "float64"])
def test_modules_are_fitted_as_the_same_layers(method, precision, unconverged):
    model = Attribute()
    model(X)
    twin = same_in_keras(model.net)
    a, b = (
        fitted(m, method, precision=precision, batch_size=7)
        for m in (model, twin)
    )
    assert a.result.loss < 0.5 * a.result.initial_loss
    np.testing.assert_allclose(
        a.history["loss"], b.history["loss"], rtol=1e-4 if precision else 1e-2
    )


@torch_only
def test_derivatives_of_a_module_are_those_of_differences():
    from torch import nn

    class Last(nn.Module):
        def forward(self, outputs):
            return outputs[0][:, -1]

    layer = wrapped(nn.LSTM(3, 2, batch_first=True), Last(), nn.Linear(2, 1))
    model = keras.Sequential([keras.Input((4, 3)), layer])
    model.compile(loss="mse")
    x = np.random.default_rng(0).normal(size=(9, 4, 3))
    objective = kormos.Objective(model, x, Y[:9], precision="float64")
    theta, step = objective.initial_position(), 1e-6
    _, grad = objective.value_and_grad(theta)
    differences = [
        (objective.value(theta + step * e) - objective.value(theta - step * e))
        / (2 * step)
        for e in np.eye(len(theta))
    ]
    np.testing.assert_allclose(grad, differences, atol=1e-8)
    assert np.linalg.norm(grad) > 0.01


@contextlib.contextmanager
def nothing(*args, **kwargs):
    yield


@torch_only
@pytest.mark.parametrize("training", [False, True])
def test_buffers_are_left_alone(training, unconverged):
    from torch import nn

    layer = wrapped(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile(loss="mse")
    before = [b.clone() for b in layer.module.buffers()]
    for precision in (None, "float64"):
        expected = pytest.warns if training and not precision else nothing
        with expected(UserWarning, match="1 in layer"):
            objective = kormos.Objective(
                model, X, Y, training=training, precision=precision
            )
        theta = objective.initial_position()
        for buffer, value in zip(layer.module.buffers(), before, strict=True):
            np.testing.assert_array_equal(buffer.cpu(), value.cpu())
        loss, _ = objective.value_and_grad(theta)
        layer.module.train(training)
        outputs = layer.module(ops.convert_to_tensor(X)).detach().cpu().numpy()
        assert loss == pytest.approx(np.mean((outputs - Y) ** 2), rel=1e-5)
        for buffer, value in zip(layer.module.buffers(), before, strict=True):
            if training:
                buffer.copy_(value)  # The call of the module changed them.
        objective.value_and_grad(theta + 0.1)
        for buffer, value in zip(layer.module.buffers(), before, strict=True):
            np.testing.assert_array_equal(buffer.cpu(), value.cpu())


@torch_only
def test_frozen_modules_stay_as_they_are(unconverged):
    from torch import nn

    layer = wrapped(nn.Linear(3, 4), nn.Tanh())
    layer.trainable = False
    model = keras.Sequential([keras.Input((3,)), layer, layers.Dense(1)])
    before = [p.detach().clone() for p in layer.module.parameters()]
    for precision in (None, "float64"):
        fitted(model, "l-bfgs-b", precision=precision)
    for a, b in zip(layer.module.parameters(), before, strict=True):
        np.testing.assert_array_equal(a.detach().cpu(), b.cpu())


@torch_only
@pytest.mark.parametrize("least_squares", [False, True])
def test_other_doors_train_modules(least_squares):
    from torch import nn

    layer = wrapped(nn.Linear(3, 1))
    x = ops.convert_to_tensor(X)

    def residuals():
        return layer(x) - ops.convert_to_tensor(Y)

    if least_squares:
        kormos.least_squares(residuals, layer.trainable_variables)
    else:
        kormos.minimize(
            lambda: ops.mean(residuals() ** 2), layer.trainable_variables
        )
    design = np.concatenate([X, np.ones((len(X), 1))], axis=1)
    right = np.linalg.lstsq(design, Y, rcond=None)[0][:, 0]
    weight, bias = (p.detach().cpu().numpy() for p in layer.module.parameters())
    np.testing.assert_allclose([*weight[0], *bias], right, atol=1e-4)


@torch_only
def test_compiled_modules_are_refused():
    import torch

    script = torch.jit.trace(torch.nn.Linear(3, 1), torch.ones((2, 3)))
    model = keras.Sequential([keras.Input((3,)), wrapped(script)])
    before = model.get_weights()
    model.compile(optimizer="l-bfgs-b", loss="mse")
    with pytest.raises(ValueError, match="without being read, variable"):
        model.fit(X, Y, verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


def saved_model(tmp_path):
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(4, "tanh")])
    inner.export(str(tmp_path), verbose=False)
    layer = layers.TFSMLayer(str(tmp_path), call_endpoint="serve")
    inputs = keras.Input((3,))
    return keras.Model(inputs, layers.Dense(1)(layer(inputs))), layer


@tensorflow_only
def test_saved_models_are_refused_until_frozen(tmp_path, unconverged):
    model, layer = saved_model(tmp_path)
    before = [np.array(v) for v in layer.variables]
    model.compile(optimizer="l-bfgs-b", loss="mse")
    with pytest.raises(ValueError, match="TFSMLayer.*without being read.*_ker"):
        model.fit(X, Y, verbose=0)
    layer.trainable = False
    assert fitted(model, "l-bfgs-b").result.loss < 1
    for variable, value in zip(layer.variables, before, strict=True):
        np.testing.assert_array_equal(np.array(variable), value)


class Hidden(layers.Layer):
    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 1))
        self.other = self.add_weight(shape=(1,))

    def call(self, x):
        return ops.matmul(x, self.kernel._value)


def test_hidden_reads_are_refused_by_every_door():
    layer = Hidden()
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile(optimizer="l-bfgs-b", loss="mse")
    before = model.get_weights()
    words = f"without being read, {layer.kernel.path}$"
    with pytest.raises(ValueError, match=words):
        model.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match=words):
        kormos.minimize(
            lambda: ops.mean(layer(ops.convert_to_tensor(X)) ** 2),
            model.trainable_variables,
        )
    with pytest.raises(ValueError, match=words):
        kormos.least_squares(
            lambda data: layer(data["x"]),
            model.trainable_variables,
            data={"x": X},
        )
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


class Normed(layers.Dense):
    """A layer that normalizes its kernel itself in each step of training."""

    def call(self, x, training=False):
        if training:
            self.kernel.assign(self.kernel / ops.norm(self.kernel))
        return super().call(x)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.SpectralNormalization(layers.Dense(4)),
        lambda: Normed(4),
        lambda: keras.Sequential([Normed(4)]),
    ],
    ids=["spectral", "own", "nested"],
)
def test_layers_that_assign_their_weights_are_refused(
    make, training, unconverged
):
    layer = make()
    model = keras.Sequential([keras.Input((3,)), layer, layers.Dense(1)])
    model.compile(optimizer="l-bfgs-b", loss="mse")
    before = [np.array(w) for w in model.get_weights()]
    kernel = layer.trainable_variables[0].path
    with pytest.raises(ValueError, match=f"Spectral.*Received: {kernel}, as"):
        model.fit(X, Y, verbose=0, training=training)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    layer.trainable = False
    result = model.fit(X, Y, epochs=2, verbose=0).result
    assert result.loss < result.initial_loss
    assert result.loss == pytest.approx(model.evaluate(X, Y, verbose=0), 1e-5)


def test_averages_and_chance_of_training_stay_as_they_are():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.BatchNormalization(),
            layers.Dropout(0.5, seed=1),
            layers.Dense(1),
        ]
    )
    model.compile(optimizer="l-bfgs-b", loss="mse")
    before = [np.array(ops.convert_to_numpy(v.value)) for v in model.variables]
    kormos.Objective(model, X, Y)
    for v, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(v.value), value)
