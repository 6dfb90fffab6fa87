"""A matplotlib figure that notebooks show only once."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.figure import Figure


class ShownFigure(Figure):
    """A `Figure` that a notebook shows only once.

    At the end of a cell a notebook shows every figure that pyplot knows, and
    the value of the cell. A figure that is both would be shown twice.
    """

    def _ipython_display_(self) -> None:
        number: Any = getattr(self, "number", None)
        is_known = number is not None and plt.fignum_exists(number)
        if is_known and not is_inline():
            return  # The figure has a window.
        from IPython.display import Image
        from IPython.display import display

        out = io.BytesIO()
        self.savefig(out, format="png")
        display(Image(out.getvalue()))  # type: ignore[no-untyped-call]
        if is_known:
            plt.close(self)


def is_inline() -> bool:
    """Whether figures are shown below the cells of a notebook."""
    return "inline" in matplotlib.get_backend().lower()
