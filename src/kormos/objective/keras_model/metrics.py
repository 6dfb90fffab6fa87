"""A model's metrics."""

import contextlib
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops
from keras import tree

from kormos import backend
from kormos.objective.keras_model.loss_terms import LossTerms
from kormos.objective.keras_model.loss_terms import structure_of
from kormos.objective.keras_model.split_loss import is_of_keras
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
        self._constant = _Constant(name="constant", autocast=False)

    def build(self, *data: Structure) -> None:
        """Builds the metrics, and finds their variables.

        It is called outside of any stateless scope, because metrics create
        variables when they are first called.

        Args:
            *data: see `update`.
        """
        with backend.own_copies(self._model), self._naming(*data):
            self._model.compute_metrics(*data)
        self.constant(data[2])
        self._model.reset_metrics()
        self.variables = list(self._model.metrics_variables)

    @contextlib.contextmanager
    def _naming(
        self, x: Structure, y: Structure, y_pred: Structure, w: Structure
    ) -> Iterator[None]:
        """A scope whose errors name Keras' metrics and the shapes of data."""
        try:
            yield
        except Exception as error:
            if not self.are_of_keras:
                raise
            own = [m.name for m in _single(self._model.metrics)]
            names = ", ".join(name for name in own if name != "loss")
            raise ValueError(
                "A metric cannot be computed from these targets and outputs: "
                "compile the model without it. "
                f"Received: metrics {names}, y of {structure_of(y)}, and "
                f"outputs of {structure_of(y_pred)}. Keras says: {error}"
            ) from error

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

    @property
    def are_of_keras(self) -> bool:
        """Whether all of them are Keras' own, and none is a user's code."""
        own = type(self._model).compute_metrics
        return own.__module__.startswith("keras.") and all(
            map(is_of_keras, _single(self._model.metrics))
        )

    def constant(self, y_pred: Structure) -> Structure:
        """The predictions, with masks but without derivatives.

        Metrics may call operations that have no derivatives.
        """
        return tree.map_structure(self._constant, y_pred)

    def results(self) -> dict[str, Tensor]:
        """The results by name, without the loss."""
        results = _flattened(self._model.get_metrics_result())
        return {k: v for k, v in results.items() if k != "loss"}


def _single(metrics: Iterable[Any]) -> Iterator[keras.metrics.Metric]:
    """Yields the metrics, with containers replaced by their metrics."""
    for metric in metrics:
        several = getattr(metric, "metrics", None)
        if several is None:
            yield metric
        else:
            yield from _single(several)


class _Constant(keras.layers.Layer):
    """Stops gradients. It is a layer because only layers pass masks on."""

    supports_masking = True

    def call(self, inputs: Tensor) -> Tensor:
        return ops.stop_gradient(inputs)


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
