"""Warnings that point at the user's own line."""

import sys
import warnings
from types import FrameType

# A warning of kormos says nothing of lines in these.
_LIBRARIES = (
    "kormos",
    "keras",
    "jax",
    "tensorflow",
    "torch",
    "numpy",
    "contextlib",
)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the line outside of kormos and Keras that led here.

    Args:
        message: what to say.
        category: the class of the warning.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and is_of_library(frame):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def is_of_library(frame: FrameType) -> bool:
    """Whether a frame is one of kormos' or of what it stands on."""
    package, _, _ = frame.f_globals.get("__name__", "").partition(".")
    return package in _LIBRARIES
