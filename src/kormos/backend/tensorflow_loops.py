"""Workarounds for loops, in TensorFlow's forward mode and in XLA.

A loop keeps what its gradient needs in lists of tensors. The forward mode does
not support such lists. XLA only supports those whose maximal length is known,
and for `keras.ops.scan` it is not.
"""

import functools
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from kormos.types import Structure
from kormos.types import Tensor

_ZERO = tf.UnconnectedGradients.ZERO

# `(parts, tangents, *args) -> (values, derivatives)`
_Product = Callable[..., tuple[Structure, Structure]]


def backward_where_needed(
    fn: Callable[..., Structure],
) -> Callable[[_Product], _Product]:
    """Decorates a product in forward mode with a fallback: two gradients.

    Args:
        fn: `(parts, *args) -> values`, the function that it differentiates.
    """

    def decorate(forward: _Product) -> _Product:
        @functools.wraps(forward)
        def product(
            parts: list[Tensor], tangents: list[Tensor], *args: Any
        ) -> tuple[Structure, Structure]:
            try:
                return forward(parts, tangents, *args)
            except TypeError as error:
                # The dtype of the lists.
                if "variant" not in str(error):
                    raise
            return _twice_backward(fn, parts, tangents, *args)

        return product

    return decorate


def _twice_backward(
    fn: Callable[..., Structure],
    parts: list[Tensor],
    tangents: list[Tensor],
    *args: Any,
) -> tuple[Structure, Structure]:
    """The product by gradients of gradients.

    Cotangents times the derivatives are linear in the cotangents: their
    gradient, with tangents as its own cotangents, is the product.
    """
    if tf.executing_eagerly():
        traced = tf.function(
            lambda p, t: _twice_backward(fn, p, t, *args), autograph=False
        )
        return traced(parts, tangents)
    parts = [tf.identity(part) for part in parts]
    values = fn(parts, *args)
    flat = tf.nest.flatten(values)
    cotangents = [tf.zeros_like(value) for value in flat]
    pulled_back = tf.gradients(
        flat, parts, cotangents, unconnected_gradients=_ZERO
    )
    derivatives = tf.gradients(
        # Gathers (embeddings) give `IndexedSlices`.
        [tf.convert_to_tensor(p) for p in pulled_back],
        cotangents,
        tangents,
        unconnected_gradients=_ZERO,
    )
    return values, tf.nest.pack_sequence_as(values, derivatives)


def is_refused_by_xla(function: Any, args: tuple[Any, ...]) -> bool:
    """Whether a list in a function has no maximal length.

    XLA logs pages of errors before it raises one.

    Args:
        function: a `tf.function`.
        args: its arguments.
    """
    graph = function.get_concrete_function(*args).graph.as_graph_def()
    return any(map(_has_open_list, _bodies(graph)))


def _bodies(graph: Any) -> Iterator[Any]:
    """The operations of a graph, and those of each function that it calls."""
    yield graph.node
    for function in graph.library.function:
        yield function.node_def


def _has_open_list(nodes: Any) -> bool:
    constants = {node.name: node for node in nodes if node.op == "Const"}
    for node in nodes:
        if node.op == "EmptyTensorList":
            # The second input is its maximal length, or -1 for none.
            longest = constants.get(node.input[1].partition(":")[0])
            if longest is not None:
                tensor = longest.attr["value"].tensor
                if tf.make_ndarray(tensor) == -1:
                    return True
    return False
