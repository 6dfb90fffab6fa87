"""A function is compiled again if anything that it reads has changed.

Each case has a function of which 1 minimizes the loss, a change, and then 2.
"""

import functools
import os
import sys
import types

import keras
import numpy as np
import pytest
from keras import layers
from keras import ops

import kormos
from conftest import BACKEND

RATE = 1.0


def set_rate(value):
    global RATE
    RATE = value


@pytest.fixture
def v():
    return keras.Variable(np.float32(0.3))


def check(v, loss, change):
    for expected in (1.0, 2.0):
        v.assign(0.3)
        kormos.minimize(loss, [v], "lbfgs")
        assert float(v.numpy()) == pytest.approx(expected, rel=1e-4)
        change()


class Named:
    """Attributes with names that Keras' layers use."""

    history = 1.0

    def build(self):
        return RATE


def test_names_that_keras_uses_too(v):
    named = Named()
    set_rate(1.0)
    check(v, lambda: (v - named.build()) ** 2, lambda: set_rate(2.0))
    check(
        v,
        lambda: (v - named.history) ** 2,
        lambda: setattr(Named, "history", 2.0),
    )
    Named.history = 1.0


@pytest.mark.parametrize("name", ["link_function", "history", "optimizer"])
def test_attributes_of_layers(v, name):
    class Shift(layers.Layer):
        def call(self, x):
            return x - getattr(self, name)

    layer = Shift()
    setattr(layer, name, 1.0)
    check(
        v,
        lambda: ops.sum(layer(ops.reshape(v, (1,))) ** 2),
        lambda: setattr(layer, name, 2.0),
    )


def test_a_frozen_batch_normalization_uses_its_averages(v):
    layer = layers.BatchNormalization(center=False, scale=False, epsilon=1e-6)
    x = np.array([[0.0], [2.0]], "float32")
    layer.build(x.shape)
    expected = []
    for _ in range(2):
        kormos.minimize(
            lambda: ops.sum((layer(x, training=True) - v) ** 2), [v], "lbfgs"
        )
        expected.append(float(v.numpy()))
        layer.trainable = False
    # Of the averages of the batch, and of a mean of 0 and a variance of 1.
    np.testing.assert_allclose(expected, [0.0, 1.0], atol=0.02)


def test_settings_of_keras_losses(v):
    y = np.array([-1.0, 0.0, 4.0], "float32")

    def loss():
        return huber(y, v * np.ones(3, "float32"))

    found = []
    for delta in (0.5, 100.0):
        huber = keras.losses.Huber(delta)
        v.assign(0.3)
        kormos.minimize(loss, [v], "lbfgs")
        found.append(float(v.numpy()))
    # Where the slopes of the three terms add up to zero; and the mean.
    np.testing.assert_allclose(found, [0.0, 1.0], atol=1e-4)


def test_cached_functions(v):
    @functools.cache
    def cached():
        return RATE

    def change():
        set_rate(2.0)
        cached.cache_clear()

    set_rate(1.0)
    check(v, lambda: (v - cached()) ** 2, change)


@pytest.mark.parametrize("how", ["submodule", "import", "from", "closure"])
def test_modules(v, how, monkeypatch):
    outer, inner = types.ModuleType("outer_"), types.ModuleType("outer_.inner")
    outer.inner, inner.rate, outer.rate = inner, 1.0, 1.0
    monkeypatch.setitem(sys.modules, "outer_", outer)
    monkeypatch.setitem(sys.modules, "outer_.inner", inner)

    def by_import():
        import outer_ as module

        return (v - module.rate) ** 2

    def by_from():
        from outer_.inner import rate

        return (v - rate) ** 2

    losses = {
        "submodule": lambda: (v - outer.inner.rate) ** 2,
        "import": by_import,
        "from": by_from,
        "closure": lambda: (v - outer.rate) ** 2,
    }

    def change():
        inner.rate = outer.rate = 2.0

    check(v, losses[how], change)


def test_files_and_the_environment(v, tmp_path, monkeypatch):
    path = tmp_path / "rate.txt"
    path.write_text("1.0")
    check(
        v,
        lambda: (v - float(np.loadtxt(path))) ** 2,
        lambda: path.write_text("2.0"),
    )
    monkeypatch.setenv("RATE", "1.0")
    check(
        v,
        lambda: (v - float(os.environ["RATE"])) ** 2,
        lambda: monkeypatch.setenv("RATE", "2.0"),
    )
    set_rate(1.0)
    check(v, lambda: (v - globals()["RATE"]) ** 2, lambda: set_rate(2.0))


def test_methods_of_builtin_objects(v):
    rates = {"rate": 1.0}
    get = rates.get
    check(v, lambda: (v - get("rate")) ** 2, lambda: rates.update(rate=2.0))


@pytest.mark.skipif(BACKEND != "jax", reason="a function of JAX")
def test_functions_that_a_library_made(v):
    import jax

    rates = {"rate": 1.0}
    shifted = jax.vmap(functools.partial(lambda r, x: x - r["rate"], rates))
    check(
        v,
        lambda: ops.sum(shifted(ops.reshape(v, (1,))) ** 2),
        lambda: rates.update(rate=2.0),
    )


def test_attributes_that_a_pickle_leaves_out(v):
    class Hiding:
        rate = 1.0

        def __getstate__(self):
            return {}

    hiding = Hiding()
    check(
        v,
        lambda: (v - hiding.rate) ** 2,
        lambda: setattr(hiding, "rate", 2.0),
    )
