"""The progress of a session, as a callback of Keras."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kormos.session.displays import Display
from kormos.session.displays import Step
from kormos.session.displays import display_for
from kormos.session.result import Result

# The columns at the start of every line, and further columns of a live line, if
# there is room.
_FIRST = ("loss", "grad", "fg_evals")
_LIVE = (*_FIRST, "val_loss")

LEVELS = (0, 1, 2, 3)


def level_of(verbose: int | str, auto: int) -> int:
    """The level that `verbose` stands for.

    Args:
        verbose: what the user gave.
        auto: the level that `"auto"` stands for.

    Raises:
        ValueError: if there is no such level.
    """
    if verbose == "auto":
        return auto
    if not isinstance(verbose, (int, np.integer)) or verbose not in LEVELS:
        raise ValueError(
            "Argument `verbose` must be 'auto', 0 for silence, 1 for a live "
            "line, 2 for one line per epoch, or 3 for one line with the "
            f"numbers of the method. Received: verbose={verbose!r}"
        )
    return int(verbose)


class Progress(keras.callbacks.Callback):
    """Shows a session: one live line, or a line for each step of it.

    Args:
        last: the number of the last epoch or iteration.
        verbose: 1 for a live line with the time left, 2 for a line for each
            step, 3 for a line with the numbers of the method, too.

    Attributes:
        of_method: the names of the numbers of the method.
        is_told: whether the sentence that ends the session was shown.
    """

    def __init__(self, last: int, verbose: int):
        super().__init__()
        self._last = last
        self._verbose = verbose
        self._step: Step | None = None
        self._display: Display | None = None
        self.of_method: Collection[str] = ()
        self.is_told = False

    def on_train_begin(self, logs: Any = None) -> None:
        self._display = display_for(self._verbose == 1, self._last)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._step = Step(epoch + 1, self._last, self._figures(logs or {}))
        if self._display is not None:
            self._display.step(self._step)

    def on_train_end(self, logs: Any = None) -> None:
        self._close()
        result = getattr(self.model.history, "result", None)
        if result is not None and self._display is not None:
            self._display.say(str(result))
            self.is_told = True

    def abandon(self) -> None:
        """Gives the terminal back after an error."""
        self._close()

    def _close(self) -> None:
        if self._display is not None:
            self._display.close(self._step)

    def _figures(self, logs: dict[str, Any]) -> list[tuple[str, str]]:
        if self._verbose == 1:
            names = [name for name in _LIVE if name in logs]
        else:
            names = [name for name in _FIRST if name in logs]
            names += [name for name in logs if name not in names]
        if logs.get("hessp_evals") == 0 and "hessp_evals" in names:
            names.remove("hessp_evals")
        if self._verbose == 2:
            names = [name for name in names if name not in self.of_method]
        return [(name, _text(logs[name])) for name in names]


def _text(value: Any) -> str:
    """A number as text: counts without decimals, others with six digits."""
    if np.ndim(value):
        return str(value)
    value = float(value)
    is_count = value.is_integer() and abs(value) < 1e15
    return str(int(value)) if is_count else f"{value:.6g}"


def warning_of(result: Result, shown: Sequence[Progress]) -> str:
    """The text of the warning about the end of a session.

    Args:
        result: the `Result`.
        shown: the displays that have shown the session, which may be none.
    """
    if any(progress.is_told for progress in shown):
        # The long sentence is not printed a second time.
        return (
            f"it is not known whether an optimum was reached ({result.status})."
        )
    return str(result)
