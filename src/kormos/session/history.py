"""The `History` of a fit, with what kormos knows besides Keras."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

import keras
import numpy as np

from kormos.markup import paragraph
from kormos.optional import pandas_module

if TYPE_CHECKING:
    import pandas

    from kormos.session.result import Result


class History(keras.callbacks.History):
    """The Keras `History` of a fit by kormos.

    Attributes:
        history: dict of lists with an entry for every epoch.
        epoch: list of the numbers of the epochs, from 0.
        iteration: list of how many iterations there were up to each epoch.
        seconds: list of how much time there was up to each epoch.
        val_epoch: list of the epochs that were validated.
        trace: dict of lists with an entry for every iteration, also those
            inside an epoch.
        iterations: the same dict.
        result: the `Result`, which says why the fit ended.
        check: the report of `kormos.check`, or `None`.
    """

    result: Result | None = None
    check: Any = None
    trace: dict[str, list[Any]]
    iterations: dict[str, list[Any]]

    def __init__(self) -> None:
        super().__init__()
        self.epoch: list[int] = []
        self.iteration: list[int] = []
        self.seconds: list[float] = []
        self.val_epoch: list[int] = []
        self.trace = self.iterations = {}

    def to_frame(self) -> pandas.DataFrame:
        """The epochs as a pandas `DataFrame`, with a row for each.

        Its index is the epoch, counted from 1. Values of validation are NaN in
        epochs that were not validated.

        Raises:
            ImportError: if pandas is not installed.
        """
        pandas = pandas_module()
        index = pandas.Index([epoch + 1 for epoch in self.epoch], name="epoch")
        columns = {
            name: _spread(values, self.epoch, self.val_epoch)
            for name, values in self.history.items()
        }
        columns["iteration"] = self.iteration
        columns["seconds"] = self.seconds
        return pandas.DataFrame(columns, index=index)

    def __repr__(self) -> str:
        epochs = len(self.epoch)
        said = f"<History of {epochs} epoch{'s' * (epochs != 1)}"
        if self.result is None:
            return f"{said}>"
        return f"{said}: {self.result.status}, loss {self.result.loss:.6g}>"

    def _repr_html_(self) -> str:
        if self.result is None:
            return paragraph(repr(self))
        return self.result._repr_html_()


def _spread(
    values: Sequence[Any], rows: Sequence[int], known: Sequence[int]
) -> list[Any]:
    """A column with an entry for every row, NaN where there is no value."""
    if len(values) == len(rows):
        return list(values)
    found: Mapping[int, Any] = dict(zip(known, values, strict=False))
    return [found.get(row, np.nan) for row in rows]
