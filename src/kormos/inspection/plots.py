"""Plots of a fit."""

import os
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from kormos.types import Array
from kormos.types import Vector

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Columns that are axes, not curves.
_COUNTS = ("fg_evals", "hessp_evals", "seconds")

# The colors of training (`False`) and validation (`True`): two of the palette
# of Okabe and Ito, whose colors color-blind readers can tell apart.
_COLOR = {False: "#0072B2", True: "#D55E00"}

# Curves with more points than this have no markers, which would overlap: a
# choice of ours.
_MOST_MARKERS = 40

_LOGARITHMIC = ("loss", "gradient norm")

_AXES = {
    "iterations": "iterations",
    "evaluations": "evaluations of the loss",
    "seconds": "time (s)",
}


def plot_history(
    history: Any,
    against: str = "iterations",
    path: str | os.PathLike[str] | None = None,
) -> "Figure":
    """Draws the loss, the gradient norm and the metrics of a fit.

    Losses and gradient norms have logarithmic axes if they are positive.

    Args:
        history: the `History` that `fit` returned, or the result of
            `kormos.minimize`.
        against: the horizontal axis: `"iterations"`, `"evaluations"` or
            `"seconds"`, from the start of the fit.
        path: file to write, in the format that its extension says, or `None`.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ValueError: if `against` is unknown or the history is empty.

    Example:

    ```python
    kormos.plot_history(history, against="seconds", path="fit.png")
    ```
    """
    from matplotlib.figure import Figure

    columns, places = _columns(history, against)
    panels = _panels(columns)
    figure = Figure(figsize=(6.4, 2.4 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (label, names) in zip(axes, panels.items(), strict=True):
        for name in names:
            validation = name.startswith("val_")
            where = _validated(history, places) if validation else places
            _draw(axis, where, columns[name], validation)
        values = np.concatenate([columns[name] for name in names])
        if label in _LOGARITHMIC and (values[np.isfinite(values)] > 0).all():
            axis.set_yscale("log")
        axis.set_ylabel(label)
        axis.grid(True, which="major", color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
        if len(names) > 1:
            axis.legend(frameon=False)
    axes[-1].set_xlabel(_AXES[against])
    axes[-1].locator_params(axis="x", integer=against != "seconds")
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _columns(history: Any, against: str) -> tuple[dict[str, Vector], Vector]:
    """The columns of numbers, by name, and the places of their rows."""
    rows = history.history
    if not rows or not rows.get("loss"):
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
    columns = {
        name: np.asarray(values, dtype="float64")
        for name, values in rows.items()
        if name not in _COUNTS and np.ndim(values[0]) == 0
    }
    return columns, np.asarray(places[against], dtype="float64")


def _panels(columns: dict[str, Vector]) -> dict[str, list[str]]:
    """The names of the columns of each panel, by its label.

    A column and the same column of the validation share a panel.
    """
    losses: list[str] = [n for n in ("loss", "val_loss") if n in columns]
    panels = {"loss": losses}
    if np.isfinite(columns.get("grad", [np.nan])).any():
        panels["gradient norm"] = ["grad"]
    for name in columns:
        base = name.removeprefix("val_")
        if base in ("loss", "grad"):
            continue
        panels.setdefault(base, []).append(name)
    return panels


def _validated(history: Any, places: Vector) -> Vector:
    """The places of the rows that were validated."""
    validated = getattr(history, "val_epoch", None)
    if validated is None:
        return places
    return places[np.isin(history.epoch, validated)]


def _draw(axis: "Axes", places: Array, values: Array, validation: bool) -> None:
    axis.plot(
        places[: len(values)],
        values,
        "--" if validation else "-",
        color=_COLOR[validation],
        marker="o" if len(values) <= _MOST_MARKERS else None,
        markersize=3,
        label="validation" if validation else "training",
    )
