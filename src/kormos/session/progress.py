"""The progress of a session, by Keras' own progress bar."""

from __future__ import annotations

import sys
from typing import Any

import keras
import numpy as np


class Progress(keras.callbacks.Callback):
    """Shows a session: one live line, or a line for each step of it.

    Args:
        last: the number of the last epoch or iteration.
        verbose: 1 for a live line with the time left, 2 for a line each.
        unit: what is counted.
    """

    def __init__(self, last: int, verbose: int, unit: str = "epoch"):
        super().__init__()
        self._last = last
        self._verbose = verbose
        self._unit = unit
        self._done = 0
        self._values: list[tuple[str, Any]] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self._bar = keras.utils.Progbar(
            self._last, verbose=self._verbose, unit_name=self._unit
        )

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs = dict(logs or {})
        first = [k for k in ("loss", "grad", "fg_evals") if k in logs]
        if logs.get("hessp_evals") == 0:
            del logs["hessp_evals"]
        names = [*first, *(k for k in logs if k not in first)]
        self._done = epoch + 1
        self._values = [(name, _shown(logs[name])) for name in names]
        # Shown as they are, not averaged over the epochs.
        self._bar.stateful_metrics = set(names)
        if self._verbose == 2:
            self._bar.update(self._done, self._values, finalize=True)
        elif self._done < self._last:
            # The bar ends its line when it is full; `on_train_end` does that.
            self._bar.update(self._done, self._values, finalize=False)

    def on_train_end(self, logs: Any = None) -> None:
        if self._verbose == 1 and self._values:
            self._bar.update(self._done, self._values, finalize=True)
        result = getattr(self.model.history, "result", None)
        if result is not None:
            print(result, file=sys.stdout, flush=True)


def is_interactive() -> bool:
    """Whether a person looks at the output: in a terminal or a notebook."""
    return sys.stdout.isatty() or "ipykernel" in sys.modules


class _Number(float):
    """A number that Keras' bar shows as it is, not in four decimals.

    The differences that matter at the end of a fit are smaller than that, and
    counts have none.
    """

    def __truediv__(self, other: float) -> _Number:
        return _Number(super().__truediv__(other))

    def __format__(self, spec: str) -> str:
        is_count = self.is_integer() and abs(self) < 1e15
        return str(int(self)) if is_count else f"{float(self):.6g}"


def _shown(value: Any) -> Any:
    return _Number(value) if np.ndim(value) == 0 else value
