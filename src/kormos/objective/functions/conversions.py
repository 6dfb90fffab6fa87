"""Names the line in which a function converts a tensor to a NumPy array."""

import contextlib
import linecache
from collections.abc import Iterator
from collections.abc import Sequence
from types import TracebackType

import keras

from kormos.objective.functions import predictions
from kormos.warn import place_of

# The class of the error that each backend raises, and a part of its message.
_ERRORS = (
    ("TracerArrayConversionError", ""),
    ("NotImplementedError", "to a numpy array"),
    ("RuntimeError", "Can't call numpy() on Tensor that requires grad"),
)


@contextlib.contextmanager
def naming_conversions(
    name: str, variables: Sequence[keras.Variable]
) -> Iterator[None]:
    """A scope that names the line in which a tensor becomes an array.

    Args:
        name: the name in messages of the function that runs in the scope.
        variables: the variables to fit.

    Raises:
        ValueError: naming the line, if that happens.
    """
    try:
        with predictions.refusing_predictions(variables):
            yield
    except predictions.Prediction as error:
        line = _line(error.__traceback__)
        message = predictions.in_words(name, str(error), line)
        raise ValueError(message) from error
    except Exception as error:
        if not any(
            type(error).__name__ == kind and text in str(error)
            for kind, text in _ERRORS
        ):
            raise
        raise ValueError(
            f"Function `{name}` must compute with tensors: a NumPy array has "
            "no gradient, and the product of an array and a variable is an "
            "array. Convert the array by `keras.ops.convert_to_tensor(x)`, "
            "and use `keras.ops` in place of NumPy's functions. Received: "
            f"{_line(error.__traceback__)}"
        ) from error


def _line(trace: TracebackType | None) -> str:
    """The user's line in which a traceback ends, in words."""
    place = place_of(trace)
    if place is None:
        return "a conversion to NumPy"
    file, number = place
    return f"line {number} of {file}: {linecache.getline(file, number).strip()}"
