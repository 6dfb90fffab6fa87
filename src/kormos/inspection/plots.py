"""Plots of a fit."""

import numpy as np

_COUNTS = ("fg_evals", "hessp_evals")


def plot_history(history, against="iterations", path=None):
    """Draws the loss, the gradient norm and the metrics of a fit.

    Args:
        history: the `History` that `fit` returned, or the result of
            `kormos.minimize`.
        against: the horizontal axis: `"iterations"` (epochs),
            `"evaluations"` or `"seconds"`.
        path: file to write, in the format of its ending, or `None`.

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
    figure = Figure(figsize=(6.4, 2.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, (label, names) in zip(axes, panels.items(), strict=True):
        for name in names:
            _draw(axis, places, columns[name], name)
        axis.set_ylabel(label)
        axis.grid(True, which="major", alpha=0.3)
        if len(names) > 1:
            axis.legend(frameon=False)
        values = np.concatenate([columns[name] for name in names])
        if (values[np.isfinite(values)] > 0).all() and label in (
            "loss",
            "gradient norm",
        ):
            axis.set_yscale("log")
    axes[-1].set_xlabel(against)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _columns(history, against):
    rows = history.history
    if not rows or not rows.get("loss"):
        raise ValueError(
            "There is nothing to plot: the history has no rows. "
            f"Received: {history!r}"
        )
    seconds = rows.get("seconds", getattr(history, "seconds", None))
    epochs = getattr(history, "epoch", range(len(rows["loss"])))
    axis = {
        "iterations": [epoch + 1 for epoch in epochs],
        "evaluations": rows.get("fg_evals"),
        "seconds": seconds,
    }
    if axis.get(against) is None:
        raise ValueError(
            "Argument `against` must be 'iterations', or, for a fit by "
            "kormos, 'evaluations' or 'seconds'. "
            f"Received: against={against!r}"
        )
    columns = {
        name: np.asarray(values, dtype="float64")
        for name, values in rows.items()
        if name not in (*_COUNTS, "seconds")
    }
    return columns, np.asarray(axis[against], dtype="float64")


def _panels(columns):
    """Groups the columns: loss and its validation share a panel, and so on."""
    panels = {"loss": [n for n in ("loss", "val_loss") if n in columns]}
    if np.isfinite(columns.get("grad", [np.nan])).any():
        panels["gradient norm"] = ["grad"]
    for name in columns:
        base = name.removeprefix("val_")
        if base in ("loss", "grad"):
            continue
        panels.setdefault(base, []).append(name)
    return panels


def _draw(axis, places, values, name):
    # Validation in some epochs alone gives a shorter column.
    step = len(places) / len(values)
    where = places[[round((i + 1) * step) - 1 for i in range(len(values))]]
    style = "--" if name.startswith("val_") else "-"
    marker = "o" if len(values) <= 40 else None
    axis.plot(where, values, style, marker=marker, markersize=3, label=name)
