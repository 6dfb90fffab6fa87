"""A model's metrics."""

from collections.abc import Mapping
from typing import Any

import keras

from kormos import backend
from kormos.objective.keras_model.loss_terms import LossTerms
from kormos.types import Structure
from kormos.types import Tensor


class ModelMetrics:
    """A model's compiled metrics, for the values in the present scope.

    Args:
        model: a compiled and built model.
        terms: the terms of its loss.

    Attributes:
        variables: the variables of the metrics.
    """

    variables: list[keras.Variable]

    def __init__(self, model: keras.Model, terms: LossTerms) -> None:
        self._model = model
        self._terms = terms

    def build(self, *data: Structure) -> None:
        """Builds the metrics, and finds their variables.

        It is called outside of any stateless scope, because metrics create
        variables when they are first called.

        Args:
            *data: as `update` takes them.
        """
        with backend.own_copies(self._model):
            self._model.compute_metrics(*data)
        self._model.reset_metrics()
        self.variables = list(self._model.metrics_variables)

    @property
    def has_losses(self) -> bool:
        """Whether Keras has a metric for each of several losses.

        Only its own `compute_loss` updates these metrics.
        """
        return self._terms.own_name is None and len(self._terms.weights) > 1

    def update(
        self, x: Structure, y: Structure, y_pred: Structure, w: Structure
    ) -> None:
        """Adds rows to the metrics.

        Args:
            x: the inputs.
            y: the targets.
            y_pred: the predictions.
            w: the weights of the rows.
        """
        if self.has_losses:
            self._terms.compute_loss(x, y, y_pred, w)
        self._model.compute_metrics(x, y, y_pred, w)

    def results(self) -> dict[str, Tensor]:
        """The results by name, without the loss."""
        results = _flattened(self._model.get_metrics_result())
        return {k: v for k, v in results.items() if k != "loss"}


def _flattened(results: Mapping[str, Any]) -> dict[str, Tensor]:
    """Results by name, without the dicts of metrics with several results.

    Args:
        results: a dict of results, dicts and variables.
    """
    flat = {}
    for name, result in results.items():
        if isinstance(result, dict):
            flat.update(_flattened(result))
        elif isinstance(result, keras.Variable):
            # Outside of the scope, it would have another value.
            flat[name] = result.value
        else:
            flat[name] = result
    return flat
