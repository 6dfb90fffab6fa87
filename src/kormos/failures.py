"""How bad an exception is that an evaluation has raised.

Processes that fit a model together must judge an exception of one of them
alike: each number here can be sent to the others.
"""

import traceback

from kormos import backend
from kormos.data import stream

# The numerics have failed, so the point cannot be evaluated.
NUMERICAL = 1
# The point is to blame if the same function has returned before. Otherwise it
# may be a mistake in shapes or types, for example.
OF_POINT = 2
# No other point will help: the data cannot be read, or an argument is wrong.
FINAL = 3


class SharedFailure(RuntimeError):
    """A failure that several processes have agreed on.

    Attributes:
        severity: one of the three numbers of this module.
    """

    severity = FINAL


def severity_of(error: BaseException) -> int:
    """One of the three numbers of this module.

    Args:
        error: the exception.
    """
    if isinstance(error, SharedFailure):
        return error.severity
    if not isinstance(error, Exception):
        return FINAL
    frames = traceback.walk_tb(error.__traceback__)
    modules = [frame.f_globals.get("__name__", "") for frame, _ in frames]
    # A `ValueError` that kormos itself raises is about arguments.
    is_own = bool(modules) and modules[-1].startswith("kormos.")
    if stream.__name__ in modules or (is_own and isinstance(error, ValueError)):
        return FINAL
    return NUMERICAL if backend.is_numerical(error) else OF_POINT
