"""The objectives of a Keras model's fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kormos.float64.choice import precision_of_stage
from kormos.objective import Objective

if TYPE_CHECKING:
    import keras

    from kormos.data.rows import Rows
    from kormos.optimizers.stage import LossSettings
    from kormos.optimizers.stage import Stage


class ModelObjectives:
    """Makes the objectives of a fit, for the variables as they are.

    Args:
        model: the model.
        stages: the stages of the fit.
        train: the rows to train on.
        validation: the rows to validate on, or `None`.
        training: whether layers behave as in training.
        precision: see `fit`.
    """

    def __init__(
        self,
        model: keras.Model,
        stages: Sequence[Stage],
        train: Rows,
        validation: Rows | None,
        training: bool,
        precision: str | None,
    ):
        self._model = model
        self._stages = stages
        self._train = train
        self._validation = validation
        self._training = training
        self._precision = precision

    def __call__(
        self, settings: LossSettings
    ) -> tuple[Objective, Objective | None]:
        """Makes the objectives of training and of validation."""
        model = self._model
        dtypes = [v.dtype for v in model.trainable_variables]
        precision = precision_of_stage(
            settings.precision, self._precision, [model.compute_dtype, *dtypes]
        )
        with_jacobian = any(
            stage.uses_jacobian and not stage.uses_batches
            for stage in self._stages
        )
        objective = Objective(
            model,
            self._train.samples,
            batch_size=self._train.batch_size,
            training=self._training,
            with_jacobian=with_jacobian,
            precision=precision,
        )
        objective.measure()
        if self._validation is None:
            return objective, None
        samples, batch_size = self._validation
        return objective, Objective(
            model, samples, batch_size=batch_size, precision=precision
        )
