"""Copies of layers and losses that share what these hold."""

from typing import Any


def copied(owner: Any, **attributes: Any) -> Any:
    """A shallow copy of a layer or a loss, with other attributes.

    Args:
        owner: the `keras.Layer` or `keras.losses.Loss`.
        **attributes: what is another one in the copy.
    """
    # `copy.copy` would save and load it: Keras' objects are pickled so.
    copy = object.__new__(type(owner))
    copy.__dict__.update(owner.__dict__, **attributes)
    return copy
