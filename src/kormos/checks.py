"""Checks of arguments, for all parts of the library."""

import numpy as np


def check_count(name: str, value: object, least: int) -> None:
    """Refuses an argument that is not an integer of `least` or more."""
    if not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(
            f"Argument `{name}` must be an integer, {least} or more. "
            f"Received: {name}={value!r}"
        )


def check_reduction(reduction: object) -> None:
    """Refuses an argument that is not the name of a reduction."""
    if reduction not in ("mean", "sum"):
        raise ValueError(
            "Argument `reduction` must be 'mean' or 'sum'. "
            f"Received: reduction={reduction!r}"
        )
