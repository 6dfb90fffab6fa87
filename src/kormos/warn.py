"""Finds the line of the user's code that a warning or an error is about."""

import contextlib
import contextvars
import sys
import traceback
import warnings
from collections.abc import Iterator
from types import FrameType
from types import TracebackType

# A line in one of these packages is not the user's.
_LIBRARIES = (
    "kormos",
    "keras",
    "jax",
    "tensorflow",
    "torch",
    "numpy",
    "scipy",
    "optree",
    "contextlib",
)


_is_muted: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "kormos_muted", default=False
)


@contextlib.contextmanager
def muted(is_muted: bool) -> Iterator[None]:
    """A scope in which `warn` does nothing, if `is_muted`."""
    token = _is_muted.set(is_muted)
    try:
        yield
    finally:
        _is_muted.reset(token)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the line outside of kormos and Keras that has called them.

    Args:
        message: the text of the warning.
        category: the class of the warning.
    """
    if _is_muted.get():
        return
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_of_library(frame):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def warn_if_muted(message: str) -> None:
    """Warns only in a scope in which `warn` is muted."""
    if _is_muted.get():
        with muted(False):
            warn(message)


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
    """Whether a frame runs code of kormos or of a library that it uses."""
    package, _, _ = frame.f_globals.get("__name__", "").partition(".")
    return package in _LIBRARIES
