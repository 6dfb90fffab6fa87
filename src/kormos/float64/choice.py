"""The precision that a user asks for, and whether a fit can have it."""

from collections.abc import Callable
from collections.abc import Iterable
from typing import Any

from kormos.warn import warn

PRECISIONS = (None, "float64", "auto")


class Float64Error(ValueError):
    """A model or function cannot be evaluated in float64."""


def check_precision(value: object) -> None:
    """Refuses a value that is not a precision of a fit."""
    if value not in PRECISIONS:
        raise ValueError(
            "Argument `precision` must be 'float64', 'auto' or None. "
            f"Received: precision={value!r}"
        )


def precision_of_stage(
    value: str | None, own: str | None, dtypes: Iterable[str]
) -> str | None:
    """The precision of a stage, as one of `PRECISIONS`.

    Args:
        value: one of `PRECISIONS`, `None` for the fit's precision, or
            `"float32"`.
        own: the precision of the fit, one of `PRECISIONS`.
        dtypes: the dtypes of the variables.

    Raises:
        ValueError: if the variables cannot be evaluated in float32.
    """
    if value != "float32":
        return own if value is None else value
    others = sorted(set(dtypes) - {"float32"})
    if others:
        raise ValueError(
            "A stage of a `Chain` can only evaluate variables of float32 with "
            "`precision='float32'`: build the model or the variables in "
            f"float32. Received: variables of {', '.join(others)}"
        )
    return None


def starts_in_float64(precision: str | None, dtypes: Iterable[str]) -> bool:
    """Whether to evaluate in float64 from the start.

    Args:
        precision: one of `PRECISIONS`.
        dtypes: the dtypes of the variables.
    """
    is_float64 = all(dtype == "float64" for dtype in dtypes)
    return precision == "float64" or (precision == "auto" and is_float64)


def decide(precision: str | None, prepare: Callable[[], Any]) -> bool:
    """Whether a fit can continue in float64 when it has converged in float32.

    Args:
        precision: one of `PRECISIONS`.
        prepare: function that prepares an evaluation in float64. It raises
            `Float64Error` if that is not possible.

    Raises:
        Float64Error: if `precision` is `"float64"` and that is not possible.
    """
    if precision is None:
        return False
    try:
        prepare()
    except Float64Error as error:
        if precision == "float64":
            raise
        warn(
            f"This fit (precision='auto') will not continue in float64. {error}"
        )
        return False
    return True
