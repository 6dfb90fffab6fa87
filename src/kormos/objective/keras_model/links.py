"""Last activations that make a convex loss of what enters them."""

from typing import Any
from typing import NamedTuple

import keras
from keras import tree

from kormos.objective.keras_model.copies import copied

# By the activation's name the losses that match it: their functions.
_MATCHING = {
    "softmax": (
        keras.losses.categorical_crossentropy,
        keras.losses.sparse_categorical_crossentropy,
    ),
    "sigmoid": (keras.losses.binary_crossentropy,),
    "exponential": (keras.losses.poisson,),
}
# Keras' own classes of these losses; a subclass may compute another one.
_CLASSES = (
    keras.losses.MeanSquaredError.__base__,
    keras.losses.CategoricalCrossentropy,
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.BinaryCrossentropy,
    keras.losses.Poisson,
)
# Layers whose `call` ends with the activation.
_LAST_CALLS = tuple(
    layer.call
    for layer in (
        keras.layers.Activation,
        keras.layers.Dense,
        keras.layers.EinsumDense,
        keras.layers.Conv1D,
        keras.layers.Conv2D,
        keras.layers.Conv2DTranspose,
    )
)


class Link(NamedTuple):
    """The last layer of an output, and the activation that it ends with."""

    layer: keras.Layer
    activation: Any

    def linear(self, inputs):
        """What enters the activation.

        A copy computes it: another thread may use the layer meanwhile.
        """
        linear = copied(self.layer, activation=keras.activations.linear)
        return linear(inputs)


class LinkedModel:
    """A model without the last activations that match its losses.

    Args:
        model: the built model.
        losses: for each output the list of its `keras.losses.Loss`es.

    Attributes:
        trunk: a model of what enters the links' layers, and of the other
            outputs; the model itself where there are no links.
        is_convex: whether the losses are known to be convex in the outputs.
    """

    def __init__(self, model, losses):
        outputs = _symbolic_outputs(model) if losses else []
        self._links = [
            _link(output, own)
            for output, own in zip(outputs, losses, strict=bool(outputs))
        ]
        self.trunk = model
        if any(self._links):
            self.trunk = keras.Model(
                getattr(model, "input", model.inputs),
                [
                    output if link is None else _node(output).input_tensors[0]
                    for output, link in zip(outputs, self._links, strict=True)
                ],
                name=model.name,
            )
            self.trunk.dtype_policy = model.dtype_policy
        links = self._links or [None] * len(losses)
        self.is_convex = bool(losses) and all(
            link is not None or all(map(_is_of_logits, own))
            for link, own in zip(links, losses, strict=True)
        )

    def __call__(self, x, training):
        """What enters the last activations: a list, one for each output."""
        values = tree.flatten(self.trunk(x, training=training))
        return [
            leaf if link is None else link.linear(leaf)
            for link, leaf in self._with_links(values)
        ]

    def activated(self, values):
        """The model's outputs, of what enters the last activations."""
        return [
            leaf if link is None else link.activation(leaf)
            for link, leaf in self._with_links(values)
        ]

    def _with_links(self, values):
        links = self._links or [None] * len(values)
        return zip(links, values, strict=True)


def _symbolic_outputs(model):
    """The outputs of a model that is a graph of layers; none of another."""
    is_graph = type(model).call.__module__.startswith("keras.")
    return list(getattr(model, "outputs", None) or ()) if is_graph else []


def _node(output):
    history = output._keras_history
    return history.operation._inbound_nodes[history.node_index]


def _link(output, losses):
    layer, inputs = _node(output).operation, _node(output).input_tensors
    activation = getattr(layer, "activation", None)
    matching = _MATCHING.get(getattr(activation, "__name__", None), ())
    ends_with_it = getattr(type(layer), "call", None) in _LAST_CALLS
    if ends_with_it and len(inputs) == 1 and losses:
        if all(_matches(loss, matching) for loss in losses):
            return Link(layer, activation)
    return None


def _matches(loss, functions):
    is_own = type(loss) in _CLASSES and not _is_of_logits(loss)
    return is_own and any(loss.fn is function for function in functions)


def _is_of_logits(loss):
    return type(loss) in _CLASSES and bool(loss.get_config().get("from_logits"))
