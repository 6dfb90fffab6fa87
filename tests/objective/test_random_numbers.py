"""Random numbers in a loss: seeded ones stay the same, others are refused."""

import keras
import numpy as np
import pytest
from keras import ops

import kormos
from conftest import BACKEND

pytestmark = pytest.mark.usefixtures("float64")

T = np.linspace(0.0, 1.0, 20)
Y = 2 * T + 1
METHODS = ["lm", "lbfgs", "l-bfgs-b"]


@pytest.fixture
def line():
    return keras.Variable([1.0, 0.0], dtype="float64")


def noise(shape):
    return ops.convert_to_tensor(0.1 * np.random.normal(size=tuple(shape)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("has_data", [True, False])
def test_residuals_that_numpy_draws_are_refused(line, method, has_data):
    def residuals(data):
        t, y = map(ops.convert_to_tensor, (data["t"], data["y"]))
        return line[0] * t + line[1] - y + noise(t.shape)

    data = {"t": T, "y": Y}
    with pytest.raises(ValueError, match="random numbers that are drawn"):
        if has_data:
            kormos.least_squares(residuals, [line], method, data=data)
        else:
            kormos.least_squares(lambda: residuals(data), [line], method)
    np.testing.assert_array_equal(ops.convert_to_numpy(line), [1.0, 0.0])


@pytest.mark.parametrize("method", METHODS[1:])
def test_losses_that_numpy_draws_are_refused(line, method):
    def loss():
        return ops.sum(ops.square(line - 1 + noise([2])))

    with pytest.raises(ValueError, match="random numbers that are drawn"):
        kormos.minimize(loss, [line], method)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_seed_generator_draws_is_fixed_in_a_fit(line, method):
    generator = keras.random.SeedGenerator(1)

    def draw(seed):
        return keras.random.normal((20,), seed=seed, dtype="float64")

    def residuals():
        t, y = map(ops.convert_to_tensor, (T, Y))
        return line[0] * t + line[1] - y + 0.1 * draw(generator)

    drawn = ops.convert_to_numpy(draw(keras.random.SeedGenerator(1)))
    design = np.stack([T, np.ones_like(T)], axis=1)
    best, sums, *_ = np.linalg.lstsq(design, Y - 0.1 * drawn)
    state = ops.convert_to_numpy(generator.state)
    result = kormos.least_squares(residuals, [line], method)
    np.testing.assert_allclose(ops.convert_to_numpy(line), best, atol=1e-5)
    assert result.loss == pytest.approx(sums[0] / 20, rel=1e-7)
    np.testing.assert_array_equal(ops.convert_to_numpy(generator.state), state)
    np.testing.assert_array_equal(ops.convert_to_numpy(draw(generator)), drawn)


def test_rows_that_a_seed_generator_draws_are_named(line):
    generator = keras.random.SeedGenerator(1)

    def residuals(data):
        drawn = keras.random.normal(
            ops.shape(data["t"]), seed=generator, dtype="float64"
        )
        return line[0] * data["t"] + line[1] - data["y"] + 0.1 * drawn

    with pytest.raises(ValueError, match="random numbers"):
        kormos.least_squares(residuals, [line], data={"t": T, "y": Y})
    ops.convert_to_numpy(generator.state)


def test_dropout_in_training_is_named_by_lm():
    model = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(1),
        ]
    )
    model.compile(loss="mse")
    with pytest.raises(ValueError, match=r"random numbers \(dropout, noise\)"):
        kormos.fit(
            model, T[:, None], Y, optimizer="lm", training=True, verbose=0
        )


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_loss_that_draws_with_a_seed_generator(line, method):
    generator = keras.random.SeedGenerator(1)

    def draw(seed):
        return keras.random.normal((2,), seed=seed, dtype="float64")

    def loss():
        return ops.sum(ops.square(line - draw(generator)))

    drawn = ops.convert_to_numpy(draw(keras.random.SeedGenerator(1)))
    kormos.minimize(loss, [line], method)
    np.testing.assert_allclose(ops.convert_to_numpy(line), drawn, atol=1e-6)
    np.testing.assert_array_equal(ops.convert_to_numpy(draw(generator)), drawn)


class DrawsAnew(keras.layers.Layer):
    """Draws in inference, where no seed is Keras'."""

    def call(self, inputs):
        shape = tuple(inputs.shape[1:])
        if BACKEND == "tensorflow":
            import tensorflow as tf

            drawn = tf.random.normal(shape)
        else:
            drawn = np.random.normal(size=shape)
        drawn = ops.cast(ops.convert_to_tensor(drawn), inputs.dtype)
        return inputs * (1 + 0.3 * drawn)


@pytest.mark.parametrize("method", ["lm", "lbfgs", "l-bfgs-b"])
def test_a_model_that_draws_in_inference_is_refused(method):
    model = keras.Sequential(
        [
            keras.Input((1,)),
            keras.layers.Dense(3, "tanh"),
            DrawsAnew(),
            keras.layers.Dense(1),
        ]
    )
    model.compile(method, loss="mse")
    kept = model.get_weights()
    x = np.linspace(0, 1, 20)[:, None]
    with pytest.raises(ValueError, match="random numbers"):
        model.fit(x, np.sin(3 * x), epochs=2, verbose=0)
    for now, before in zip(model.get_weights(), kept, strict=True):
        np.testing.assert_array_equal(now, before)
