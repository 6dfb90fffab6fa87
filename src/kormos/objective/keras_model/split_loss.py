"""A Keras loss, as a sum over rows and the divisor of its mean."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from kormos.objective.compiled import leading_size
from kormos.objective.keras_model.copies import copied
from kormos.objective.units import SQUARES
from kormos.types import Scalar
from kormos.types import Tensor

# Keras makes `LossFunctionWrapper` public only as the base of its own losses.
_FunctionLoss = keras.losses.MeanSquaredError.__base__


class SplitLoss(keras.losses.Loss):
    """A loss that notes what Keras passes to it, and computes it later.

    It computes the sum over rows and the divisor, rather than the mean.

    Args:
        loss: an entry of the `loss` argument of `compile`.
        note: function of the term and its data that returns the value of the
            call.

    Attributes:
        description: the name of the loss, for messages.
        is_float64: whether it can be computed in float64 for float32 outputs.
        counts_values: whether `count` has depended on more than the shapes of
            its data and on the mask of the predictions.
    """

    counts_values = False

    def __init__(self, loss: Any, note: Callable[..., float]) -> None:
        super().__init__(name=getattr(loss, "name", None))
        self._loss = loss
        self._note = note
        known: Any = getattr(loss, "__name__", self.name)
        self.description: str = loss if isinstance(loss, str) else known
        self.is_float64 = _squares_units(loss)

    def resolved(self, y_true: Tensor, y_pred: Tensor) -> keras.losses.Loss:
        """The loss as an object, which may depend on the shapes of its data."""
        return _resolve(self._loss, y_true, y_pred)

    def __call__(
        self,
        y_true: Tensor,
        y_pred: Tensor,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        return ops.convert_to_tensor(
            self._note(self, y_true, y_pred, sample_weight), dtype=self.dtype
        )

    def sum(
        self,
        y_true: Tensor,
        y_pred: Tensor,
        sample_weight: Tensor | None,
        *,
        dtype: Any,
    ) -> Scalar:
        """The loss, summed over the rows, in a dtype."""
        loss = self.resolved(y_true, y_pred)
        if _squares_units(loss):
            loss = _in_float64(loss, keras.backend.standardize_dtype(dtype))
        data = (y_true, y_pred, sample_weight)
        if not _is_opaque(loss):
            results = []

            def call(*args: Tensor) -> Tensor:
                results.append(_called(loss, *args))
                return results[0]

            values = _variant(loss, call)(*data)
            if results[0].shape != () or loss.reduction == "sum":
                # The sum has the dtype of the solver. A sum of many rows in
                # float32 would have much more rounding than the rows.
                return ops.sum(ops.cast(values, dtype))
            loss = _variant(loss, lambda *args: results[0], loss.reduction)
        # For a loss with its own reduction, `evaluate` weights the mean over a
        # batch by the batch's rows.
        value = ops.cast(ops.mean(loss(*data)), dtype)
        return value * _count_rows(y_true, y_pred)

    def count(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None
    ) -> tuple[Scalar, Scalar]:
        """The divisor of the loss, as a numerator and a denominator."""
        loss = self.resolved(y_true, y_pred)
        if _is_opaque(loss):
            return _count_rows(y_true, y_pred), 1
        if loss.reduction == "sum":
            return np.nan, 1
        shapes = []

        def ones(*args: Tensor) -> Tensor:
            values, is_masked = _ones(loss, *args)
            shapes.append(values.shape)
            self.counts_values |= is_masked
            return values

        # For a loss of ones, Keras' own mean is their sum over the divisor. In
        # only one reduction, the divisor contains the weights. In the others,
        # only the shape of the weights matters.
        if sample_weight is not None:
            if loss.reduction == "mean_with_sample_weight":
                self.counts_values = True
            else:
                sample_weight = ops.ones_like(sample_weight)
        data = (y_true, y_pred, sample_weight)
        values = _variant(loss, ones)(*data)
        if shapes[0] == ():
            return _count_rows(y_true, y_pred), 1
        if loss.reduction in (None, "none"):
            return np.prod(tuple(values.shape)), 1
        mean = _variant(loss, ones, loss.reduction)(*data)
        return ops.sum(ops.cast(values, "float64")), ops.sum(mean)

    def entry_weights(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None
    ) -> Tensor | None:
        """The weight of each value in the sum, which is zero if it is masked.

        Returns:
            A tensor of the shape of the values, or `None` if they are unknown.
        """
        loss = self.resolved(y_true, y_pred)
        if _is_opaque(loss):
            return None
        ones = _variant(loss, lambda *args: _ones(loss, *args)[0])
        return ones(y_true, y_pred, sample_weight)


def _called(loss: keras.losses.Loss, *args: Tensor) -> Tensor:
    """The values of a loss, before they are reduced."""
    values = loss.call(*args)
    if values is None or isinstance(values, (dict, list, tuple, int, float)):
        name = getattr(getattr(loss, "fn", None), "__name__", loss.name)
        raise ValueError(
            "A loss must return a tensor, computed from the outputs of the "
            "model, with a value for each row. "
            f"Received: {values!r} from '{name}'"
        )
    return values


def _ones(loss: keras.losses.Loss, *args: Tensor) -> tuple[Tensor, bool]:
    """Ones of the shape of a loss's values, with their mask.

    Returns:
        The ones, and whether they have a mask.
    """
    values = _called(loss, *args)
    like = _OnesLike(dtype=values.dtype, autocast=False)
    return like(values), like.is_masked


class _OnesLike(keras.layers.Layer):
    """Ones with the mask of the input. Keras lets only layers read masks."""

    supports_masking = True
    is_masked = False

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        self.is_masked = mask is not None
        return ops.ones_like(inputs)


def _count_rows(y_true: Tensor, y_pred: Tensor) -> int:
    # A model may return a scalar.
    return leading_size(y_pred if len(y_pred.shape) else y_true)


def _resolve(loss: Any, y_true: Tensor, y_pred: Tensor) -> keras.losses.Loss:
    """The `Loss` object for an entry of the `loss` argument of `compile`."""
    if isinstance(loss, str) and loss.lower() in ("crossentropy", "ce"):
        loss = _crossentropy(y_true, y_pred)
    resolved = keras.losses.get(loss)
    if isinstance(resolved, keras.losses.Loss):
        return resolved
    return _FunctionLoss(resolved)


def _crossentropy(y_true: Tensor, y_pred: Tensor) -> str:
    """The loss that Keras chooses for "crossentropy"."""
    if y_pred.shape[-1] == 1:
        return "binary_crossentropy"
    if len(y_true.shape) < len(y_pred.shape) or y_true.shape[-1] == 1:
        return "sparse_categorical_crossentropy"
    return "categorical_crossentropy"


def _is_opaque(loss: keras.losses.Loss) -> bool:
    """Whether a loss has its own reduction, which cannot be split."""
    return type(loss).__call__ is not keras.losses.Loss.__call__


def is_of_keras(loss: keras.losses.Loss | keras.metrics.Metric) -> bool:
    """Whether a loss or a metric belongs to Keras, and is not a user's code."""
    own = getattr(loss, "_fn", keras.losses.Loss)
    code = [type(loss), getattr(loss, "fn", own)]
    # The module of code that was made by `exec` is `None`.
    modules = [getattr(part, "__module__", None) or "" for part in code]
    return all(name.partition(".")[0] == "keras" for name in modules)


def _squares_units(loss: Any) -> bool:
    """Whether it is a loss of `units.SQUARES`, which any dtype can compute.

    Args:
        loss: an entry of the `loss` argument of `compile`.
    """
    resolved = None if isinstance(loss, str) else loss
    if resolved is None and loss.lower() not in ("crossentropy", "ce"):
        resolved = keras.losses.get(loss)
    fn = getattr(resolved, "fn", resolved)
    # A subclass may replace `call`.
    is_own = isinstance(resolved, keras.losses.Loss) and (
        type(resolved).call is not _FunctionLoss.call or _is_opaque(resolved)
    )
    return not is_own and any(fn is known for known in SQUARES)


def _in_float64(loss: keras.losses.Loss, dtype: str) -> keras.losses.Loss:
    """The same loss, computed in a wider dtype than its inputs have."""
    return copied(loss, fn=SQUARES[loss.fn], _dtype=dtype)


def _variant(
    loss: keras.losses.Loss,
    call: Callable[..., Tensor],
    reduction: str | None = None,
) -> keras.losses.Loss:
    """A copy of a loss with another `call` and reduction."""
    return copied(loss, call=call, reduction=reduction)
