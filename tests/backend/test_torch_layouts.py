"""Convolutions keep Keras' memory layout where PyTorch supports it."""

import keras
import numpy as np
import pytest

from kormos import backend

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="a matter of PyTorch's"
)


def test_a_first_derivative_keeps_the_layout_of_convolutions():
    # It would take twice the time if each convolution transposed its inputs.
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Layouts(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.found = []

        def __torch_dispatch__(self, fn, types, args=(), kwargs=None):
            if fn is torch.ops.aten.convolution.default:
                inputs, kernel = args[:2]
                self.found += [inputs.stride(), kernel.stride()]
            return fn(*args, **(kwargs or {}))

    model = keras.Sequential(
        [
            keras.Input((9, 9, 2)),
            keras.layers.Conv2D(4, 3, activation="silu"),
            keras.layers.Conv2D(3, 3),
        ]
    )
    x = np.ones((5, 9, 9, 2), "float32")
    parts = [v.value for v in model.trainable_variables]

    def loss(parts):
        outputs, _ = model.stateless_call(parts, [], x)
        return keras.ops.mean(outputs**2)

    with Layouts() as ours:
        backend.value_and_grad(loss)(parts)
    with Layouts() as stock:
        model(x)
    assert ours.found == stock.found
    assert len(stock.found) == 4
