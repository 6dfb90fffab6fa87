"""Last activations whose loss is convex in their inputs."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import keras
from keras import tree

from kormos.objective.keras_model.copies import copied
from kormos.types import Structure
from kormos.types import Tensor

# The loss functions that match each activation, by its name: they are convex in
# the activation's inputs.
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
    keras.losses.MeanSquaredError,
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
    activation: Callable[[Tensor], Tensor]

    def linear(self, inputs: Tensor) -> Tensor:
        """The activation's inputs, from the inputs of the layer.

        A copy of the layer computes it, because another thread may use the
        layer at the same time.
        """
        linear = copied(self.layer, activation=keras.activations.linear)
        return linear(inputs)


class LinkedModel:
    """A model without the last activations that match its losses.

    Args:
        model: the built model.
        losses: for each output the list of its losses.

    Attributes:
        trunk: a model whose outputs are the inputs of the links' layers, and
            the model's outputs without a link. It is the model itself if there
            are no links.
        is_convex: whether the losses are known to be convex in the outputs.
    """

    def __init__(
        self, model: keras.Model, losses: list[list[keras.losses.Loss]]
    ) -> None:
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

    def __call__(self, x: Structure, training: bool) -> list[Tensor]:
        """The inputs of the last activations: a tensor for each output.

        An output without a link is the output itself.
        """
        values = tree.flatten(self.trunk(x, training=training))
        return [
            leaf if link is None else link.linear(leaf)
            for link, leaf in self._with_links(values)
        ]

    def activated(self, values: list[Tensor]) -> list[Tensor]:
        """The model's outputs, from the inputs of the last activations."""
        return [
            leaf if link is None else link.activation(leaf)
            for link, leaf in self._with_links(values)
        ]

    def _with_links(
        self, values: list[Tensor]
    ) -> Iterator[tuple[Link | None, Tensor]]:
        links = self._links or [None] * len(values)
        return zip(links, values, strict=True)


def _symbolic_outputs(model: keras.Model) -> list[keras.KerasTensor]:
    """The outputs of a model that is a graph of layers, or none."""
    is_graph = type(model).call.__module__.startswith("keras.")
    return list(getattr(model, "outputs", None) or ()) if is_graph else []


def _node(output: keras.KerasTensor) -> Any:
    """The node of the graph that computes an output."""
    history = output._keras_history
    return history.operation._inbound_nodes[history.node_index]


def _link(
    output: keras.KerasTensor, losses: list[keras.losses.Loss]
) -> Link | None:
    """The link of an output, if its activation matches all its losses."""
    layer, inputs = _node(output).operation, _node(output).input_tensors
    activation: Any = getattr(layer, "activation", None)
    matching = _MATCHING.get(getattr(activation, "__name__", ""), ())
    ends_with_it = getattr(type(layer), "call", None) in _LAST_CALLS
    if ends_with_it and len(inputs) == 1 and losses:
        if all(_matches(loss, matching) for loss in losses):
            return Link(layer, activation)
    return None


def is_own_class(loss: keras.losses.Loss) -> bool:
    """Whether a loss is of one of Keras' own classes, not of a subclass."""
    return type(loss) in _CLASSES


def _matches(
    loss: keras.losses.Loss, functions: Sequence[Callable[..., Tensor]]
) -> bool:
    is_own = is_own_class(loss) and not _is_of_logits(loss)
    return is_own and any(loss.fn is function for function in functions)


def _is_of_logits(loss: keras.losses.Loss) -> bool:
    """Whether a loss applies the activation itself."""
    # `get_config` of some losses imports TensorFlow, which takes seconds.
    return is_own_class(loss) and bool(getattr(loss, "from_logits", False))
