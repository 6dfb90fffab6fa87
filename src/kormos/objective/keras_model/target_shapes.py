"""Whether targets have the shapes of the outputs that they belong to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras

from kormos.objective.keras_model.split_loss import is_of_keras

Shape = tuple[int, ...]

# Words in the names of Keras' losses whose targets are classes, not values.
_OF_CLASSES = ("sparse", "ctc", "generalized")


def are_broadcast(
    loss: keras.losses.Loss, targets: Shape, outputs: Shape
) -> bool:
    """Whether Keras broadcasts targets and outputs to each other.

    A loss that the user has written may need targets of another shape.

    Args:
        loss: the loss that compares the two.
        targets: the shape of the targets.
        outputs: the shape of the outputs.
    """
    function = getattr(loss, "fn", None)
    name = f"{type(loss).__name__} {getattr(function, '__name__', '')}".lower()
    if not is_of_keras(loss) or any(word in name for word in _OF_CLASSES):
        return False
    # Keras drops a last dimension of one where the other side has none.
    if len(targets) == len(outputs) + 1 and targets[-1] == 1:
        targets = targets[:-1]
    elif len(outputs) == len(targets) + 1 and outputs[-1] == 1:
        outputs = outputs[:-1]
    return targets[1:] != outputs[1:]


@contextlib.contextmanager
def naming_shapes(
    name: str, targets: Shape, outputs: Shape, weights: Shape | None
) -> Iterator[None]:
    """A scope of the first call of a loss, which names the shapes of its data.

    Args:
        name: the name of the loss.
        targets: the shape of the targets.
        outputs: the shape of the outputs.
        weights: the shape of the weights, or `None`.

    Raises:
        ValueError: if the call fails.
    """
    try:
        yield
    except Exception as error:
        also = "" if weights is None else f", and weights of shape {weights}"
        raise ValueError(
            f"The loss '{name}' cannot be computed from data of these shapes. "
            "Targets need the shape of the output; class numbers and weights "
            "need this shape without the last axis. "
            f"Received: targets of shape {targets}, an output of shape "
            f"{outputs}{also}. It fails with: {error}"
        ) from error
