"""The model classes of kormos 0.1: any `keras.Model` does as well now."""

import keras

from kormos.fit import fit


class _FitBatch:
    def fit_batch(self, *args, **kwargs):
        """As `kormos.fit(model, ...)`."""
        return fit(self, *args, **kwargs)


@keras.saving.register_keras_serializable(package="kormos")
class FunctionalBatchOptimizedModel(_FitBatch, keras.Model):
    """What `BatchOptimizedModel(inputs, outputs)` makes."""


@keras.saving.register_keras_serializable(package="kormos")
class BatchOptimizedModel(_FitBatch, keras.Model):
    """A `keras.Model` with a `fit_batch` method, functional or subclassed.

    Example:

    ```python
    model = kormos.models.BatchOptimizedModel(inputs, outputs)
    model.compile(optimizer="l-bfgs-b", loss="mse")
    model.fit_batch(x, y)
    ```
    """

    def __new__(cls, *args, **kwargs):
        # Keras rewrites the bases of a class that is used functionally, and
        # it could not be subclassed any more: a sibling is used up instead.
        functional = len(args) >= 2 or {"inputs", "outputs"} <= set(kwargs)
        if cls is BatchOptimizedModel and functional:
            return FunctionalBatchOptimizedModel(*args, **kwargs)
        return super().__new__(cls, *args, **kwargs)


@keras.saving.register_keras_serializable(package="kormos")
class BatchOptimizedSequentialModel(_FitBatch, keras.Sequential):
    """A `keras.Sequential` with a `fit_batch` method."""
