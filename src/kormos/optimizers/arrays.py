"""Arrays that are to become the values of variables."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kormos.types import Vector


def are_like(weights: Any, variables: Sequence[keras.Variable]) -> bool:
    """Whether these are arrays of the shapes and dtypes of the variables."""
    is_list = isinstance(weights, (list, tuple))
    return (
        is_list
        and len(weights) == len(variables)
        and all(
            hasattr(weight, "dtype")
            and tuple(weight.shape) == tuple(variable.shape)
            # A vector of parameters must not be taken for the counters.
            and keras.backend.standardize_dtype(weight.dtype) == variable.dtype
            for weight, variable in zip(weights, variables, strict=True)
        )
    )


def write(theta: Vector, variables: Sequence[keras.Variable]) -> None:
    """Writes a flat vector into variables."""
    sizes = [int(np.prod(variable.shape)) for variable in variables]
    if sum(sizes) != theta.size:
        raise ValueError(
            f"The file belongs to a run with {theta.size:,} parameters: pass "
            "the variables of that run, in the same order. Received: "
            f"variables of {sizes} parameters"
        )
    parts = np.split(theta, np.cumsum(sizes)[:-1])
    for variable, part in zip(variables, parts, strict=True):
        variable.assign(part.reshape(variable.shape))


def described(weights: Any) -> str:
    """The kind and the shape of what should have been a list of arrays."""
    kind = type(weights).__name__
    if hasattr(weights, "shape"):
        return f"{kind} of shape {tuple(weights.shape)}"
    if isinstance(weights, (list, tuple)):
        return f"a {kind} of {len(weights)} entries"
    return repr(weights)
