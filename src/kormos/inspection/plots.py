"""Plots of histories and results."""

from __future__ import annotations

import os
from collections.abc import Mapping
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from kormos.inspection.curves import Curves
from kormos.inspection.curves import curves_of
from kormos.optional import new_figure
from kormos.types import Vector

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colors of the palette of Okabe and Ito that color-blind readers can tell apart
# and that have a contrast of 3 to white, and black. Keras' own optimizers, to
# compare with, have greys.
_TRAINING, _VALIDATION = "#0072B2", "#D55E00"
_OURS = (_TRAINING, _VALIDATION, "#00785A", "#A8487F", "#000000")
_OTHERS = ("#6E6E6E", "#8A8A8A")

# Curves with more points than this have no markers, because these would
# overlap. Our choice.
_MOST_MARKERS = 40

# Panels with counts, and panels whose values span many powers of ten.
_COUNTED = ("trials", "resets", "active", "stage")
_LOGARITHMIC = ("loss", "grad", "damping", "radius", "step")

_LABELS = {"grad": "gradient norm"}
_AXES = {
    "iterations": "iterations",
    "evaluations": "evaluations of the loss",
    "seconds": "time (s)",
}


def plot_history(
    history: Any,
    against: str = "iterations",
    path: str | os.PathLike[str] | None = None,
    *,
    columns: Sequence[str] | None = None,
    ax: Any = None,
) -> Figure:
    """Plots the loss, the gradient norm and the metrics of fits.

    A notebook shows the figure, and so does `plt.show()`. Losses, gradient
    norms, steps, damping and radii have logarithmic axes unless they are
    negative. A column and its `val_` column share a panel.

    Args:
        history: The `History` that `fit` returned; or the result of
            `kormos.minimize`, `kormos.least_squares` or `kormos.solve`; or a
            dict that maps names to several of these, to compare them in one
            figure.
        against: The quantity on the horizontal axis: `"iterations"`, the
            default, `"evaluations"` or `"seconds"`, from the start of the fit.
        path: Path of a file to write, in the format of its extension, or
            `None`, the default. A script then does not show the figure.
        columns: List of the names of the columns to plot, one panel each.
            Defaults to all columns of a single history, or to those that at
            least two of several histories have.
        ax: A matplotlib `Axes` to draw into, or a list with one for each panel.
            With a single one and without `columns`, only the loss is plotted.
            Defaults to a new figure.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If `against` or a column is unknown, if a history is empty,
            or if the number of `Axes` is not the number of panels.

    Example:

    ```python
    first = kormos.fit(model, x, y, optimizer="lbfgs", epochs=10)
    second = kormos.fit(model, x, y, optimizer="lm", epochs=10)
    kormos.plot_history({"lbfgs": first, "lm": second}, against="seconds")
    ```
    """
    given = history if isinstance(history, Mapping) else {None: history}
    fits = [curves_of(name, one, against) for name, one in given.items()]
    if not fits:
        raise ValueError(
            "There is nothing to plot: pass a history, or a dict of several. "
            "Received: an empty dict"
        )
    if columns is None and ax is not None and not np.iterable(ax):
        columns = ["loss"]
    panels = _panels(fits, columns)
    axes = _axes(panels, path, ax)
    colors = _colors(fits)
    for axis, name in zip(axes, panels, strict=True):
        for fit, color in zip(fits, colors, strict=True):
            _draw(axis, fit, name, color)
        _finish(axis, fits, name)
    axes[-1].set_xlabel(_AXES[against])
    axes[-1].locator_params(axis="x", integer=against != "seconds")
    figure: Figure = axes[0].figure
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _panels(fits: Sequence[Curves], columns: Sequence[str] | None) -> list[str]:
    """The names of the columns that have a panel."""
    names: dict[str, None] = {"loss": None, "grad": None}
    for fit in fits:
        names.update(dict.fromkeys(fit.base_names))
    if columns is None:
        least = min(2, len(fits))
        owners = {n: sum(n in f.base_names for f in fits) for n in names}
        return [name for name in names if owners[name] >= least]
    known = [n for n in names if any(n in f.base_names for f in fits)]
    columns = [columns] if isinstance(columns, str) else list(columns)
    unknown = [name for name in columns if name not in known]
    if unknown or not columns:
        raise ValueError(
            f"Argument `columns` must name some of {known}; the columns of "
            "the validation are drawn with them. Received: "
            f"columns={columns!r}"
        )
    return columns


def _axes(
    panels: Sequence[str], path: str | os.PathLike[str] | None, ax: Any
) -> list[Axes]:
    """The `Axes` of each panel: the user's, or new ones."""
    if ax is None:
        figure = new_figure((6.4, 2.4 * len(panels)), path)
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)
        return list(grid[:, 0])
    axes = list(np.ravel(np.asarray(ax, dtype=object)))
    if len(axes) != len(panels):
        raise ValueError(
            f"Argument `ax` must hold {len(panels)} Axes, one for each of "
            f"{list(panels)}: choose fewer by `columns`. "
            f"Received: {len(axes)} Axes"
        )
    return axes


def _colors(fits: Sequence[Curves]) -> list[str]:
    """A color for each fit: strong ones for kormos' fits, greys for others."""
    used = {True: 0, False: 0}
    found = []
    for fit in fits:
        # A single fit need not stand out from others.
        is_strong = fit.is_ours or len(fits) == 1
        palette = _OURS if is_strong else _OTHERS
        found.append(palette[used[is_strong] % len(palette)])
        used[is_strong] += 1
    return found


def _draw(axis: Axes, fit: Curves, name: str, color: str) -> None:
    """Draws a column of a fit, and that of its validation."""
    is_alone = fit.name is None
    for column, places, values in fit.of(name):
        is_validation = column.startswith("val_")
        label = "validation" if is_validation else "training"
        if fit.name is not None:
            label = f"{fit.name}, {label}" if is_validation else fit.name
        axis.plot(
            places,
            values,
            "--" if is_validation else "-",
            color=_VALIDATION if is_validation and is_alone else color,
            linewidth=1.5 if fit.is_ours or is_alone else 1.0,
            marker="o" if len(values) <= _MOST_MARKERS else None,
            markersize=3,
            label=label,
        )


def _finish(axis: Axes, fits: Sequence[Curves], name: str) -> None:
    """Scales and labels a panel."""
    parts = [values for fit in fits for _, _, values in fit.of(name)]
    values = np.concatenate(parts) if parts else np.zeros(0)
    if name in _LOGARITHMIC and _is_positive(values):
        # Zeros are below a logarithmic axis.
        axis.set_yscale("log", nonpositive="clip")
    elif name in _COUNTED:
        axis.locator_params(axis="y", integer=True)
    axis.set_ylabel(_LABELS.get(name, name))
    axis.grid(True, which="major", color="0.9")
    axis.spines[["top", "right"]].set_visible(False)
    if len(axis.get_lines()) > 1:
        axis.legend(frameon=False)


def _is_positive(values: Vector) -> bool:
    """Whether no value is negative, and not all are zero."""
    values = values[np.isfinite(values)]
    return bool((values >= 0).all() and (values > 0).any())
