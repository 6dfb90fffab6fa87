"""Optional packages: pandas and matplotlib."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING
from typing import Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pandas_module() -> Any:
    """The module pandas.

    Raises:
        ImportError: if it is not installed.
    """
    return _module("pandas", "`to_frame` needs pandas: `pip install pandas`.")


def new_figure(
    size: tuple[float, float], path: str | os.PathLike[str] | None
) -> Figure:
    """An empty figure, which `plt.show()` and notebooks show.

    With a `path`, pyplot keeps the figure only if it draws at once, as in a
    notebook. So a script that writes many figures does not keep them in memory.

    Args:
        size: width and height in inches.
        path: the file to which the figure will be written, or `None`.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    pyplot = _module(
        "matplotlib.pyplot",
        "Plots need matplotlib: `pip install kormos[plots]`.",
    )
    figures = importlib.import_module("kormos.figures")
    kind = figures.ShownFigure
    if path is None or pyplot.isinteractive() or figures.is_inline():
        figure: Figure = pyplot.figure(
            figsize=size, layout="constrained", FigureClass=kind
        )
        return figure
    return kind(figsize=size, layout="constrained")


def _module(name: str, advice: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise ImportError(f"{advice} Received: {error}") from error
