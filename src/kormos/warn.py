"""Finds the user's own line, for warnings and for messages of errors."""

import sys
import traceback
import warnings
from types import FrameType
from types import TracebackType

# Lines in these modules tell a user nothing.
_LIBRARIES = (
    "kormos",
    "keras",
    "jax",
    "tensorflow",
    "torch",
    "numpy",
    "optree",
    "contextlib",
)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the line outside of kormos and Keras that led here.

    Args:
        message: what to say.
        category: the class of the warning.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_of_library(frame):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def place_of(trace: TracebackType | None) -> tuple[str, int] | None:
    """Finds the last line of a traceback that is in the user's own code.

    Args:
        trace: the traceback of an exception.

    Returns:
        The file and the number of the line, or `None` if there is none.
    """
    for frame, number in reversed([*traceback.walk_tb(trace)]):
        if not _is_of_library(frame):
            return frame.f_code.co_filename, number
    return None


def _is_of_library(frame: FrameType) -> bool:
    """Whether a frame is one of kormos' or of what it stands on."""
    package, _, _ = frame.f_globals.get("__name__", "").partition(".")
    return package in _LIBRARIES
