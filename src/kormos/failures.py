"""The severity of an exception that an evaluation has raised.

Processes that fit a model together must rate an exception of one of them in the
same way. The numbers here can be sent to the other processes, which then raise
the exceptions of this module.
"""

import traceback

from kormos import backend
from kormos.backend.common import class_of
from kormos.backend.common import quoted
from kormos.data import stream

# The numerics have failed, so the point cannot be evaluated.
NUMERICAL = 1
# If the same function has returned before, the point is the reason. Otherwise
# it may be a mistake in shapes or types, for example.
OF_POINT = 2
# No other point will help: the data cannot be read, an argument is wrong, or
# there is a mistake in the code.
FINAL = 3

# Exceptions that Python never raises because of numbers. A `ValueError`, which
# `math.sqrt` raises for a negative number, an `AssertionError` and a user's own
# class are not among them: these may reject a point.
_MISTAKES = (
    AttributeError,
    ImportError,
    KeyError,
    MemoryError,
    NameError,
    NotImplementedError,
    OSError,
    RecursionError,
    SyntaxError,
    TypeError,
)


class SharedFailure(RuntimeError):
    """A failure on which several processes have agreed.

    Attributes:
        severity: one of the three numbers of this module.
    """

    severity = FINAL


class OtherProcessFailed(SharedFailure):
    """Raised when another process has failed, which reports the reason.

    A fit that is distributed over several processes raises it in all processes
    except the one that failed.
    """

    def __init__(self, message: str, severity: int = FINAL):
        super().__init__(message)
        self.severity = severity


class LostProcessError(SharedFailure):
    """Raised when the processes can no longer exchange correct sums.

    A process has ended or does not answer, or the processes run different
    programs.
    """


def drifted(name: str, unlike: list[int]) -> LostProcessError:
    """The error for processes that do not run the same program.

    Args:
        name: a description of what the processes had to add up.
        unlike: the processes that differ from the first one.
    """
    return LostProcessError(
        "All processes must run the same program: with the same versions of "
        "all packages, the same arguments, and callbacks that make the same "
        f"changes and stop at the same epoch. Received: for {name}, other "
        f"values on processes {unlike} than on process 0"
    )


def lost(name: str, place: str, said: str) -> LostProcessError:
    """The error for a process that gets no answer from the others.

    Args:
        name: a description of what the processes had to add up.
        place: the name of this process.
        said: the message of the backend.
    """
    return LostProcessError(
        "A process has ended, or has not answered within the timeout of the "
        "backend. A fit can continue from what the first process has saved, "
        "for example by `kormos.callbacks.BackupAndRestore`. Received: for "
        f"{name} on {place}, {said}"
    )


def severity_of(error: BaseException) -> int:
    """Returns one of the three numbers of this module.

    Args:
        error: the exception.
    """
    if isinstance(error, SharedFailure):
        return error.severity
    if not isinstance(error, Exception):
        return FINAL
    frames = traceback.walk_tb(error.__traceback__)
    modules = [frame.f_globals.get("__name__", "") for frame, _ in frames]
    # A `ValueError` that kormos itself raises is about arguments. JAX also
    # raises one when numbers are read, and its message may quote another
    # exception.
    is_own = bool(modules) and modules[-1].startswith("kormos.")
    is_own = is_own and quoted(error) is None
    if stream.__name__ in modules or (is_own and isinstance(error, ValueError)):
        return FINAL
    if backend.is_numerical(error):
        return NUMERICAL
    return FINAL if issubclass(class_of(error), _MISTAKES) else OF_POINT
