"""Metrics and validation at the end of an epoch."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
from typing import Any

import keras
import numpy as np

from kormos.checks import check_count
from kormos.failures import FINAL
from kormos.failures import severity_of
from kormos.objective import Objective
from kormos.objective.keras_model.measured import warn_of_metric
from kormos.solvers.protocols import Iterate
from kormos.solvers.rejections import or_else
from kormos.types import Vector


class EpochLogs:
    """Evaluates metrics and validates.

    Args:
        validation_freq: the number of epochs between two validations; or a list
            of the epochs with a validation, counted from 1.

    Raises:
        ValueError: if that is neither a number nor a list of numbers.
    """

    def __init__(self, validation_freq: int | Collection[int]):
        is_list = isinstance(validation_freq, (list, tuple, set))
        # Keras' check below raises the error for any other value.
        epochs: Any = validation_freq if is_list else [validation_freq]
        for epoch in epochs:
            check_count("validation_freq", epoch, 1)
        self._validation_freq = validation_freq

    def metrics(self, objective: Objective, iterate: Iterate) -> dict[str, Any]:
        """The compiled metrics at an iterate, without the loss.

        They are NaN if a metric fails. The fit continues, because the loss has
        not failed.
        """
        if not objective.has_metrics:
            return {}
        if iterate.readings is not None:
            return objective.metrics_of(iterate.readings)
        assert iterate.theta is not None  # Otherwise it has readings.
        try:
            values = objective.evaluate(iterate.theta)
        except Exception as error:
            if severity_of(error) == FINAL:
                raise
            warn_of_metric(error)
            return dict.fromkeys(objective.metric_names, np.nan)
        return {k: v for k, v in values.items() if k != "loss"}

    def validation(
        self,
        objective: Objective,
        theta: Vector,
        callbacks: keras.callbacks.CallbackList,
        call: Callable[..., object],
    ) -> dict[str, Any]:
        """The loss and the metrics of the validation.

        Args:
            objective: the objective of the validation.
            theta: the point.
            callbacks: the callbacks whose `on_test_*` methods are called, as in
                Keras.
            call: function that calls one of them.
        """
        call(callbacks.on_test_begin)
        call(callbacks.on_test_batch_begin, 0)
        names = ["loss", *objective.metric_names]
        instead = dict.fromkeys(names, np.nan)
        values = or_else(instead, objective.evaluate, theta)
        call(callbacks.on_test_batch_end, 0, values)
        call(callbacks.on_test_end, values)
        return {f"val_{k}": v for k, v in values.items()}

    def validates(self, epoch: int) -> bool:
        """Whether an epoch, counted from 1, is validated."""
        every = self._validation_freq
        if isinstance(every, (int, np.integer)):
            return bool(epoch % every == 0)
        return epoch in every
