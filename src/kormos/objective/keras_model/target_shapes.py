"""Whether targets have the shapes of the outputs that they belong to."""

from __future__ import annotations

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
