"""The starts of a race: drawn, given, or a model's initial weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from typing import TypeAlias

import numpy as np

from kormos.checks import check_count
from kormos.objective.base import FlatObjective
from kormos.types import Matrix
from kormos.types import Vector

# Draws a start from the variables' own initializers, `(size,)`.
Draw: TypeAlias = Callable[[np.random.Generator], Vector]
# The lower and the upper bounds, `(size,)`, or `None` for none.
Box: TypeAlias = tuple[Vector | None, Vector | None]


def check_restarts(restarts: Any, starts: Any, seed: Any) -> None:
    """Raises a `ValueError` unless the arguments tell what to start from."""
    check_count("seed", seed, 0)
    if restarts is not None:
        check_count("restarts", restarts, 1)
    if restarts is None and callable(starts):
        raise ValueError(
            "A function as `starts` needs `restarts`, which says how many "
            "starts to draw. Received: restarts=None and a function"
        )


def drawn_starts(
    objective: FlatObjective,
    box: Box,
    restarts: int | None,
    starts: Any,
    draw: Draw | None,
    seed: int,
) -> Matrix:
    """The starts, beginning with the variables' values.

    Args:
        objective: the loss.
        box: the bounds.
        restarts: the number of starts, or `None` for all that are given.
        starts: function `(count, rng)` that returns `count` starts, of shape
            `(count, size)` or, for each variable, `(count, *shape)`; or such
            starts; or `None`.
        draw: function that draws a start if none are given, or `None`.
        seed: the seed of the generator.

    Returns:
        An array of shape `(count, size)`.

    Raises:
        ValueError: if there is nothing to draw from, or starts have another
            shape.
    """
    rng = np.random.default_rng(seed)
    here = objective.initial_position()
    lower, upper = box
    if callable(starts):
        assert restarts is not None  # `check_restarts` has checked it.
        found = _flat(objective, starts(restarts - 1, rng), restarts - 1)
    elif starts is not None:
        found = _flat(objective, starts, None)
        found = found[: None if restarts is None else restarts - 1]
    else:
        assert restarts is not None  # A race has one or the other.
        draw = draw or _within(lower, upper)
        found = np.array([draw(rng) for _ in range(restarts - 1)])
    found = np.concatenate([here[None], found.reshape(-1, here.size)])
    if lower is not None and upper is not None:
        found = np.clip(found, lower, upper)
    return found


def _within(lower: Vector | None, upper: Vector | None) -> Draw:
    """A function that draws from a box."""
    if lower is None or upper is None or not np.isfinite(upper - lower).all():
        raise ValueError(
            "Argument `restarts` needs `starts` to begin from, a function "
            "`(count, rng)` or an array, or finite `bounds` for every "
            "parameter. Received: starts=None"
        )
    low, high = lower, upper
    return lambda rng: rng.uniform(low, high)


def _flat(objective: FlatObjective, starts: Any, count: int | None) -> Matrix:
    """Starts as flat vectors.

    Args:
        objective: the loss.
        starts: see `drawn_starts`.
        count: the number of starts, or `None` for any.
    """
    size, shapes = objective.size, [v.shape for v in objective.variables]
    parts = starts if isinstance(starts, (list, tuple)) else [starts]
    parts = [np.asarray(part, "float64") for part in parts]
    by_variable = [p.shape[1:] for p in parts] == [tuple(s) for s in shapes]
    if by_variable and len({len(p) for p in parts}) == 1:
        flat = np.concatenate([p.reshape(len(p), -1) for p in parts], axis=1)
    else:
        flat = np.asarray(parts[0] if len(parts) == 1 else parts, "float64")
    is_right = flat.ndim == 2 and flat.shape[1] == size
    if not is_right or count not in (None, len(flat)):
        raise ValueError(
            f"Argument `starts` must be, or return, {count or 'any number of'} "
            f"starts: an array of shape (count, {size}), or an array of shape "
            "(count, *shape) for each variable. "
            f"Received: arrays of shapes {[p.shape for p in parts]}"
        )
    return flat
