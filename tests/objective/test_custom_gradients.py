"""Layers with a gradient of their own, by `keras.ops.custom_gradient`."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos

RANDOM = np.random.RandomState(0)
X = RANDOM.normal(size=(30, 4))
Y = np.tanh(X @ RANDOM.normal(size=(4, 1)))


def taken(args, upstream):
    """The arguments of a gradient, which each backend passes in its own way."""
    return args[0] if upstream is None else upstream


@ops.custom_gradient
def curved(x):
    y = ops.tanh(x)

    def grad(*args, upstream=None):
        return taken(args, upstream) * (1 - ops.square(y))

    return y, grad


@ops.custom_gradient
def product(x, kernel):
    def grad(*args, upstream=None):
        slope = taken(args, upstream)
        return (
            ops.matmul(slope, ops.transpose(kernel)),
            ops.matmul(ops.transpose(x), slope),
        )

    return ops.matmul(x, kernel), grad


@ops.custom_gradient
def tripled(x):
    def grad(*args, upstream=None):
        return 3 * taken(args, upstream)

    return 3 * x, grad


@ops.custom_gradient
def wrong(x):
    def grad(*args, upstream=None):
        return 1e-3 * taken(args, upstream)

    return ops.tanh(x), grad


class Hidden(layers.Layer):
    def __init__(self, activation, multiply=ops.matmul):
        super().__init__()
        self.activation, self.multiply = activation, multiply

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 3))

    def call(self, inputs):
        # TensorFlow wants more of the gradient of a function of a variable.
        kernel = 1.0 * self.kernel
        return self.activation(self.multiply(inputs, kernel))


def model_of(*args):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), Hidden(*args), layers.Dense(1)]
    )
    model.compile(loss="mse")
    return model


# The arguments of a layer, and of the plain one.
LAYERS = {
    "of one": ((curved,), (ops.tanh,)),
    "of two": ((ops.tanh, product), (ops.tanh,)),
    "a constant": ((tripled,), (lambda x: 3 * x,)),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", LAYERS)
def test_derivatives_are_those_of_the_plain_layer(name):
    own, plain = (
        kormos.Objective(model_of(*args), X, Y) for args in LAYERS[name]
    )
    theta = plain.initial_position()
    found, expected = (
        objective.gauss_newton().normal_equations(theta)
        for objective in (own, plain)
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", ["lm", "lbfgs"])
@pytest.mark.parametrize("name", LAYERS)
def test_fits_are_those_of_the_plain_layer(name, method):
    own, plain = (
        kormos.fit(model_of(*args), X, Y, optimizer=method, epochs=4, verbose=0)
        for args in LAYERS[name]
    )
    # Second derivatives along a step are differences with some backends.
    assert own.result.loss == pytest.approx(plain.result.loss, rel=1e-4)


def test_a_wrong_gradient_is_refused():
    with pytest.raises(ValueError, match="where its derivatives say"):
        kormos.fit(model_of(wrong), X, Y, optimizer="lm", verbose=0)


class StraightThrough(layers.Layer):
    """Rounds, with a gradient as if it did not."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def call(self, inputs):
        rounded = ops.round(inputs * self.steps) / self.steps
        return inputs + ops.stop_gradient(rounded - inputs)


class BinaryDense(layers.Layer):
    """Multiplies by the signs of its weights, as binary networks do."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 4))

    def call(self, inputs):
        kernel = 1.0 * self.kernel
        return inputs @ (kernel + ops.stop_gradient(ops.sign(kernel) - kernel))


ESTIMATORS = {
    "coarse": lambda: StraightThrough(1),
    "fine": lambda: StraightThrough(256),
    "binary weights": BinaryDense,
}


@pytest.mark.filterwarnings("ignore::kormos.ConvergenceWarning")
@pytest.mark.parametrize("method", ["lm", "lbfgs", "l-bfgs-b"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_straight_through_estimators(name, method):
    """The loss is right and falls, or the fit is refused with a reason."""
    for seed in range(3):
        keras.utils.set_random_seed(seed)
        hidden = layers.Dense(3, "tanh")
        model = keras.Sequential(
            [keras.Input((4,)), hidden, ESTIMATORS[name](), layers.Dense(1)]
        )
        model.compile(method, loss="mse")
        kept, before = model.get_weights(), model.evaluate(X, Y, verbose=0)
        try:
            history = model.fit(X, Y, epochs=10, verbose=0)
        except ValueError as error:
            assert method == "lm"
            assert "straight-through" in str(error)
            for now, start in zip(model.get_weights(), kept, strict=True):
                np.testing.assert_array_equal(now, start)
            continue
        after = model.evaluate(X, Y, verbose=0)
        assert history.result.loss == pytest.approx(after, rel=2e-5)
        assert after < before
