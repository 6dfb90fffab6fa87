"""The columns of a history, as curves."""

from __future__ import annotations

from typing import Any
from typing import NamedTuple

import keras
import numpy as np

from kormos.types import Vector

# Columns that are axes, not curves.
_AXES = ("fg_evals", "hessp_evals", "seconds", "iteration")


class Curves(NamedTuple):
    """The columns of one fit.

    Attributes:
        name: the name of the fit among others, or `None`.
        columns: dict from the names of columns to their values.
        places: the places of the rows on the horizontal axis.
        validated: the places of the rows with a validation.
        is_ours: whether kormos made the fit.
    """

    name: str | None
    columns: dict[str, Vector]
    places: Vector
    validated: Vector
    is_ours: bool

    @property
    def base_names(self) -> list[str]:
        """The names of the columns, without those of the validation."""
        bases = [name.removeprefix("val_") for name in self.columns]
        return list(dict.fromkeys(bases))

    def of(self, name: str) -> list[tuple[str, Vector, Vector]]:
        """The column and its validation: names, places and values."""
        found = []
        for column in (name, f"val_{name}"):
            values = self.columns.get(column)
            if values is not None:
                is_validation = column.startswith("val_")
                where = self.validated if is_validation else self.places
                found.append((column, where[: len(values)], values))
        return found


def curves_of(name: str | None, history: Any, against: str) -> Curves:
    """The curves of a fit.

    Args:
        name: the name of the fit among others, or `None`.
        history: a `History`, or a result.
        against: the horizontal axis.

    Raises:
        ValueError: if there are no rows, or no such axis.
    """
    rows = getattr(history, "history", None)
    if not isinstance(rows, dict) or not rows.get("loss"):
        raise ValueError(
            "There is nothing to plot: the history has no rows. "
            f"Received: {history!r}"
        )
    places = {
        # The result of `minimize`, and a stock `History`, lack `iteration`.
        "iterations": getattr(
            history, "iteration", range(1, len(rows["loss"]) + 1)
        ),
        "evaluations": rows.get("fg_evals"),
        "seconds": rows.get("seconds", getattr(history, "seconds", None)),
    }
    if places.get(against) is None:
        raise ValueError(
            "Argument `against` must be 'iterations', or, for a fit by "
            "kormos, 'evaluations' or 'seconds'. "
            f"Received: against={against!r}"
        )
    where = np.asarray(places[against], dtype="float64")
    validated, val_epoch = where, getattr(history, "val_epoch", None)
    if val_epoch is not None:
        validated = where[np.isin(history.epoch, val_epoch)]
    is_stock = isinstance(history, keras.callbacks.History)
    is_ours = not is_stock or hasattr(history, "result")
    return Curves(name, _columns(rows), where, validated, is_ours)


def _columns(rows: dict[str, Any]) -> dict[str, Vector]:
    """The columns of numbers, by name."""
    columns = {
        name: np.asarray(values, dtype="float64")
        for name, values in rows.items()
        if name not in _AXES and np.ndim(values[0]) == 0
    }
    if not np.isfinite(columns.get("grad", [np.nan])).any():
        columns.pop("grad", None)
    return columns
