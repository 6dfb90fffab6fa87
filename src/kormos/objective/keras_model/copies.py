"""Copies of layers and losses that share their contents."""

from typing import Any


def copied(owner: Any, **attributes: Any) -> Any:
    """A shallow copy of a layer or a loss, with other attributes.

    Args:
        owner: the `keras.Layer` or `keras.losses.Loss`.
        **attributes: the attributes that are different in the copy.
    """
    # `copy.copy` would serialize and deserialize it, as pickling Keras' objects
    # does.
    copy = object.__new__(type(owner))
    copy.__dict__.update(owner.__dict__, **attributes)
    return copy
