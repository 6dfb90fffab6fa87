"""`kormos.check` of models that differentiate, map or repeat their layers."""

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from conftest import BACKEND

X = np.linspace(-1, 1, 20, dtype="float32")[:, None]


def slope(fn, x):
    return ops.jvp(fn, (x,), (ops.ones_like(x),))[1]


def gradient(fn, x):
    """The gradient of a sum over rows, in the backend's own way."""
    if BACKEND == "jax":
        import jax

        return jax.grad(lambda x: ops.sum(fn(x)))(x)
    if BACKEND == "torch":
        import torch

        return torch.func.grad(lambda x: ops.sum(fn(x)))(x)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(x)
        total = ops.sum(fn(x))
    return tape.gradient(total, x)


DIFFERENTIATED = {
    "jvp": slope,
    "jvp of jvp": lambda fn, x: slope(lambda x: slope(fn, x), x),
    "grad": gradient,
    "grad of jvp": lambda fn, x: gradient(lambda x: slope(fn, x), x),
}
WITHIN = {
    "cond": lambda fn, x: ops.cond(
        ops.sum(x) < 1e3, lambda: fn(x), lambda: -fn(x)
    ),
    "scan": lambda fn, x: ops.scan(
        lambda total, _: (total + fn(x), total), ops.zeros_like(x), length=2
    )[0],
    "loop": lambda fn, x: ops.fori_loop(
        0, 2, lambda i, total: total + fn(x), ops.zeros_like(x)
    ),
    "map": lambda fn, x: ops.vectorized_map(lambda row: fn(row[None])[0], x),
}


class Through(keras.Model):
    """Layers, called by a function of the layers and the inputs."""

    def __init__(self, how, fn):
        super().__init__(name="through")
        self.net = keras.Sequential(
            [
                keras.Input((1,)),
                layers.Dense(4, "tanh", name="first"),
                layers.Lambda(fn, name="second"),
                layers.Dense(1, use_bias=False, name="last"),
            ]
        )
        self._how = how

    def call(self, inputs):
        return self._how(self.net, inputs)


def compiled(how, fn=ops.tanh):
    keras.utils.set_random_seed(0)
    model = Through(how, fn)
    model(X)
    model.compile("lbfgs", "mse")
    return model


@pytest.mark.parametrize("how", [*DIFFERENTIATED, *WITHIN])
def test_a_sound_model_passes(how):
    model = compiled({**DIFFERENTIATED, **WITHIN}[how])
    report = kormos.check(model, X, X)
    assert report.passed, report.failures
    assert report.loss == pytest.approx(
        model.evaluate(X, X, verbose=0), rel=1e-5
    )


@pytest.mark.parametrize("how", ["jvp", "grad of jvp"])
def test_a_layer_that_is_differentiated_is_named(how):
    model = compiled(DIFFERENTIATED[how], lambda x: ops.sqrt(x - 2))
    finding = kormos.check(model, X, X)["finite"]
    assert not finding.passed and finding.names == ("second",)


@pytest.mark.parametrize("how", ["scan", "map"])
def test_around_a_layer_without_values_the_next_one_is_named(how):
    model = compiled(WITHIN[how], lambda x: ops.sqrt(x - 2))
    finding = kormos.check(model, X, X)["finite"]
    # Loops have values where they are run by Python.
    assert not finding.passed and finding.names[0] in ("second", "through")


def test_a_fit_checks_first():
    model = compiled(slope)
    result = model.fit(X, X, epochs=2, verbose=0, check=True).result
    assert result.loss < result.initial_loss
