"""The objectives of a fit of residuals."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from typing import Any
from typing import TypeAlias

from kormos.float64.choice import precision_of_stage
from kormos.objective.functions.broadcasts import warn_of_broadcasts
from kormos.objective.functions.residuals import ResidualObjective

if TYPE_CHECKING:
    from kormos.optimizers.stage import LossSettings
    from kormos.session.reweigh import Reweigh

# Of training and of validation.
Pair: TypeAlias = tuple[ResidualObjective, ResidualObjective | None]


class ResidualObjectives:
    """Makes the residuals of training and of validation for each stage.

    Args:
        make: function `(data, precision=..., data_name=...)` that makes
            objectives.
        data: the data of training.
        validation_data: the data of validation, or `None`.
        precision: the precision of the fit.
        loss_weights: the weights of the fit.
        follows: the callback that changes the weights during the fit, or
            `None`.

    Raises:
        ValueError: if the data cannot be used.
    """

    def __init__(
        self,
        make: Callable[..., ResidualObjective],
        data: Any,
        validation_data: Any,
        precision: str | None,
        loss_weights: Any,
        follows: Reweigh | None,
    ):
        self._make = make
        self._data = data
        self._validation_data = validation_data
        self._precision = precision
        self._loss_weights = loss_weights
        self._is_reweighed = follows is not None
        self._made: dict[str | None, Pair] = {}
        self._objective = make(data, precision=precision)
        warn_of_broadcasts(self._objective)
        if follows is not None:
            follows.replace(self._objective, 0)
        if validation_data is not None:
            self._objective.check_structure(validation_data)

    def __call__(self, settings: LossSettings) -> Pair:
        dtypes = [v.dtype for v in self._objective.variables]
        precision = precision_of_stage(
            settings.precision, self._precision, dtypes
        )
        if precision not in self._made:
            self._made[precision] = self._in(precision)
        found = self._made[precision]
        weights = settings.loss_weights
        if weights is not None or not self._is_reweighed:
            for objective in filter(None, found):
                objective.reweigh(weights or self._loss_weights)
        return found

    def _in(self, precision: str | None) -> Pair:
        train, held_out = self._objective, None
        if precision != self._precision:
            train = self._make(self._data, precision=precision)
        if self._validation_data is not None:
            held_out = self._make(
                self._validation_data,
                precision=precision,
                data_name="validation_data",
            )
        return train, held_out
