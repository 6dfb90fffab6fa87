"""Gradients of convolutions in loops use layouts that XLA computes fast."""

import keras
import numpy as np
import pytest

from kormos import backend

BACKEND = keras.backend.backend()

LAYERS = {
    "1-D": (keras.layers.Conv1D(3, 3), (8, 2)),
    "2-D": (keras.layers.Conv2D(3, 3, strides=2, padding="same"), (6, 6, 2)),
    "3-D": (keras.layers.Conv3D(2, 2), (4, 4, 4, 1)),
    "dilated": (keras.layers.Conv2D(3, 2, dilation_rate=2), (6, 6, 2)),
    "grouped": (keras.layers.Conv1D(4, 3, groups=2), (8, 2)),
    "depthwise": (keras.layers.DepthwiseConv2D(3), (6, 6, 2)),
    "transposed": (keras.layers.Conv2DTranspose(2, 3, strides=2), (4, 4, 2)),
    "in a loop": (keras.layers.ConvLSTM1D(2, 3), (3, 6, 2)),
}


def loss_of(layer, shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, *shape)).astype("float32")
    layer.build(x.shape)

    def loss(parts):
        outputs, _ = layer.stateless_call(
            parts, layer.non_trainable_variables, x
        )
        return keras.ops.mean(outputs**2)

    return loss, [v.value for v in layer.trainable_variables]


def convolutions(jaxpr):
    from kormos.backend.jax_convolutions import inner_jaxprs

    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            yield equation.params["dimension_numbers"]
        for inner in inner_jaxprs(equation):
            yield from convolutions(inner)


@pytest.mark.skipif(BACKEND != "jax", reason="of JAX's layouts")
@pytest.mark.parametrize("name", LAYERS)
def test_all_are_in_the_layout_of_fast_kernels(name):
    import jax

    loss, parts = loss_of(*LAYERS[name])
    plain = jax.value_and_grad(loss)
    ours = backend.value_and_grad(loss)
    found = list(convolutions(jax.make_jaxpr(ours)(parts).jaxpr))
    assert len(found) >= 2
    for numbers in found:
        last = len(numbers.lhs_spec) - 1
        assert numbers.lhs_spec == numbers.out_spec
        assert numbers.lhs_spec == (0, last, *range(1, last))
        assert numbers.rhs_spec == (last, last - 1, *range(last - 1))
    expected, found = jax.jit(plain)(parts), jax.jit(ours)(parts)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6),
        expected,
        found,
    )


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow's XLA")
@pytest.mark.parametrize("name", ["1-D", "2-D", "3-D"])
def test_xla_is_left_to_other_layers(name):
    import tensorflow as tf

    from kormos.backend import tensorflow as ours

    if tf.config.list_logical_devices("GPU"):
        pytest.skip("XLA is fast there")

    def is_slow(layer, shape):
        loss, parts = loss_of(layer, shape)
        gradient = tf.function(ours.value_and_grad(loss), autograph=False)
        return ours._is_slow_in_xla(gradient, (parts,))

    assert is_slow(*LAYERS[name])
    assert not is_slow(keras.layers.Dense(3), (4,))
