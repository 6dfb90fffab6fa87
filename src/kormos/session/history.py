"""The `History` of a fit, with the information that kormos adds."""

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
        history: Dict of lists with one entry per epoch.
        epoch: List of the numbers of the epochs, from 0.
        iteration: List of the number of iterations up to the end of each epoch.
        seconds: List of the seconds up to the end of each epoch.
        val_epoch: List of the numbers of the epochs with a validation.
        trace: Dict of lists with one entry per iteration, including those
            inside an epoch.
        iterations: The same dict as `trace`.
        result: The `kormos.session.result.Result`, which says why the fit
            ended.
        check: The report of `kormos.check`, or `None`.

    Example:

    ```python
    history = model.fit(x, y, epochs=50)
    print(history.history["loss"][-1], history.result.status)
    ```
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
        """Returns the epochs as a pandas `DataFrame` with one row for each.

        The index is the number of the epoch, counted from 1. Values of the
        validation are NaN in epochs without one.

        Raises:
            ImportError: If pandas is not installed.
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
    """A column with an entry for every row, NaN where there is no value.

    Args:
        values: the values of the column.
        rows: the numbers of all rows.
        known: the numbers of the rows that have a value.
    """
    if len(values) == len(rows):
        return list(values)
    found: Mapping[int, Any] = dict(zip(known, values, strict=False))
    return [found.get(row, np.nan) for row in rows]
