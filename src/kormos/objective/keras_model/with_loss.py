"""A model with another loss, without changes to the model itself."""

from typing import Any

import keras

from kormos.types import Structure


def with_loss(model: keras.Model, loss: Any) -> keras.Model:
    """A model of the same layers that is compiled with another loss.

    Args:
        model: the model.
        loss: a loss, as `compile` takes it.
    """
    is_graph = type(model).call.__module__.startswith("keras.")
    other: keras.Model
    if is_graph and getattr(model, "outputs", None):
        # The last activations of such a model can be found in its graph.
        other = keras.Model(
            getattr(model, "input", model.inputs),
            getattr(model, "output", model.outputs),
            name=model.name,
        )
        other.dtype_policy = model.dtype_policy
    else:
        other = _Around(model)
    how = {}
    if model.compiled:
        how = {
            "run_eagerly": model.run_eagerly,
            "jit_compile": model.jit_compile,
        }
    other.compile(loss=loss, **how)
    return other


class _Around(keras.Model):
    """Calls another model."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__(name=model.name, dtype=model.dtype_policy)
        self.inner = model
        if getattr(model, "output_names", None) is not None:
            self.output_names = model.output_names

    def call(
        self, inputs: Structure, training: bool | None = None
    ) -> Structure:
        return self.inner(inputs, training=training)
