"""The model classes of kormos 0.1: any `keras.Model` does as well now."""

import abc

import keras

from kormos._fit import fit


class _FitBatch:
    def fit_batch(self, *args, **kwargs):
        """As `kormos.fit(model, ...)`."""
        return fit(self, *args, **kwargs)


@keras.saving.register_keras_serializable(package="kormos")
class FunctionalBatchOptimizedModel(_FitBatch, keras.Model):
    """What `BatchOptimizedModel(inputs, outputs)` makes."""


@keras.saving.register_keras_serializable(package="kormos")
class BatchOptimizedModel(_FitBatch, keras.Model, metaclass=abc.ABCMeta):
    """A `keras.Model` with a `fit_batch` method, functional or subclassed.

    Example:

    ```python
    model = kormos.models.BatchOptimizedModel(inputs, outputs)
    model.compile(optimizer="l-bfgs-b", loss="mse")
    model.fit_batch(x, y)
    ```
    """

    def __new__(cls, *args, **kwargs):
        if cls is BatchOptimizedModel and _is_functional(args, kwargs):
            return FunctionalBatchOptimizedModel(*args, **kwargs)
        return super().__new__(cls, *args, **kwargs)

    def __init__(self, *args, **kwargs):
        if _is_functional(args, kwargs):
            _spare(type(self))
            FunctionalBatchOptimizedModel.__init__(self, *args, **kwargs)
        else:
            super().__init__(*args, **kwargs)


def _is_functional(args, kwargs):
    # As Keras tells functional models from others.
    return len(args) + len({"inputs", "outputs"} & set(kwargs)) >= 2


def _spare(cls):
    """Makes a subclass inherit from `BatchOptimizedModel`'s sibling instead.

    Keras rewrites the bases of every class that is used functionally, after
    which none of them can be subclassed otherwise: the sibling is used up.
    """
    if cls is BatchOptimizedModel:
        return FunctionalBatchOptimizedModel
    if issubclass(cls, BatchOptimizedModel):
        cls.__bases__ = tuple(_spare(base) for base in cls.__bases__)
    return cls


@keras.saving.register_keras_serializable(package="kormos")
class BatchOptimizedSequentialModel(_FitBatch, keras.Sequential):
    """A `keras.Sequential` with a `fit_batch` method."""


# For `isinstance`: Keras would rewrite the bases of a common base class.
BatchOptimizedModel.register(FunctionalBatchOptimizedModel)
BatchOptimizedModel.register(BatchOptimizedSequentialModel)
