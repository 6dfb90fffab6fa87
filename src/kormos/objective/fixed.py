"""Parameters that a fit keeps at their values, by equal bounds."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kormos.objective.bounds import items_of
from kormos.objective.bounds import matches
from kormos.objective.bounds import resolve_bounds
from kormos.objective.flat_bounds import flat_bounds
from kormos.objective.layout import Packing
from kormos.types import Array


def with_fixed(
    bounds: Any, fixed: Any, variables: Sequence[keras.Variable]
) -> Any:
    """Bounds that keep some parameters at their present values.

    Args:
        bounds: see `resolve_bounds`.
        fixed: dict from a variable's path, or a regular expression that
            matches all of a path, to the flat indices of its entries to hold,
            or `True` for all of them; or a list of pairs `(key, indices)`,
            where a key may also be a variable; or `None`.
        variables: list of the variables.

    Returns:
        Bounds, in a form that `resolve_bounds` takes.

    Raises:
        ValueError: if an entry matches no variable or has other indices, if a
            value is outside its bounds, or if nothing is left to fit.
    """
    if fixed is None:
        return bounds
    packing = Packing(variables)
    is_fixed = packing.split_array(np.zeros(packing.size))
    for key, indices in items_of(fixed, "fixed", "indices"):
        found = matches(key, packing.variables)
        if not found:
            raise ValueError(
                "A key of `fixed` matches no variable that is optimized. "
                f"Expected one of {[v.path for v in packing.variables]}, or "
                "a regular expression that matches a whole path. Received: "
                f"{getattr(key, 'path', key)!r}"
            )
        for i in found:
            is_fixed[i].reshape(-1)[_places(key, indices, is_fixed[i])] = 1
    if all(part.all() for part in is_fixed):
        raise ValueError(
            "There is nothing to optimize: expected at least one parameter "
            f"that is not fixed. Received: fixed={fixed!r}"
        )
    return _held(bounds, is_fixed, packing)


def _held(bounds: Any, is_fixed: list[Array], packing: Packing) -> Any:
    """The bounds, followed by those that hold parameters."""
    lower, upper = resolve_bounds(bounds, packing)
    if lower is None or upper is None:
        lower = np.full(packing.size, -np.inf)
        upper = -lower
    is_flat = flat_bounds(bounds, packing.size) is not None
    entries = [] if is_flat else items_of(bounds)
    for variable, held, value, low, high in zip(
        packing.variables,
        is_fixed,
        packing.split_array(packing.read()),
        packing.split_array(lower),
        packing.split_array(upper),
        strict=True,
    ):
        held = held > 0
        outside = held & ((value < low) | (value > high))
        if outside.any():
            raise ValueError(
                "A fixed parameter must be within its bounds: assign a value "
                "within the bounds, or leave the bounds out. Received: "
                f"{value[outside][0]} in {variable.path}"
            )
        if is_flat or held.any():
            pair = np.where(held, value, low), np.where(held, value, high)
            entries.append((variable, pair))
    return entries


def _places(key: Any, indices: Any, part: Array) -> Any:
    """The flat indices of the entries of a variable to hold."""
    if indices is True:
        return slice(None)
    places = np.asarray(indices)
    is_whole = places.ndim == 1 and (
        places.size == 0 or np.issubdtype(places.dtype, np.integer)
    )
    if not is_whole or ((places < 0) | (places >= part.size)).any():
        raise ValueError(
            "Argument `fixed` takes a list of flat indices for each variable, "
            f"from 0 to {part.size - 1} here, or `True` for all entries. "
            f"Received: {indices!r} for {getattr(key, 'path', key)!r}"
        )
    return places.astype("int64")
