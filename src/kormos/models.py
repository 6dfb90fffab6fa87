"""The model classes of kormos 0.1, kept so that code of its users runs.

New code does not need them: kormos fits any `keras.Model`.
"""

import abc
from collections.abc import Collection
from typing import Any

import keras

from kormos._fit import fit


class _FitBatch:
    def fit_batch(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Calls `kormos.fit(model, ...)` with the same arguments."""
        return fit(self, *args, **kwargs)


@keras.saving.register_keras_serializable(package="kormos")
class FunctionalBatchOptimizedModel(_FitBatch, keras.Model):
    """The class of functional models that `BatchOptimizedModel` creates."""


@keras.saving.register_keras_serializable(package="kormos")
class BatchOptimizedModel(_FitBatch, keras.Model, metaclass=abc.ABCMeta):
    """A `keras.Model`, functional or subclassed, with a `fit_batch` method.

    Example:

    ```python
    inputs = keras.Input((1,))
    outputs = keras.layers.Dense(1)(inputs)
    model = kormos.models.BatchOptimizedModel(inputs, outputs)
    model.compile(optimizer="l-bfgs-b", loss="mse")
    model.fit_batch(x, y)
    ```
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is BatchOptimizedModel and _is_functional(args, kwargs):
            return FunctionalBatchOptimizedModel(*args, **kwargs)
        return super().__new__(cls, *args, **kwargs)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if _is_functional(args, kwargs):
            _inherit_from_functional(type(self))
            FunctionalBatchOptimizedModel.__init__(self, *args, **kwargs)
        else:
            super().__init__(*args, **kwargs)


def _is_functional(args: Collection[Any], kwargs: Collection[str]) -> bool:
    # Keras distinguishes functional models from others in the same way.
    return len(args) + len({"inputs", "outputs"} & set(kwargs)) >= 2


def _inherit_from_functional(cls: type) -> type:
    """Replaces `BatchOptimizedModel` among the bases of a class.

    Keras rewrites the bases of a class when a functional model of it is made.
    After that, the base classes too can only make functional models. So
    `FunctionalBatchOptimizedModel` replaces `BatchOptimizedModel` among the
    bases, and `BatchOptimizedModel` itself can still be used for both kinds.
    """
    if cls is BatchOptimizedModel:
        return FunctionalBatchOptimizedModel
    if issubclass(cls, BatchOptimizedModel):
        cls.__bases__ = tuple(
            _inherit_from_functional(base) for base in cls.__bases__
        )
    return cls


@keras.saving.register_keras_serializable(package="kormos")
class BatchOptimizedSequentialModel(_FitBatch, keras.Sequential):
    """A `keras.Sequential` with a `fit_batch` method.

    Example:

    ```python
    model = kormos.models.BatchOptimizedSequentialModel(
        [keras.Input((1,)), keras.layers.Dense(1)]
    )
    model.compile(optimizer="l-bfgs-b", loss="mse")
    model.fit_batch(x, y)
    ```
    """


# These make `isinstance` work. Keras would rewrite the bases of a common base
# class.
BatchOptimizedModel.register(FunctionalBatchOptimizedModel)
BatchOptimizedModel.register(BatchOptimizedSequentialModel)
